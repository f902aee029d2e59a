"""The manifest: what a damaged or hostile one says, such as what fuzzing found."""

import json
from pathlib import Path
from typing import Any

import pytest

from promptdial.prompts.errors import DataInvalid
from promptdial.runtime.errors import BundleInvalid
from promptdial.runtime.manifest import ManifestInvalid, from_json
from promptdial.runtime.rows import parse_rows
from promptdial.runtime.table import TokenTable


def bucket(prefix: int, text: int, file: str = "model_int8.onnx") -> dict[str, Any]:
    return {"file": file, "prefix": prefix, "text": text}


@pytest.fixture(scope="module")
def good(tiny_bundle: Path) -> str:
    return (tiny_bundle / "manifest.json").read_text()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ranges": {"x": []}}, "a range is '[]', not two numbers"),
        ({"ranges": {"x": ["avx2", 1]}}, "not two numbers"),
        ({"ranges": {"x": [0, 10**400]}}, "not two numbers"),
        ({"ranges": {"x": [0, 1, 2]}}, "not two numbers"),
        ({"files": "model_int8.onnx"}, "files is 'model_int8.onnx', not a list"),
        ({"cpu_features": [1]}, "cpu_features is '[1]', not a list of texts"),
        ({"min_onnxruntime": "9" * 5000}, "min_onnxruntime '9999"),
        ({"min_onnxruntime": ""}, "min_onnxruntime '', not like 1.24"),
        ({"custom_ops_library": "x.so"}, "custom_ops_library 'x.so', allowed: none"),
        ({"scheme": "\ud800"}, "a lone surrogate"),
        ({"buckets": 1}, "buckets is '1', not a list"),
        ({"buckets": [bucket(0, 8)]}, "1 buckets, 1 without a prefix"),
        ({"buckets": [bucket(4, 8), bucket(4, 9)]}, "2 buckets, 0 without a prefix"),
        ({"buckets": [bucket(0, 0)]}, "is of 0 and 0 rows"),
        ({"buckets": [bucket(2**17, 8)]}, "is of 131072 and 8 rows"),
        ({"buckets": [bucket(0, -1)]}, "text is -1, not a count"),
        ({"buckets": [bucket(0, 8, "x.onnx")]}, "a bucket names 'x.onnx'"),
        ({"buckets": [{}]}, "missing or misshapen key"),
    ],
)
def test_a_graph_of_wrong_values_is_refused(
    good: str, changes: dict[str, Any], message: str
) -> None:
    body = json.loads(good)
    body["graphs"]["int8"].update(changes)
    with pytest.raises(ManifestInvalid) as caught:
        from_json(json.dumps(body))
    assert message in str(caught.value)


def test_graphs_of_a_decoder_have_one_window(good: str) -> None:
    body = json.loads(good)
    body["family"] = "decoder"
    body["graphs"]["int8"]["buckets"] = [bucket(64, 1), bucket(64, 8)]
    found = from_json(json.dumps(body)).graphs["int8"].text_buckets
    assert [(one.prefix, one.text) for one in found] == [(64, 1), (64, 8)]
    for wrong in ([bucket(64, 1), bucket(32, 8)], [bucket(0, 8)]):
        body["graphs"]["int8"]["buckets"] = wrong
        with pytest.raises(ManifestInvalid, match="allowed of a decoder: one"):
            from_json(json.dumps(body))


def test_bundles_of_before_fixed_sizes_are_read(good: str) -> None:
    body = json.loads(good)
    assert body["graphs"]["int8"].pop("buckets") == []
    variant = from_json(json.dumps(body)).graphs["int8"]
    assert variant.buckets == () and variant.graphs == ("model_int8.onnx",)


def test_bundles_of_before_tied_tables_were_counted_are_read(good: str) -> None:
    body = json.loads(good)
    assert body.pop("tied_table_bytes") == 0
    assert from_json(json.dumps(body)).tied_table_bytes == 0
    for wrong in (-1, "81920", 1.5, True, 2**40):
        with pytest.raises(ManifestInvalid, match="tied_table_bytes is"):
            from_json(json.dumps({**body, "tied_table_bytes": wrong}))


@pytest.mark.parametrize("name", ["a\0b", "a\nb", ""])
def test_file_names_are_printable(good: str, name: str) -> None:
    body = json.loads(good)
    body["files"][name] = {"sha256": "0" * 64, "bytes": 1}
    with pytest.raises(ManifestInvalid, match="file name"):
        from_json(json.dumps(body))


def test_a_key_given_twice_is_refused(good: str) -> None:
    with pytest.raises(ManifestInvalid, match="duplicate name 'family'"):
        from_json('{"family": "decoder",' + good.lstrip()[1:])


def test_a_table_whose_header_nests_deep_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "embed_tokens.safetensors"
    path.write_bytes((60_000).to_bytes(8, "little") + b"[" * 60_000)
    with pytest.raises(BundleInvalid, match=r"embed_tokens\.safetensors: "):
        TokenTable(path, 8, 8)


@pytest.mark.parametrize(
    "line",
    ['{"text": "a", "label": "\\ud800"}', '{"tokens": ["a"], "tags": ["\\ud800"]}'],
)
def test_labels_can_be_printed(line: str) -> None:
    with pytest.raises(DataInvalid, match="surrogates not allowed"):
        parse_rows([line], "rows.jsonl")
