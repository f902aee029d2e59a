"""Encoders of every architecture: random weights, and a tokenizer of their kind."""

import inspect
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer, UnigramTrainer, WordPieceTrainer
from transformers import PreTrainedModel

from promptdial.export.model import quiet_transformers

CORPUS = (
    "the film was good and the music was great but the book was dull",
    "wake me at seven in the morning and play the news from the station",
    "who wrote this book and where is the station that opens at three",
    "turn the red light on and the blue light off from two to five",
    "reading singing playing waking turning opened lighted films books stations",
    "neither the map nor the sign explained why the path ended at a locked gate",
)
BERT_MARKS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
ROBERTA_MARKS = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
_VOCAB = 400
_SMALL = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "max_position_embeddings": 66,
    # Larger than the usual 0.02, so that prompts and texts move the output.
    "initializer_range": 0.15,
}


@dataclass(frozen=True)
class Architecture:
    """One kind of encoder.

    Attributes:
        name: `model_type` of transformers, or a name for a variant of it.
        classes: Stem of transformers' classes: `Bert` for BertConfig and BertModel.
        tokenizer: `wordpiece`, `bpe` or `unigram`.
        marks: Special tokens, of ids 0 to 4.
        options: Of the configuration, beside _SMALL.
        attention: `one_way`, or `full` where it takes no prefix.
    """

    name: str
    classes: str
    tokenizer: str
    marks: tuple[str, ...]
    options: dict[str, Any] = field(default_factory=dict)
    attention: str = "one_way"


_ROBERTA = {"type_vocab_size": 1, "pad_token_id": 1}
_RELATIVE = {
    "relative_attention": True,
    "pos_att_type": ["c2p", "p2c"],
    "position_biased_input": False,
    "type_vocab_size": 0,
}
ARCHITECTURES = (
    Architecture("bert", "Bert", "wordpiece", BERT_MARKS),
    Architecture(
        "distilbert",
        "DistilBert",
        "wordpiece",
        BERT_MARKS,
        {"dim": 64, "n_layers": 2, "n_heads": 4, "hidden_dim": 128},
    ),
    Architecture("roberta", "Roberta", "bpe", ROBERTA_MARKS, _ROBERTA),
    Architecture("xlm-roberta", "XLMRoberta", "unigram", ROBERTA_MARKS, _ROBERTA),
    Architecture("electra", "Electra", "wordpiece", BERT_MARKS, {"embedding_size": 64}),
    Architecture(
        "electra-small", "Electra", "wordpiece", BERT_MARKS, {"embedding_size": 32}
    ),
    Architecture(
        "modernbert",
        "ModernBert",
        "bpe",
        BERT_MARKS,
        {
            "num_hidden_layers": 3,
            "local_attention": 8,
            "global_attn_every_n_layers": 2,
            "initializer_cutoff_factor": 3.0,
            "pad_token_id": 0,
            "cls_token_id": 2,
            "sep_token_id": 3,
            "bos_token_id": 2,
            "eos_token_id": 3,
        },
    ),
    Architecture(
        "t5",
        "T5",
        "unigram",
        ("<pad>", "<unk>", "<s>", "</s>", "<mask>"),
        {
            "d_model": 64,
            "d_kv": 24,
            "d_ff": 128,
            "num_layers": 2,
            "num_heads": 4,
            "relative_attention_num_buckets": 8,
            "relative_attention_max_distance": 12,
            "feed_forward_proj": "gated-gelu",
            "initializer_factor": 1.0,
        },
    ),
    Architecture(
        "mpnet",
        "MPNet",
        "wordpiece",
        ("<s>", "<pad>", "</s>", "[UNK]", "<mask>"),
        {"pad_token_id": 1},
        attention="full",
    ),
    Architecture(
        "deberta",
        "Deberta",
        "bpe",
        BERT_MARKS,
        {**_RELATIVE, "max_relative_positions": 16},
        attention="full",
    ),
    Architecture(
        "deberta-v2",
        "DebertaV2",
        "unigram",
        BERT_MARKS,
        # As DeBERTa-v3 has it.
        {
            **_RELATIVE,
            "position_buckets": 8,
            "share_att_key": True,
            "norm_rel_ebd": "layer_norm",
        },
        attention="full",
    ),
)
_ALIKE = ("distilbert", "xlm-roberta", "electra", "deberta")
"""An export takes seconds: what is much like another one runs with the slow tests."""
EACH_ARCHITECTURE = [
    pytest.param(
        kind, id=kind.name, marks=pytest.mark.slow if kind.name in _ALIKE else ()
    )
    for kind in ARCHITECTURES
]


def class_of(kind: Architecture) -> Any:
    """The class of transformers; of T5 its encoder's."""
    half = getattr(transformers, f"{kind.classes}EncoderModel", None)
    return half or getattr(transformers, f"{kind.classes}Model")


def make_model(kind: Architecture, folder: Path) -> Path:
    """Write a checkpoint of random weights with its tokenizer."""
    tokenizer = make_tokenizer(kind)
    torch.manual_seed(0)
    config_class = getattr(transformers, f"{kind.classes}Config")
    model_class = class_of(kind)
    options = _SMALL | {"vocab_size": tokenizer.get_vocab_size()} | kind.options
    takes = inspect.signature(model_class.__init__).parameters
    pooling = {"add_pooling_layer": False} if "add_pooling_layer" in takes else {}
    with quiet_transformers():
        model: PreTrainedModel = model_class(config_class(**options), **pooling)
        model.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def make_tokenizer(kind: Architecture) -> Tokenizer:
    """A tokenizer of the architecture's kind, trained on CORPUS."""
    marks = list(kind.marks)
    unknown = next(mark for mark in marks if "unk" in mark.lower())
    first, last = (marks[0], marks[2]) if marks[0] == "<s>" else (marks[2], marks[3])
    trainer: BpeTrainer | UnigramTrainer | WordPieceTrainer
    if kind.tokenizer == "bpe":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = BpeTrainer(
            vocab_size=_VOCAB,
            special_tokens=marks,
            initial_alphabet=alphabet,
            show_progress=False,
        )
    elif kind.tokenizer == "unigram":
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer = UnigramTrainer(
            vocab_size=_VOCAB,
            special_tokens=marks,
            unk_token=unknown,
            show_progress=False,
        )
    else:
        tokenizer = Tokenizer(models.WordPiece(unk_token=unknown))
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer = WordPieceTrainer(
            vocab_size=_VOCAB, special_tokens=marks, show_progress=False
        )
    tokenizer.train_from_iterator(CORPUS, trainer)
    ids = [(mark, tokenizer.token_to_id(mark)) for mark in (first, last)]
    tokenizer.post_processor = TemplateProcessing(
        single=f"{first} $A {last}",
        pair=f"{first} $A {last} $B:1 {last}:1",
        special_tokens=ids,
    )
    return tokenizer
