"""Packs that break one rule each, and what a user is told."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from bad_blobs import joined, split
from blobs import normal
from packs import metas_of, random_pack

from promptdial.prompts.pack import MAX_PACK_BYTES, Pack, encode_pack

Header = dict[str, Any]


@dataclass(frozen=True)
class PackCase:
    """One bad pack.

    Attributes:
        name: What it is.
        code: The error's.
        says: What the line must hold: the value seen, the value allowed.
        make: Its bytes.
    """

    name: str
    code: str
    says: tuple[str, ...]
    make: Callable[[], bytes]


def good(deep: bool = True) -> Pack:
    """The pack that all others are made from."""
    return random_pack(metas_of(), deep=deep)


def stored(pack: Pack) -> bytes:
    return encode_pack([blob.meta for blob in pack.blobs], pack.tensors)


def _tensors(**arrays: Any) -> Callable[[], bytes]:
    """Tensors added or replaced (`__` for a dot), None to drop one."""
    return _tensors_of(good, arrays)


def _tensors_of(
    source: Callable[[], Pack], arrays: Mapping[str, Any]
) -> Callable[[], bytes]:
    def make() -> bytes:
        pack = source()
        found = {**pack.tensors}
        for key, array in arrays.items():
            name = key.replace("__", ".")
            found.pop(name, None)
            if array is not None:
                found[name] = array
        return encode_pack([blob.meta for blob in pack.blobs], found)

    return make


def _levels(**arrays: Any) -> Callable[[], bytes]:
    """As `_tensors`, of a pack whose class vectors read two levels with queries."""
    return _tensors_of(lambda: random_pack(metas_of(), levels=2), arrays)


def _int4(halves: Any, scale: Any = None) -> Callable[[], bytes]:
    """A pack whose class vectors are in int4."""
    return _tensors(
        head__weight=None,
        head__weight_scale=None,
        head__weight_int4=halves,
        head__weight_int4_scale=scale,
    )


def _strings(change: Callable[[dict[str, str]], object]) -> Callable[[], bytes]:
    def make() -> bytes:
        text, body = split(stored(good()))
        header: Header = json.loads(text)
        change(header["__metadata__"])
        return joined(json.dumps(header), body)

    return make


def _tasks(change: Callable[[list[Any]], object]) -> Callable[[], bytes]:
    """The list of the tasks' metadata with something changed."""

    def changed(strings: dict[str, str]) -> None:
        tasks = json.loads(strings["tasks"])
        change(tasks)
        strings["tasks"] = json.dumps(tasks)

    return _strings(changed)


def _common(**values: Any) -> Callable[[], bytes]:
    def changed(strings: dict[str, str]) -> None:
        strings["common"] = json.dumps({**json.loads(strings["common"]), **values})

    return _strings(changed)


def _named(task: str) -> Callable[[], bytes]:
    return _tasks(lambda tasks: tasks[1].update(task=task))


def _two_labels_short() -> bytes:
    pack = good()
    metas = [blob.meta for blob in pack.blobs]
    metas[0] = replace(metas[0], labels=("red",))
    return encode_pack(metas, pack.tensors)


def _long_blob() -> bytes:
    """Small as a pack, since keys are one byte each and have no factors of their own.

    Every layer of a blob has a header entry of its own: hundreds of layers fit in the
    pack's few tensors, and not in a blob.
    """
    metas = metas_of()
    pack = random_pack(metas, length=1)
    layers = 400
    tensors = {**pack.tensors}
    for part in ("key", "value"):
        tensors[f"shared.{part}"] = np.ones((layers, 1, 1, 1), np.int8)
        tensors[f"shared.{part}_scale"] = np.ones((layers, 1), np.float16)
    tensors["value.mix"] = np.ones((4, layers, 1, 1), np.int8)
    tensors["value.mix_scale"] = np.ones((4, layers, 1), np.float16)
    tensors["value.width"] = np.ones((4, layers, 1), np.int8)
    tensors["value.width_scale"] = np.ones((4, layers), np.float16)
    return encode_pack(metas, tensors)


