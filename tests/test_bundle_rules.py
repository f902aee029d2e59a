"""Rules of graph and tokenizer files: what is known stays allowed, nothing crashes."""

import json
import shutil
import time
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from conftest import tiny_tokenizer_json
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, pre_tokenizers

from promptdial.export.errors import Unsupported
from promptdial.export.model import load_base
from promptdial.export.source import resolve
from promptdial.runtime.graph_rules import GraphInvalid, check_graph
from promptdial.runtime.text import TextEncoder, TextInvalid
from promptdial.runtime.tokenizer_rules import (
    PATTERNS,
    TokenizerRefused,
    check_tokenizer,
)

# As their makers publish them, written here once more.
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+"
    r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LENGTH = 100_000
REPEATED = ("a", " ", "\n", " \n", "!", "1", "\t", "A", "aA", "\u4e2d", "'s", "a ", "/")


def tokenizer(**changes: Any) -> str:
    return json.dumps({**json.loads(tiny_tokenizer_json()), **changes})


def split(pattern: str) -> dict[str, Any]:
    return {
        "type": "Split",
        "pattern": {"Regex": pattern},
        "behavior": "Isolated",
        "invert": False,
    }


def test_patterns_of_known_families_are_allowed() -> None:
    from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

    for pattern in (GPT2, LLAMA3, O200K, PRETOKENIZE_REGEX):
        encoder = TextEncoder(tokenizer(pre_tokenizer=split(pattern)), 64)
        assert len(encoder.encode("wake me at seven")) > 2


def test_byte_level_with_its_own_pattern_is_allowed() -> None:
    """RoBERTa, ModernBERT and GPT-2 say `use_regex` and write no pattern."""
    byte_level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": True,
    }
    text = tokenizer(normalizer={"type": "NFC"}, pre_tokenizer=byte_level)
    assert len(TextEncoder(text, 64).encode("wake me")) > 2


@pytest.mark.parametrize("pattern", sorted(PATTERNS))
def test_allowed_patterns_take_every_long_text(pattern: str) -> None:
    """A pattern that backtracks over a run ends in a panic or takes minutes here."""
    splitter = pre_tokenizers.Split(Regex(pattern), "isolated")
    for piece in REPEATED:
        for end in ("", "x", "!", "\u2028"):
            text = piece * (LENGTH // len(piece)) + end
            started = time.perf_counter()
            splitter.pre_tokenize_str(text)
            assert time.perf_counter() - started < 10


def test_the_tokenizers_of_models_are_allowed(minilm_folder: Path) -> None:
    check_tokenizer((minilm_folder / "tokenizer.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"normalizer": [{"Regex": "(a+)+$"}, "b"]}, "normalizer is 'None'"),
        ({"extra": {"Regex": "(a+)+$"}}, "may run away"),
        ({"extra": {"Regex": [r"\s+"]}}, "may run away"),
        ({"decoder": {"type": ["Replace"]}}, "decoder is"),
        ({"pre_tokenizer": {"type": "Sequence", "pretokenizers": 1}}, "is no list"),
        ({"model": {"type": "Evil"}}, "model is not one of"),
        ({"normalizer": {"type": "Prepend", "prepend": "aa"}}, "Prepend writes 'aa'"),
        (
            {
                "normalizer": {
                    "type": "Replace",
                    "pattern": {"String": ""},
                    "content": "",
                }
            },
            "is empty",
        ),
    ],
)
def test_other_tokenizers_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(TokenizerRefused, match=message):
        check_tokenizer(tokenizer(**changes))


def test_a_key_given_twice_is_refused() -> None:
    """The two readers might each see another one."""
    text = tokenizer()[:-1] + ', "pre_tokenizer": null}'
    with pytest.raises(TokenizerRefused, match="duplicate name 'pre_tokenizer'"):
        check_tokenizer(text)


@pytest.mark.parametrize("table", ["AAAA", "BAAAAP////8AAAAA"])
def test_a_panic_of_the_library_is_an_error(table: str) -> None:
    """One is found when the file is read, the other when the table is first used."""
    charsmap = {"type": "Precompiled", "precompiled_charsmap": table}
    with pytest.raises(TextInvalid, match=r"^tokenizer\.json: "):
        TextEncoder(tokenizer(normalizer=charsmap), 64)


def test_export_refuses_what_no_device_would_open(
    tiny_model: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    text = tokenizer(pre_tokenizer=split("(a+)+$"))
    (folder / "tokenizer.json").write_text(text, encoding="utf-8")
    with pytest.raises(Unsupported, match="may run away"):
        load_base(resolve(str(folder)), torch.device("cpu"))


def test_the_known_runaway_does_run_away() -> None:
    """Else the rule above would guard against nothing."""
    body = tokenizer(normalizer=None, pre_tokenizer=split("(a+)+$"))
    with pytest.raises(BaseException, match="retry-limit-in-match over") as caught:
        Tokenizer.from_str(body).encode("a" * 40 + "!")
    assert not isinstance(caught.value, Exception)


def damaged_graph(folder: Path, change: Any) -> Path:
    model = onnx.load(folder / "model_int8.onnx", load_external_data=False)
    change(model)
    path = folder / "changed.onnx"
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.functions.add(name="f"), "functions of its own"),
        (lambda m: m.training_info.add(), "training graphs"),
        (lambda m: m.graph.sparse_initializer.add(), "sparse initializer"),
        (lambda m: m.graph.initializer.add(dims=[-1]), "has dimensions"),
        (lambda m: m.graph.initializer.add(data_location=1), r"lies in \[\]"),
        (lambda m: m.ClearField("graph"), "0 graphs"),
    ],
)
def test_rules_of_graphs(
    tiny_bundle: Path, tmp_path: Path, change: Any, message: str
) -> None:
    (tmp_path / "model_int8.onnx").write_bytes(
        (tiny_bundle / "model_int8.onnx").read_bytes()
    )
    size = (tiny_bundle / "model_int8.onnx.data").stat().st_size
    with pytest.raises(GraphInvalid, match=message):
        check_graph(damaged_graph(tmp_path, change), {"model_int8.onnx.data": size})


def test_a_node_deep_inside_is_looked_at(tmp_path: Path) -> None:
    inner = onnx.helper.make_graph(
        [onnx.helper.make_node("Shape", ["x"], ["y"], domain="evil.ops")], "in", [], []
    )
    for _ in range(3):
        node = onnx.helper.make_node("If", ["c"], ["y"], then_branch=inner)
        inner = onnx.helper.make_graph([node], "out", [], [])
    path = tmp_path / "deep.onnx"
    path.write_bytes(onnx.helper.make_model(inner).SerializeToString())
    with pytest.raises(GraphInvalid, match=r"domain 'evil\.ops'"):
        check_graph(path, {})


@settings(max_examples=200, deadline=None, derandomize=True)
@given(data=st.data())
def test_a_damaged_graph_is_refused_or_taken(
    tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    whole = bytearray((tiny_bundle / "model_int8.onnx").read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(whole) - 1))
        whole[place] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "damaged.onnx"
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole)))])
    try:
        check_graph(path, {"model_int8.onnx.data": 1 << 20})
    except GraphInvalid as error:
        assert "\n" not in str(error)
