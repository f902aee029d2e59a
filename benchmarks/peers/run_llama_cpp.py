"""llama.cpp's round: Q8_0, virtual tokens as embeddings, kept in its cache."""

import ctypes
import sys
from pathlib import Path

import gguf
import llama_cpp as lib
import numpy as np
from rounds import (
    PROMPT,
    PROMPT_ROWS,
    STEPS,
    TEXT,
    TEXT_IDS,
    THREADS,
    VOCAB,
    WIDTH,
    serve,
    timed,
)
from safetensors.numpy import load_file

LAYERS, HEADS, KV_HEADS, INNER = 30, 9, 3, 1536
_NAMES = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def write_gguf(model: Path, path: Path) -> None:
    """The checkpoint as a GGUF file of float32."""
    tensors = load_file(model / "model.safetensors")
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(8192)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(100000.0)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_vocab_size(VOCAB)
    writer.add_tokenizer_model("none")
    writer.add_tensor("token_embd.weight", tensors["model.embed_tokens.weight"])
    writer.add_tensor("output_norm.weight", tensors["model.norm.weight"])
    for layer in range(LAYERS):
        for theirs, ours in _NAMES.items():
            value = tensors[f"model.layers.{layer}.{theirs}.weight"]
            if ours in ("attn_q", "attn_k"):
                value = _interleaved(value, HEADS if ours == "attn_q" else KV_HEADS)
            writer.add_tensor(f"blk.{layer}.{ours}.weight", value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows as llama.cpp's rotary embedding pairs them: neighbours, not halves."""
    shape = (heads, 2, weight.shape[0] // heads // 2, weight.shape[1])
    return np.ascontiguousarray(weight.reshape(shape).swapaxes(1, 2)).reshape(
        weight.shape
    )


def quantised(work: Path) -> Path:
    """The model in Q8_0."""
    path = work / "q8_0.gguf"
    if not path.is_file():
        exact = work / "f32.gguf"
        write_gguf(work / "model", exact)
        params = lib.llama_model_quantize_default_params()
        params.ftype = lib.LLAMA_FTYPE_MOSTLY_Q8_0
        lib.llama_model_quantize(
            str(exact).encode(), str(path).encode(), ctypes.byref(params)
        )
        exact.unlink()
    return path


class Runner:
    """A context and one batch of each kind."""

    def __init__(self, path: Path) -> None:
        lib.llama_backend_init()
        self.model = lib.llama_model_load_from_file(
            str(path).encode(), lib.llama_model_default_params()
        )
        params = lib.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = 256, 256, 256
        params.n_threads = params.n_threads_batch = THREADS
        self.context = lib.llama_init_from_model(self.model, params)
        self.memory = lib.llama_get_memory(self.context)
        self._rows = lib.llama_batch_init(PROMPT, WIDTH, 1)
        ctypes.memmove(self._rows.embd, PROMPT_ROWS.ctypes.data, PROMPT_ROWS.nbytes)
        self._ids = lib.llama_batch_init(TEXT, 0, 1)

    def prompt(self) -> None:
        """Virtual tokens into an empty cache."""
        lib.llama_memory_clear(self.memory, True)
        self._decode(self._rows, PROMPT, 0)

    def tokens(self, ids: list[int], start: int) -> np.ndarray:
        """Logits [V] after tokens at a position; what stood there is forgotten."""
        lib.llama_memory_seq_rm(self.memory, 0, start, -1)
        for place, token in enumerate(ids):
            self._ids.token[place] = token
        self._decode(self._ids, len(ids), start)
        logits = lib.llama_get_logits_ith(self.context, -1)
        return np.ctypeslib.as_array(logits, (VOCAB,))

    def _decode(self, batch: lib.llama_batch, count: int, start: int) -> None:
        batch.n_tokens = count
        for place in range(count):
            batch.pos[place] = start + place
            batch.n_seq_id[place] = 1
            batch.seq_id[place][0] = 0
            batch.logits[place] = place == count - 1
        if lib.llama_decode(self.context, batch):
            raise SystemExit("llama_decode failed")


def main() -> None:
    """Serve rounds."""
    runner = Runner(quantised(Path(sys.argv[1])))

    def cold() -> None:
        runner.prompt()
        runner.tokens(TEXT_IDS, PROMPT)

    def one_round() -> dict[str, float]:
        found = {"cold": timed(cold)}
        found["warm"] = timed(lambda: runner.tokens(TEXT_IDS, PROMPT))

        def steps() -> None:
            token = TEXT_IDS[-1]
            for step in range(STEPS):
                token = int(runner.tokens([token], PROMPT + TEXT + step).argmax())

        found["per_token"] = timed(steps) / STEPS
        return found

    serve(f"Q8_0, {lib.__name__} {THREADS} threads", one_round)


if __name__ == "__main__":
    main()