def _large_product() -> bytes:
    """400 rows of 300 numbers a task, out of one shared row."""
    metas = metas_of({"find": "embedding"})
    tensors = {
        "shared.key": np.ones((1, 1, 1, 300), np.float16),
        "shared.value": np.ones((1, 1, 1, 300), np.float16),
        "value.mix": np.ones((1, 1, 400, 1), np.float16),
    }
    return encode_pack(metas, tensors)


_BAD = "BLOB_INVALID"

PACK_CASES = (
    PackCase("empty", _BAD, ("0 bytes", "at least 8"), lambda: b""),
    PackCase(
        "over 100 KB",
        "QUOTA",
        ("102401 bytes of a pack", "at most 102400"),
        lambda: stored(good()) + b"x" * (MAX_PACK_BYTES + 1 - len(stored(good()))),
    ),
    PackCase(
        "header over its limit",
        _BAD,
        ("header of 70000 bytes", "at most 65536"),
        lambda: joined(b"{" + b" " * 69_999),
    ),
    PackCase(
        "a blob by a pack's name",
        _BAD,
        ("format 'promptdial.prompt' is not 'promptdial.pack'",),
        _strings(lambda strings: strings.update(format="promptdial.prompt")),
    ),
    PackCase(
        "newer format",
        "UPGRADE_RUNTIME",
        ("format_version 2 of a pack", "known up to 1"),
        _strings(lambda strings: strings.update(format_version="2")),
    ),
    PackCase(
        "format_version no number",
        _BAD,
        ("format_version '٣' is no integer",),
        _strings(lambda strings: strings.update(format_version="٣")),
    ),
    PackCase(
        "unknown metadata",
        _BAD,
        ("'more' is unknown",),
        _strings(lambda strings: strings.update(more="x")),
    ),
    PackCase(
        "missing metadata",
        _BAD,
        ("'common' is missing",),
        _strings(lambda strings: strings.pop("common")),
    ),
    PackCase(
        "tasks not JSON",
        _BAD,
        ("tasks is no JSON",),
        _strings(lambda strings: strings.update(tasks="[{]")),
    ),
    PackCase(
        "tasks no objects",
        _BAD,
        ("tasks is no list of JSON objects",),
        _strings(lambda strings: strings.update(tasks='["colour"]')),
    ),
    PackCase(
        "no tasks",
        _BAD,
        ("0 tasks, allowed: 1 to 64",),
        _strings(lambda strings: strings.update(tasks="[]")),
    ),
    PackCase(
        "too many tasks",
        _BAD,
        ("65 tasks, allowed: 1 to 64",),
        _tasks(lambda tasks: tasks.extend([tasks[0]] * 61)),
    ),
    PackCase(
        "two tasks of one name", _BAD, ("'colour' occurs 2 times",), _named("colour")
    ),
    PackCase("a path as a task", _BAD, ("task '../same' is not",), _named("../same")),
    PackCase("a pack as a task", _BAD, ("task 'x.pack' is not",), _named("x.pack")),
    PackCase(
        "a text twice",
        _BAD,
        ("'task' stands in common and in a task",),
        _common(task="colour"),
    ),
    PackCase(
        "a part of an object twice",
        _BAD,
        ("'rows' stands in common and in a task",),
        _common(training={"rows": 1}),
    ),
    PackCase(
        "a text that is none",
        _BAD,
        ("metadata 'license' is not a string",),
        _common(license=3),
    ),
    PackCase(
        "a version in text",
        _BAD,
        ("version '3' is no integer",),
        _common(version="3"),
    ),
    PackCase(
        "the format in a task",
        _BAD,
        ("metadata key 'format' is unknown",),
        _tasks(lambda tasks: tasks[0].update(format="promptdial.prompt")),
    ),
    PackCase(
        "unknown key of a task",
        _BAD,
        ("metadata key 'odd' is unknown",),
        _tasks(lambda tasks: tasks[2].update(odd=1)),
    ),
    PackCase(
        "wrong kind for its labels",
        _BAD,
        ("tag 'red' is not O",),
        _tasks(lambda tasks: tasks[2].update(labels=["O", "red", "B-x"])),
    ),
    PackCase("one label", _BAD, ("6 labels with class vectors, 8",), _two_labels_short),
    PackCase(
        "class vectors missing",
        _BAD,
        ("8 labels with class vectors, 0 in head.weight",),
        _tensors(head__weight=None, head__weight_scale=None, head__bias=None),
    ),
    PackCase(
        "biases missing",
        _BAD,
        ("head.bias has shape (7,), not (8,)",),
        _tensors(head__bias=normal(0, 7)),
    ),
    PackCase(
        "mixes of too few tasks",
        _BAD,
        ("head.mix is float32 (2, 2, 3), allowed: float32 (3, M, L+1)",),
        _levels(head__mix=normal(0, 2, 2, 3)),
    ),
    PackCase(
        "a mix in float16",
        _BAD,
        ("head.mix is float16 (3, 2, 3), allowed: float32",),
        _levels(head__mix=normal(0, 3, 2, 3).astype(np.float16)),
    ),
    PackCase(
        "a mix of more levels than the class vectors are wide",
        _BAD,
        ("task 'colour'", "head.mix has 3 rows, the class vectors are 32 wide"),
        _levels(head__mix=normal(0, 3, 3, 3)),
    ),
    PackCase(
        "queries of a task that reads each word",
        _BAD,
        ("head.query has shape (3, 2, 16), expected (2, M, H)",),
        _levels(head__query=np.ones((3, 2, 16), np.float16), head__query_scale=None),
    ),
    PackCase(
        "queries of another base",
        _BAD,
        ("task 'colour'", "head.query has shape (2, 9)"),
        _levels(head__query=np.ones((2, 2, 9), np.float16), head__query_scale=None),
    ),
    PackCase(
        "queries without mixes",
        _BAD,
        ("task 'colour'", "head.query has shape (2, 16)", "read 1 levels"),
        _levels(head__mix=None),
    ),
    PackCase(
        "queries beyond float16",
        _BAD,
        ("head.query of 'colour'", "at most 6.55e+04"),
        _levels(head__query_scale=np.full((2, 2), 1e9, np.float32)),
    ),
    PackCase(
        "extra tensor",
        _BAD,
        ("'lora_A' is not of a pack", "allowed: head.bias"),
        _tensors(lora_A=normal(0, 2, 2)),
    ),
    PackCase(
        "shared keys missing",
        _BAD,
        ("shared tensors are", "allowed: shared.prompt_embeddings, or shared.key"),
        _tensors(shared__key=None, shared__key_scale=None),
    ),
    PackCase(
        "soft and deep",
        _BAD,
        ("shared tensors are", "allowed: shared.prompt_embeddings, or"),
        _tensors(shared__prompt_embeddings=normal(0, 4, 16).astype(np.float16)),
    ),
    PackCase(
        "a scale without its tensor",
        _BAD,
        ("key.width_scale without key.width",),
        _tensors(key__width_scale=normal(0, 4, 2) ** 2),
    ),
    PackCase(
        "int8 without a scale",
        _BAD,
        ("shared.value_scale goes with I8",),
        _tensors(shared__value_scale=None),
    ),
    PackCase(
        "scale of another shape",
        _BAD,
        ("shared.value_scale has shape (2, 3), not (2, 4)",),
        _tensors(shared__value_scale=np.ones((2, 3), np.float16)),
    ),
    PackCase(
        "float32 class vectors",
        _BAD,
        ("head.weight is F32, allowed: F16, I8",),
        _tensors(head__weight=normal(0, 8, 16), head__weight_scale=None),
    ),
    PackCase(
        "class vectors twice",
        _BAD,
        ("both head.weight and head.weight_int4",),
        _tensors(
            head__weight_int4=np.ones((8, 8), np.int8),
            head__weight_int4_scale=np.ones(8, np.float32),
        ),
    ),
    PackCase(
        "float16 class vectors by the name of int4",
        _BAD,
        ("head.weight_int4 is F16, allowed: I8",),
        _int4(np.ones((8, 8), np.float16)),
    ),
    PackCase(
        "float32 class vectors by the name of int4",
        _BAD,
        ("head.weight_int4 is F32, allowed: I8",),
        _int4(np.ones((8, 8), np.float32)),
    ),
    PackCase(
        "a number that int4 has and no maker writes",
        _BAD,
        ("head.weight_int4 holds -8, allowed: -7 to 7",),
        _int4(np.full((8, 8), -128, np.int8), np.ones(8, np.float32)),
    ),
    PackCase(
        "int4 class vectors without a scale",
        _BAD,
        ("head.weight_int4_scale goes with I8",),
        _int4(np.ones((8, 8), np.int8)),
    ),
    PackCase(
        "int4 class vectors of rank 3",
        _BAD,
        ("8 labels with class vectors, 8 in head.weight_int4",),
        _int4(np.ones((8, 4, 2), np.int8), np.ones((8, 4), np.float32)),
    ),
    PackCase(
        "factors of nothing",
        _BAD,
        ("prompt_embeddings.mix without shared.prompt_embeddings",),
        _tensors(prompt_embeddings__mix=np.ones((4, 1, 4, 4), np.float16)),
    ),
    PackCase(
        "factors of too few tasks",
        _BAD,
        ("value.mix has shape (3, 2, 4, 4), expected (4, 2, 4, 4)",),
        _tensors(value__mix=np.ones((3, 2, 4, 4), np.float16), value__mix_scale=None),
    ),
    PackCase(
        "a mix of other rows",
        _BAD,
        ("value.mix has shape (4, 2, 4, 5), expected (4, 2, 4, 4)",),
        _tensors(value__mix=np.ones((4, 2, 4, 5), np.float16), value__mix_scale=None),
    ),
    PackCase(
        "widths of another base",
        _BAD,
        ("value.width has shape (4, 2, 9), expected (4, 2, 16)",),
        _tensors(value__width=np.ones((4, 2, 9), np.float16), value__width_scale=None),
    ),
    PackCase(
        "keys and values of two lengths",
        _BAD,
        ("task 'colour'", "past_key_values.0.value has shape (2, 3, 8), not (2, 4, 8)"),
        _tensors(value__mix=np.ones((4, 2, 3, 4), np.float16), value__mix_scale=None),
    ),
    PackCase(
        "a small mix for a large product",
        "QUOTA",
        ("120000 numbers in value of every task", "at most 102400"),
        _large_product,
    ),
    PackCase(
        "wrong rank",
        _BAD,
        ("shared.key is of rank 3, allowed: rank 4",),
        _tensors(shared__key=np.ones((2, 4, 8), np.float16), shared__key_scale=None),
    ),
    PackCase(
        "virtual tokens over the limit",
        _BAD,
        ("600 virtual tokens, at most 512",),
        _tensors(
            shared__key=np.ones((1, 1, 600, 1), np.float16), shared__key_scale=None
        ),
    ),
    PackCase(
        "NaN factors",
        _BAD,
        ("value.mix_scale holds nan", "finite numbers"),
        _tensors(value__mix_scale=np.full((4, 2, 4), np.nan, np.float16)),
    ),
    PackCase(
        "infinite scales",
        _BAD,
        ("value.width_scale holds inf", "finite numbers"),
        _tensors(value__width_scale=np.full((4, 2), np.inf, np.float32)),
    ),
    PackCase(
        "negative scale",
        _BAD,
        ("value.width_scale holds a negative scale",),
        _tensors(value__width_scale=np.full((4, 2), -1, np.float32)),
    ),
    PackCase(
        "a product beyond int8 with a float16 scale",
        _BAD,
        ("task 'colour'", "the product of stored numbers", "at most 8.32e+06"),
        _tensors(value__width_scale=np.full((4, 2), 1e9, np.float32)),
    ),
    PackCase(
        "too many layers for a blob's header",
        "QUOTA",
        ("task 'colour'", "bytes, at most 102400"),
        _long_blob,
    ),
)
