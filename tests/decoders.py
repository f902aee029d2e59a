"""Decoders of every architecture: random weights and a byte-level tokenizer."""

import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from architectures import CORPUS
from made_once import MakeOnce
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedModel

from promptdial.export import export_bundle
from promptdial.export.model import quiet_transformers

MARKS = ("<pad>", "<s>", "</s>")
_VOCAB = 400
_SMALL = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "max_position_embeddings": 128,
    # Larger than the usual 0.02, so that prompts and texts move the logits.
    "initializer_range": 0.15,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_GROUPED = {"num_key_value_heads": 2}
_GEMMA = {**_GROUPED, "head_dim": 16}
_LOCAL = {"sliding_window": 9}


@dataclass(frozen=True)
class Decoder:
    """One kind of decoder.

    Attributes:
        name: `model_type` of transformers.
        config: Its configuration class.
        model: Its class with a head.
        options: Of the configuration, beside _SMALL.
    """

    name: str
    config: str
    model: str
    options: dict[str, Any] = field(default_factory=dict)


def _decoder(name: str, stem: str, **options: Any) -> Decoder:
    return Decoder(name, f"{stem}Config", f"{stem}ForCausalLM", options)


DECODERS = (
    _decoder("llama", "Llama", **_GROUPED),
    _decoder("qwen2", "Qwen2", **_GROUPED),
    _decoder("qwen3", "Qwen3", **_GROUPED, head_dim=16),
    _decoder("smollm3", "SmolLM3", **_GROUPED, no_rope_layers=[1, 0]),
    _decoder("phi3", "Phi3", **_GROUPED, partial_rotary_factor=0.5),
    _decoder("mistral", "Mistral", **_GROUPED, **_LOCAL),
    _decoder(
        "granite",
        "Granite",
        **_GROUPED,
        embedding_multiplier=3.0,
        logits_scaling=2.0,
        residual_multiplier=0.5,
        attention_multiplier=0.2,
    ),
    Decoder("gpt2", "GPT2Config", "GPT2LMHeadModel"),
    _decoder("gpt_neox", "GPTNeoX"),
    _decoder("opt", "OPT", ffn_dim=96, word_embed_proj_dim=32, init_std=0.15),
    _decoder("gemma", "Gemma", **_GEMMA),
    _decoder("gemma2", "Gemma2", **_GEMMA, **_LOCAL, query_pre_attn_scalar=16),
    Decoder(
        "gemma3_text",
        "Gemma3TextConfig",
        "Gemma3ForCausalLM",
        # With two layers, random ones write the same whatever they read.
        {
            **_GEMMA,
            **_LOCAL,
            "query_pre_attn_scalar": 16,
            "num_hidden_layers": 3,
        },
    ),
    _decoder("phi", "Phi"),
    _decoder(
        "lfm2",
        "Lfm2",
        **_GROUPED,
        num_hidden_layers=3,
        layer_types=["conv", "full_attention", "conv"],
        block_auto_adjust_ff_dim=False,
    ),
)
_ALIKE = ("qwen2", "mistral", "granite", "gpt_neox", "gemma", "phi")
"""An export takes seconds: what is much like another one runs with the slow tests."""
EACH_DECODER = [
    pytest.param(
        kind, id=kind.name, marks=pytest.mark.slow if kind.name in _ALIKE else ()
    )
    for kind in DECODERS
]


def make_decoder(kind: Decoder, folder: Path) -> Path:
    """Write a checkpoint of random weights with its tokenizer."""
    tokenizer = make_tokenizer()
    torch.manual_seed(0)
    config_class = getattr(transformers, kind.config)
    options = _SMALL | {"vocab_size": tokenizer.get_vocab_size()} | kind.options
    with quiet_transformers():
        config = config_class(**options)
        model: PreTrainedModel = getattr(transformers, kind.model)(config)
        model.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@dataclass(frozen=True)
class MadeDecoder:
    """A checkpoint and a bundle of it; nobody may change them."""

    model: Path
    bundle: Path


def made_decoder(make_once: MakeOnce, name: str, exact: bool = False) -> MadeDecoder:
    """A decoder of DECODERS with a bundle of int8 and fp32.

    Args:
        make_once: The fixture.
        name: Of the kind.
        exact: The bundle has fp32 alone, and so an exact token table.
    """
    kind = next(kind for kind in DECODERS if kind.name == name)

    def make(folder: Path) -> None:
        model = make_decoder(kind, folder / "model")
        precisions = ("fp32",) if exact else ("int8", "fp32")
        export_bundle(str(model), folder / "a.bundle", precisions)

    folder = make_once(f"{name}-exact" if exact else name, make)
    return MadeDecoder(folder / "model", folder / "a.bundle")


def made_exact(make_once: MakeOnce, source: Path) -> Path:
    """A bundle of fp32 alone of one of the real checkpoints."""

    def make(folder: Path) -> None:
        export_bundle(str(source), folder / "a.bundle", ("fp32",))

    return make_once(source.name, make) / "a.bundle"


def make_tokenizer() -> Tokenizer:
    """A byte-level BPE, trained on CORPUS, that begins every text with `<s>`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=_VOCAB,
        special_tokens=list(MARKS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)]
    )
    return tokenizer


def plain_model(folder: Path) -> Any:
    """The checkpoint with transformers' own attention, nothing of promptdial."""
    with quiet_transformers():
        config = transformers.AutoConfig.from_pretrained(folder)
        model: Any = transformers.AutoModelForCausalLM.from_pretrained(
            folder, config=copy.deepcopy(config), attn_implementation="eager"
        )
        return model.eval()


def plain_logits(model: Any, rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Logits [T, V] of embedding rows [T, H] in one sequence, by transformers."""
    with torch.no_grad():
        output = model(inputs_embeds=torch.tensor(rows[None]))
    return np.asarray(output.logits[0].numpy())


def label_likelihood(
    plain: Any, rows: Any, table: Any, tokens: Any, others: list[Any]
) -> float:
    """Log-likelihood of tokens after embedding rows [T, H], by transformers.

    Of an answer that is one of `others`: each step's probabilities are those of the
    tokens that one of them goes on with.
    """
    logits = torch.tensor(plain_logits(plain, np.concatenate([rows, table[tokens]])))
    total = 0.0
    for end, token in enumerate(tokens):
        alike = [other for other in others if other[:end] == tokens[:end]]
        allowed = sorted({other[end] for other in alike})
        logs = torch.log_softmax(logits[len(rows) - 1 + end, allowed].double(), -1)
        total += float(logs[allowed.index(token)])
    return total


def transformers_greedy(
    model: Any, rows: np.ndarray[Any, Any], count: int
) -> list[int]:
    """Greedy tokens after embedding rows [T, H], as `transformers.generate` gives them.

    Nothing ends it before `count` tokens but the checkpoint's own end tokens.
    """
    with quiet_transformers(), torch.no_grad():
        found = model.generate(
            inputs_embeds=torch.tensor(rows[None]),
            attention_mask=torch.ones(1, len(rows), dtype=torch.long),
            max_new_tokens=count,
            do_sample=False,
        )
    tokens: list[int] = found[0].tolist()
    return tokens
