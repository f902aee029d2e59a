"""Packs: ordinary blobs come out, the same everywhere; bad packs are refused."""

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bad_packs import PACK_CASES, PackCase, good, stored
from numpy.typing import NDArray
from packs import TASKS, metas_of, pack_for, random_pack

from promptdial.prompts.blob import decode, encode, read_blob
from promptdial.prompts.errors import EXIT_CODES, BlobInvalid, FileFailed, PromptError
from promptdial.prompts.metadata import Golden
from promptdial.prompts.pack import (
    PACK_SUFFIX,
    Factor,
    TaskHead,
    decode_pack,
    encode_pack,
    make_pack,
    read_pack,
    write_pack,
)
from promptdial.runtime import Engine
from promptdial.runtime.cli import main
from promptdial.runtime.manifest import Manifest, from_json

Captured = pytest.CaptureFixture[str]
Floats = NDArray[np.float32]
PINNED = [
    "bf188816f38bb0c4",
    "68bc50b72cfb2a30",
    "50197e1d687e13b6",
    "77114b69e4eab5ae",
    "601cc841d255fc13",
    "e247ef88aaeaaaf0",
    "245a83e29f10a897",
    "3f5b90a3cac8bb84",
    "65ceab36d548c686",
    "e2a7e2954670dd9f",
    "97b150c5289c5984",
    "65ceab36d548c686",
]
"""Beginnings of the digests of a pack and its two blobs: deep, soft, reading levels,
and with class vectors in int4."""
TEXT = "the film was great"


@pytest.fixture(scope="module")
def manifest(tiny_bundle: Path) -> Manifest:
    return from_json((tiny_bundle / "manifest.json").read_text())


@pytest.mark.parametrize("deep", [True, False], ids=["deep", "soft"])
def test_a_pack_written_and_read_is_the_same(tmp_path: Path, deep: bool) -> None:
    pack = good(deep)
    path = tmp_path / f"all{PACK_SUFFIX}"
    write_pack(path, pack)
    again = read_pack(path)
    assert path.stat().st_size == pack.size
    assert again.digest == pack.digest
    assert again.digest == f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"
    assert again.tasks == tuple(TASKS)
    assert [b.digest for b in again.blobs] == [b.digest for b in pack.blobs]
    assert [b.meta for b in again.blobs] == metas_of()


def steps(*shape: int, over: int = 1, plus: int = 0) -> Floats:
    """Numbers that need no generator: -1 to 1 in an order that fits no axis."""
    numbers = (np.arange(int(np.prod(shape))) * 7 % 17 - 8) / 8
    found = numbers.astype(np.float32) / np.float32(over) + np.float32(plus)
    return np.asarray(found, np.float32).reshape(shape)


def test_the_bytes_of_a_pack_and_its_blobs_are_pinned() -> None:
    """A promise to every device and every later version."""
    metas = metas_of({"colour": "classification", "find": "embedding"})
    heads = [TaskHead(steps(3, 16), steps(3)), None]
    values = Factor(steps(2, 2, 3, 3, over=3), steps(2, 2, 16, over=7, plus=1))
    past = (steps(2, 2, 3, 8), steps(2, 2, 3, 8, over=3))
    deep = make_pack(metas, past=past, factors={"value": values}, heads=heads)
    rows = Factor(steps(2, 1, 3, 3, over=3), steps(2, 1, 16, over=7, plus=1))
    soft = make_pack(
        metas,
        embeddings=steps(3, 16, over=3),
        factors={"prompt_embeddings": rows},
        heads=heads,
    )
    reading = make_pack(
        metas,
        past=past,
        factors={},
        heads=[TaskHead(steps(3, 32), steps(3), steps(2, 3), steps(2, 16)), None],
    )
    halves = make_pack(metas, past=past, factors={}, heads=heads, vector_bits=4)
    found: list[str] = []
    for pack in (deep, soft, reading, halves):
        found += [pack.digest, *(blob.digest for blob in pack.blobs)]
    assert [digest.removeprefix("sha256:")[:16] for digest in found] == PINNED


