"""Every decoder architecture against transformers: prompt, prefix, steps, company.

The reference is transformers' own attention over prompt rows and text in one sequence,
computed anew for every length: it keeps no state.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from blobs import normal
from decoders import (
    DECODERS,
    EACH_DECODER,
    Decoder,
    MadeDecoder,
    made_decoder,
    make_decoder,
    plain_logits,
    plain_model,
)
from made_once import MakeOnce

from promptdial.export import export_bundle
from promptdial.export.decoder_sides import GraphDecoder
from promptdial.export.decoder_verify import join
from promptdial.export.errors import ModelInvalid, Unsupported
from promptdial.export.model import load_base, resolve
from promptdial.export.onnx_edit import GraphEdit
from promptdial.export.session import cpu_session
from promptdial.export.sides import State
from promptdial.runtime import Engine
from promptdial.runtime.bundle import open_bundle
from promptdial.runtime.cli import main

Floats = np.ndarray[Any, np.dtype[np.float32]]
PROMPT, TEXT, STEPS = 5, 11, 16
KINDS = {kind.name: kind for kind in DECODERS}


class Made:
    """An architecture with its checkpoint, its bundle and the reference."""

    def __init__(self, kind: Decoder, made: MadeDecoder) -> None:
        self.kind, self.model, self.bundle = kind, made.model, made.bundle
        self.plain = plain_model(self.model)
        self.table = load_base(resolve(str(self.model))).token_table.numpy()

    def graph(self, variant: str) -> GraphDecoder:
        """A graph over the exact token table."""
        opened = open_bundle(self.bundle, variant)
        session = cpu_session(opened.graph_path, threads=1)
        return GraphDecoder(session, opened.manifest.dims, self.table)

    def wanted(self, rows: Floats) -> Floats:
        """Logits [T, V] of embedding rows [T, H], by transformers."""
        return plain_logits(self.plain, rows)

    def prompt(self, seed: int) -> Floats:
        """Random prompt rows [P, H] about as large as tokens."""
        spread = float(self.table.std())
        return normal(seed, PROMPT, self.table.shape[1]) * spread

    def text(self, seed: int, length: int = TEXT) -> Floats:
        """Embedding rows [T, H] of random tokens."""
        rng = np.random.default_rng(seed)
        return self.table[rng.integers(3, len(self.table), length)]


@pytest.fixture(scope="module", params=EACH_DECODER)
def made(request: pytest.FixtureRequest, make_once: MakeOnce) -> Made:
    kind: Decoder = request.param
    return Made(kind, made_decoder(make_once, kind.name))


def ones(rows: Floats) -> Any:
    return np.ones(rows.shape[:2], np.int64)


def run(graph: GraphDecoder, rows: Floats, state: State) -> tuple[Floats, State]:
    """Logits [B, T, V] and the state after rows [B, T, H] over a state."""
    return graph.run(graph.feed(rows, ones(rows), state))


def test_the_table_is_what_the_model_reads(made: Made) -> None:
    """Gemma 3 scales its rows inside the embedding, others after it or not at all."""
    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        wanted = made.plain(input_ids=ids).logits[0].numpy()
    found = made.wanted(made.table[ids[0].numpy()])
    assert np.abs(found - wanted).max() < 1e-5


def test_fp32_equals_transformers_with_prompt_prefix_and_steps(made: Made) -> None:
    graph = made.graph("fp32")
    prompt, text = made.prompt(1), made.text(2)
    plain, _ = run(graph, text[None], [])
    assert np.abs(plain[0] - made.wanted(text)).max() < 1e-4

    together, _ = run(graph, np.concatenate([prompt, text])[None], [])
    wanted = made.wanted(np.concatenate([prompt, text]))
    assert np.abs(together[0] - wanted).max() < 1e-4

    over_prefix, state = run(graph, text[None], graph.state(prompt))
    assert np.abs(over_prefix[0] - wanted[PROMPT:]).max() < 1e-4
    assert np.abs(over_prefix[0] - plain[0]).max() > 1e-2

    rows = np.concatenate([prompt, text])
    for step in range(STEPS):
        new = made.text(100 + step, 1)
        rows = np.concatenate([rows, new])
        logits, state = run(graph, new[None], state)
    assert np.abs(logits[0, -1] - made.wanted(rows)[-1]).max() < 1e-4


def test_three_tasks_in_one_batch_are_each_as_alone(made: Made) -> None:
    graph = made.graph("fp32")
    prompts = [made.prompt(seed) for seed in range(3)]
    texts = [made.text(10 + seed) for seed in range(3)]
    state = join([graph.state(prompt) for prompt in prompts])
    logits, state = run(graph, np.stack(texts), state)
    new = [made.text(20 + seed, 1) for seed in range(3)]
    stepped, _ = run(graph, np.stack(new), state)
    for row in range(3):
        rows = np.concatenate([prompts[row], texts[row], new[row]])
        wanted = made.wanted(rows)
        assert np.abs(logits[row] - wanted[PROMPT:-1]).max() < 1e-4
        assert np.abs(stepped[row, 0] - wanted[-1]).max() < 1e-4


def test_the_head_runs_on_the_last_rows_alone(made: Made) -> None:
    graph = made.graph("fp32")
    feed = graph.feed(made.text(1)[None], ones(made.text(1)[None]), [])
    everything = graph.session.run(["logits"], feed)[0]
    for keep in (1, 4):
        feed["logits_to_keep"] = np.array([keep])
        kept = graph.session.run(["logits"], feed)[0]
        assert kept.shape[1] == keep
        assert np.abs(kept - everything[:, -keep:]).max() < 1e-5


def test_int8_in_company_is_int8_alone(made: Made) -> None:
    """Texts over nothing, and one token over three prompts: bit for bit."""
    graph = made.graph("int8")
    texts = [made.text(10 + seed) for seed in range(3)]
    # An outlier beside it must not change a row.
    texts[1] = texts[1] * np.float32(20)
    states = [graph.state(made.prompt(seed)) for seed in range(3)]
    together, _ = run(graph, np.stack(texts), [])
    stepped, _ = run(graph, np.stack([text[:1] for text in texts]), join(states))
    for row in range(3):
        alone, _ = run(graph, texts[row][None], [])
        assert np.array_equal(together[row], alone[0])
        alone, _ = run(graph, texts[row][None, :1], states[row])
        assert np.array_equal(stepped[row], alone[0])


def test_a_packed_cache_holds_sequences_of_different_lengths(made: Made) -> None:
    """Each one's next token is bit for bit the one it has alone."""
    packed = open_bundle(made.bundle, "int8").variant.packed_cache
    others = ("mistral", "gemma2", "gemma3_text", "lfm2")
    assert packed == (made.kind.name not in others)
    if not packed:
        pytest.skip("local attention, bent scores and convolutions have none")
    graph = made.graph("int8")
    lengths = np.array([[3], [8], [5]])
    states = [
        run(graph, made.text(seed, int(length))[None], [])[1]
        for seed, [length] in enumerate(lengths)
    ]
    room = [
        tuple(
            np.concatenate(
                [np.pad(a, ((0, 0), (0, 0), (0, 8 - a.shape[2]), (0, 0))) for a in own]
            )
            for own in zip(*pairs, strict=True)
        )
        for pairs in zip(*states, strict=True)
    ]
    new = [made.text(20 + seed, 1) for seed in range(3)]
    feed = graph.feed(np.stack(new), np.ones((3, 1), np.int64), room)
    feed["attention_mask"] = (np.arange(9)[None] <= lengths).astype(np.int64)
    feed["position_ids"] = lengths
    together = graph.session.run(["logits"], feed)[0]
    for row in range(3):
        alone, _ = run(graph, new[row][None], states[row])
        assert np.array_equal(together[row], alone[0])


