"""The model that all peers run: SmolLM2-135M's shapes, random weights, and a bundle.

python benchmarks/peers/make_model.py WORK
"""

import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM

from promptdial.export import export_bundle
from promptdial.export.model import quiet_transformers

CONFIG = LlamaConfig(
    hidden_size=576,
    num_hidden_layers=30,
    num_attention_heads=9,
    num_key_value_heads=3,
    intermediate_size=1536,
    vocab_size=49152,
    max_position_embeddings=8192,
    rms_norm_eps=1e-5,
    rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
    tie_word_embeddings=True,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=0,
    initializer_range=0.0416,
)


def make_tokenizer() -> Tokenizer:
    """Bytes alone; every peer is given token ids."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    marks = ["<pad>", "<s>", "</s>"]
    vocab = {token: number for number, token in enumerate([*marks, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(marks)
    return tokenizer


def main() -> None:
    """Make what is not there yet."""
    work = Path(sys.argv[1])
    model, bundle = work / "model", work / "a.bundle"
    if not (model / "model.safetensors").is_file():
        torch.manual_seed(0)
        with quiet_transformers():
            LlamaForCausalLM(CONFIG).save_pretrained(model)
        make_tokenizer().save(str(model / "tokenizer.json"))
    if not bundle.is_dir():
        export_bundle(str(model), bundle, ("int8",))


if __name__ == "__main__":
    main()