def test_a_blob_of_a_pack_is_the_product() -> None:
    """Within what int8 rounds, of keys and values."""
    pack = random_pack(metas_of(), parts=("value", "key"))
    for index, blob in enumerate(pack.blobs):
        for layer, pair in enumerate(blob.past_key_values):
            for part, got in zip(("key", "value"), pair, strict=True):
                wanted = product(pack.tensors, part, index, layer)
                assert got.shape == (2, 4, 8)
                largest = np.abs(wanted).max(axis=1)[:, None]
                rows = got.transpose(1, 0, 2).reshape(4, -1)
                assert (np.abs(rows - wanted) <= 0.51 * largest / 127 + 1e-4).all()


def product(
    tensors: Mapping[str, NDArray[Any]], part: str, index: int, layer: int
) -> NDArray[np.float64]:
    """[P, K*D] in float64, straight from the formula."""
    shared = tensors[f"shared.{part}"][layer].astype(np.float64)
    shared *= tensors[f"shared.{part}_scale"][layer].astype(np.float64)[None, :, None]
    width, mix = tensors[f"{part}.width"], tensors[f"{part}.mix"]
    widths = width[index, layer] * tensors[f"{part}.width_scale"][index, layer].item()
    scales = tensors[f"{part}.mix_scale"][index, layer].astype(np.float64)
    rows = shared.transpose(1, 0, 2).reshape(shared.shape[1], -1)
    found = (mix[index, layer] * scales[:, None]) @ rows * widths
    return np.asarray(found, np.float64)


def test_keys_without_factors_are_the_shared_ones_bit_for_bit() -> None:
    pack = good()
    for blob in pack.blobs:
        for layer in range(2):
            name = f"past_key_values.{layer}.key"
            assert (blob.tensors[name] == pack.tensors["shared.key"][layer]).all()


def test_class_vectors_are_the_tasks_own() -> None:
    pack = good()
    begin = 0
    for blob in pack.blobs:
        count = len(blob.meta.labels)
        if not count:
            assert blob.head_weight is None
            continue
        stored_rows = pack.tensors["head.weight"][begin : begin + count]
        assert (blob.tensors["head.weight"] == stored_rows).all()
        begin += count
    assert begin == len(pack.tensors["head.weight"]) == 8


def test_class_vectors_in_int4_take_half_the_bytes() -> None:
    """A task's blob has the very numbers in int8, and no more of them than int4 has."""
    whole, half = random_pack(metas_of()), random_pack(metas_of(), vector_bits=4)
    packed = half.tensors["head.weight_int4"]
    assert packed.nbytes * 2 == whole.tensors["head.weight"].nbytes
    assert "head.weight" not in half.tensors
    begin = 0
    for exact, blob in zip(whole.blobs, half.blobs, strict=True):
        if exact.head_weight is None:
            assert blob.head_weight is None
            continue
        assert blob.head_weight is not None
        scale = blob.tensors["head.weight_scale"][:, None]
        levels = blob.tensors["head.weight"]
        assert np.abs(levels).max() == 7 and levels.dtype == np.int8
        assert (blob.head_weight == levels * scale).all()
        # Half a step of int4, and half a step of int8 in what it is compared with.
        assert (np.abs(blob.head_weight - exact.head_weight) <= 0.56 * scale).all()
        rows = packed[begin : begin + len(levels)].astype(np.int64)
        assert ((rows & 15) == (levels[:, 0::2] & 15)).all()
        assert ((rows >> 4) == levels[:, 1::2]).all()
        begin += len(levels)
    assert begin == len(packed)
    assert encode_pack(metas_of(), half.tensors) == stored(half)


def test_class_vectors_that_fill_no_bytes_are_refused() -> None:
    metas = metas_of({"colour": "classification"})
    past = (steps(2, 2, 3, 8), steps(2, 2, 3, 8))
    odd = TaskHead(steps(3, 15), steps(3))
    with pytest.raises(BlobInvalid, match="width 15 in int4"):
        make_pack(metas, past=past, factors={}, heads=[odd], vector_bits=4)
    none = metas_of({"find": "embedding"})
    with pytest.raises(BlobInvalid, match="3 bits, allowed: 4, 8"):
        make_pack(none, past=past, factors={}, heads=[None], vector_bits=3)