@pytest.mark.parametrize(("variant", "limit"), [("fp32", 1e-4), ("int8", 2e-2)])
def test_continuations_share_a_pass_and_do_not_see_each_other(
    made: Made, variant: str, limit: float
) -> None:
    """Two endings of one text behind one another: rows see their own ending alone."""
    if made.kind.name == "lfm2":
        pytest.skip("convolutions see the rows before, whatever they belong to")
    graph = made.graph(variant)
    prompt, text = made.prompt(1), made.text(2)
    endings = [made.text(30, 3), made.text(31, 2)]
    _, state = run(graph, np.concatenate([prompt, text])[None], [])
    before, lengths = PROMPT + TEXT, [len(ending) for ending in endings]
    visible = np.zeros((5, before + 5), np.bool_)
    visible[:, :before] = True
    visible[:3, before : before + 3] = True
    visible[3:, before + 3 :] = True
    rows = np.concatenate(endings)[None]
    feed = graph.feed(rows, ones(rows), state)
    steps = [before + step for length in lengths for step in range(length)]
    feed["position_ids"] = np.array([steps])
    feed["visible_keys"] = visible[None, None]
    found = graph.session.run(["logits"], feed)[0][0]
    del feed["visible_keys"]
    seen = graph.session.run(["logits"], feed)[0][0]
    for start, ending in ((0, endings[0]), (3, endings[1])):
        if variant == "fp32":
            wanted = made.wanted(np.concatenate([prompt, text, ending]))[before:]
        else:
            wanted = run(graph, ending[None], state)[0][0]
        rows_found = found[start : start + len(ending)]
        assert np.abs(rows_found - wanted).max() < limit * max(1, np.abs(wanted).max())
    assert np.abs(seen[3:] - found[3:]).max() > 1e-2