def test_mixes_and_queries_are_the_tasks_own() -> None:
    """Of four tasks one has no class vectors; another one reads each word by itself."""
    pack = random_pack(metas_of(), levels=2)
    places = {
        "colour": (0, 0),
        "same": (1, 1),
        "spans": (2, None),
        "find": (None, None),
    }
    tensors = pack.tensors
    assert tensors["head.mix"].shape == (3, 2, 3)
    assert tensors["head.query"].shape == (2, 2, 16)
    scale = tensors["head.query_scale"].astype(np.float32)[..., None]
    queries = (tensors["head.query"].astype(np.float32) * scale).astype(np.float16)
    for blob in pack.blobs:
        mix, query = places[blob.meta.task]
        assert ("head.mix" in blob.tensors) == (mix is not None)
        assert ("head.query" in blob.tensors) == (query is not None)
        if mix is not None:
            assert (blob.tensors["head.mix"] == tensors["head.mix"][mix]).all()
        if query is not None:
            assert (blob.tensors["head.query"] == queries[query]).all()


def test_heads_that_differ_are_refused() -> None:
    metas = metas_of()
    colour, same, spans = (
        TaskHead(steps(len(meta.labels), 32), steps(len(meta.labels)), steps(2, 3))
        for meta in metas[:3]
    )
    query = steps(2, 16)
    asking = replace(same, query=query)
    usual: dict[str, TaskHead | None] = {
        "colour": replace(colour, query=query),
        "same": asking,
        "spans": spans,
        "find": None,
    }

    def made(**changes: TaskHead | None) -> None:
        past = (steps(2, 2, 3, 8), steps(2, 2, 3, 8))
        heads = list({**usual, **changes}.values())
        make_pack(metas, past=past, factors={}, heads=heads)

    made()
    for changes, message in (
        ({"colour": colour}, "queries of 2 shapes"),
        ({"spans": replace(spans, query=query)}, "queries of 'spans', which reads"),
        ({"same": replace(asking, mix=None)}, "class vectors and mixes of 2 shapes"),
        ({"same": replace(asking, weight=steps(2, 48))}, "mixes of 2 shapes"),
        ({"same": None}, "0 class vectors of 'same', expected 2"),
        ({"find": colour}, "3 class vectors of 'find', expected 0"),
    ):
        with pytest.raises(BlobInvalid, match=message):
            made(**changes)


def test_what_all_tasks_share_is_said_once() -> None:
    metas = [
        replace(
            meta,
            template={"before": f"{meta.task}: "},
            golden=(Golden("good", None, (2, 5, 3), "x", 0.75),),
        )
        for meta in metas_of()
    ]
    data = encode_pack(metas, good().tensors)
    assert data.count(b"ckpt1:") == 1
    assert [blob.meta for blob in decode_pack(data).blobs] == metas


def test_true_and_one_are_not_alike() -> None:
    metas = [
        replace(meta, training={"option": value})
        for meta, value in zip(metas_of(), (1, True, 1.0, True), strict=True)
    ]
    blobs = decode_pack(encode_pack(metas, good().tensors)).blobs
    options = [blob.meta.training["option"] for blob in blobs]
    assert [type(option) for option in options] == [int, bool, float, bool]


def test_one_task_alone_is_a_pack() -> None:
    metas = metas_of({"colour": "classification"})
    assert random_pack(metas).tasks == ("colour",)


@pytest.mark.parametrize("case", PACK_CASES, ids=lambda case: case.name)
def test_bad_packs(case: PackCase, tmp_path: Path, capfd: Captured) -> None:
    path = tmp_path / f"all{PACK_SUFFIX}"
    path.write_bytes(case.make())
    assert main(["inspect", str(path)]) == EXIT_CODES[case.code]
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith(f"promptdial: {case.code}: ") and err.count("\n") == 1, err
    for part in case.says:
        assert part in err, err
    hint = err.rpartition("; ")[2]
    assert len(hint) > 8, err
    assert main(["unpack", str(path), str(tmp_path / "out")]) == EXIT_CODES[case.code]
    assert not (tmp_path / "out").exists()