def test_every_weight_of_int8_is_int8(made: Made) -> None:
    graph = onnx.load(made.bundle / "model_int8.onnx")
    assert GraphEdit(graph).weight_matmuls() == []
    kinds = [node.op_type for node in graph.graph.node]
    assert kinds.count("MatMulIntegerToFloat") >= 3 * 2 + 1


def test_texts_of_one_token_are_compared_too(tmp_path: Path) -> None:
    """A tokenizer without a beginning of its own, and a word of one token."""
    folder = make_decoder(KINDS["llama"], tmp_path / "model")
    path = folder / "tokenizer.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps({**settings, "post_processor": None}))
    data = tmp_path / "texts.jsonl"
    data.write_text('{"text": "a"}\n{"text": "the film was good"}\n')
    export_bundle(str(folder), tmp_path / "a.bundle", ("int8",), calibrate=[data])


def test_longrope_is_kept_to_its_original_window(tmp_path: Path) -> None:
    """Beyond it every key is turned by other factors: kept ones would be wrong."""
    rope = {"rope_type": "longrope", "rope_theta": 10000.0}
    factors = {"short_factor": [1.0] * 8, "long_factor": [4.0] * 8}
    options = {"rope_parameters": rope | factors}
    options["original_max_position_embeddings"] = 32  # type: ignore[assignment]
    kind = replace(KINDS["phi3"], options=options)
    base = load_base(resolve(str(make_decoder(kind, tmp_path / "model"))))
    assert base.dims.max_positions == 32


def test_keys_that_change_with_the_length_are_refused(tmp_path: Path) -> None:
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    kind = replace(KINDS["llama"], options={"rope_parameters": rope})
    folder = make_decoder(kind, tmp_path / "model")
    with pytest.raises(Unsupported, match="rope_type dynamic"):
        load_base(resolve(str(folder)))


def test_tied_weights_are_stored_twice_and_the_manifest_says_so(
    make_once: MakeOnce, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The graph of tied weights has a head as large as that of others."""
    options = {**KINDS["llama"].options, "tie_word_embeddings": True}
    model = make_decoder(replace(KINDS["llama"], options=options), tmp_path / "model")
    tied = export_bundle(str(model), tmp_path / "a.bundle", ("int8", "fp32")).bundle
    graphs: dict[Path, list[int]] = {}
    for bundle in (made_decoder(make_once, "llama").bundle, tied):
        capsys.readouterr()
        assert main(["inspect", str(bundle), "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        table = (bundle / "embed_tokens.safetensors").stat().st_size
        assert found["tied_table_bytes"] == (table if bundle == tied else 0)
        graphs[bundle] = [
            sum(path.stat().st_size for path in bundle.glob(f"model_{precision}.onnx*"))
            for precision in ("int8", "fp32")
        ]
    for other, own in zip(*graphs.values(), strict=True):
        assert abs(own - other) < 1000 < table


def test_end_tokens_outside_the_vocabulary_are_refused(tmp_path: Path) -> None:
    folder = make_decoder(KINDS["llama"], tmp_path / "model")
    for name in ("config.json", "generation_config.json"):
        config = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**config, "eos_token_id": 50256}))
    with pytest.raises(ModelInvalid, match="eos_token_id is 50256"):
        export_bundle(str(folder), tmp_path / "a.bundle", ("fp32",))


def test_int4_writes_and_neighbours_are_not_felt(
    make_once: MakeOnce, tmp_path: Path
) -> None:
    """Equal to last bits: onnxruntime has another kernel for a single row."""
    model = made_decoder(make_once, "llama").model
    bundle = export_bundle(str(model), tmp_path / "a.bundle", ("int4",)).bundle
    opened = open_bundle(bundle, "int4")
    assert (opened.variant.precision, opened.variant.cpu_features) == ("int4", ())
    assert opened.variant.packed_cache
    table = load_base(resolve(str(model))).token_table.numpy()
    session = cpu_session(opened.graph_path, threads=1)
    graph = GraphDecoder(session, opened.manifest.dims, table)
    texts = table[np.random.default_rng(0).integers(3, len(table), (3, TEXT))]
    texts[1] *= 20  # an outlier beside it must not change a row
    state = graph.state(normal(1, PROMPT, table.shape[1]) * table.std())
    prefixes = join([state] * 3)
    together, _ = run(graph, texts, [])
    stepped, _ = run(graph, texts[:, :1], prefixes)
    for row in range(3):
        alone, _ = run(graph, texts[row, None], [])
        assert np.abs(together[row] - alone[0]).max() < 1e-5 * np.abs(alone).max()
        alone, _ = run(graph, texts[row, None, :1], state)
        assert np.abs(stepped[row] - alone[0]).max() < 1e-5 * np.abs(alone).max()
    with Engine(bundle, variant="int4", threads=1) as engine:
        found = engine.generate(None, "the film was", max_new_tokens=4)
        assert found.tokens