def test_every_byte_of_a_pack_may_be_wrong() -> None:
    """No foreign error, and no blob that would be refused alone."""
    data = bytearray(stored(good()))
    random = np.random.default_rng(0)
    taken = 0
    for place in random.integers(0, len(data), 400):
        before, data[place] = data[place], int(random.integers(256))
        try:
            pack = decode_pack(bytes(data))
        except PromptError:
            pass
        else:
            taken += 1
            for blob in pack.blobs:
                decode(encode(blob.meta, blob.tensors))
        data[place] = before
    assert 0 < taken < 400


def test_names_of_packs(tmp_path: Path) -> None:
    for name in ("all.safetensors", PACK_SUFFIX, "all.pack"):
        with pytest.raises(BlobInvalid, match=r"name it <name>\.pack\.safetensors"):
            write_pack(tmp_path / name, good())
    with pytest.raises(FileFailed):
        read_pack(tmp_path / f"none{PACK_SUFFIX}")


@pytest.mark.parametrize(
    ("deep", "levels"),
    [(True, 0), (False, 0), (True, 2)],
    ids=["deep", "soft", "levels"],
)
def test_the_engine_answers_as_with_the_unpacked_blobs(
    tiny_bundle: Path, manifest: Manifest, tmp_path: Path, deep: bool, levels: int
) -> None:
    packed, alone = tmp_path / "packed", tmp_path / "alone"
    packed.mkdir()
    path = packed / f"all{PACK_SUFFIX}"
    write_pack(path, pack_for(manifest, deep, levels=levels))
    assert main(["unpack", str(path), str(alone)]) == 0
    digests = {b.meta.task: b.digest for b in read_pack(path).blobs}
    for task, digest in digests.items():
        assert read_blob(alone / f"{task}.safetensors").digest == digest
    with (
        Engine(tiny_bundle, prompts=packed, threads=1) as one,
        Engine(tiny_bundle, prompts=alone, threads=1) as two,
    ):
        assert one.tasks() == two.tasks() == sorted(TASKS)
        assert one.classify("colour", TEXT) == two.classify("colour", TEXT)
        assert one.tag("spans", TEXT) == two.tag("spans", TEXT)
        assert (one.embed("find", TEXT) == two.embed("find", TEXT)).all()
        pair = {"text_pair": "a good film"}
        assert one.classify("same", TEXT, **pair) == two.classify("same", TEXT, **pair)


@pytest.mark.parametrize("deep", [True, False], ids=["deep", "soft"])
def test_factors_matter(tiny_bundle: Path, manifest: Manifest, deep: bool) -> None:
    """Two tasks that differ in their factors alone."""
    tasks = {"find": "embedding", "search": "embedding"}
    metas = metas_of(tasks, manifest.base, manifest.attention)
    pack = random_pack(metas, manifest.dims, deep)
    with Engine(tiny_bundle, threads=1, variant="fp32") as engine:
        for blob in pack.blobs:
            engine.load(blob)
        one, two = engine.embed("find", TEXT), engine.embed("search", TEXT)
        bare = engine.embed(None, TEXT)
    assert np.abs(one - two).max() > 1e-3
    assert np.abs(one - bare).max() > 1e-3


def test_inspect_shows_a_pack(tmp_path: Path, capfd: Captured) -> None:
    path = tmp_path / f"all{PACK_SUFFIX}"
    write_pack(path, good())
    assert main(["inspect", str(path), "--json"]) == 0
    shown = capfd.readouterr().out
    for part in ('"type": "pack"', '"value.width": "int8 [4, 2, 16]"', *TASKS):
        assert part in shown


def test_unpack_keeps_what_is_there(tmp_path: Path, capfd: Captured) -> None:
    path = tmp_path / f"all{PACK_SUFFIX}"
    write_pack(path, good())
    out = tmp_path / "out"
    assert main(["unpack", str(path), str(out)]) == 0
    assert main(["unpack", str(path), str(out)]) == 0  # the same once more
    (out / "spans.safetensors").write_bytes(b"mine")
    (out / "colour.safetensors").unlink()
    capfd.readouterr()
    assert main(["unpack", str(path), str(out)]) == EXIT_CODES["USAGE"]
    assert "spans.safetensors exists" in capfd.readouterr().err
    assert not (out / "colour.safetensors").exists()
