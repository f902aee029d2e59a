"""What a pack says about its tasks: each task's metadata, and once what all share.

`common` and `tasks` are JSON texts. A task's metadata is its own object of the list
with what `common` holds; of an object such as `training`, the two are put together.
Every rule of a blob's metadata holds for what comes out.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from promptdial.prompts.errors import BlobInvalid, BlobTooNew
from promptdial.prompts.metadata import (
    FORMAT,
    FORMAT_VERSION,
    OBJECT_KEYS,
    TEXT_KEYS,
    PromptMeta,
    canonical,
    from_strings,
    to_strings,
)
from promptdial.prompts.strict_json import JsonInvalid, parse_json

PACK_FORMAT = "promptdial.pack"
PACK_FORMAT_VERSION = 1
"""Its blobs are of FORMAT_VERSION 1: equal packs give equal blobs for good."""

MAX_TASKS = 64

_KEYS = ("format", "format_version", "common", "tasks")
_HINT = "get the pack again from its maker"
Values = dict[str, Any]


def to_pack_strings(metas: Sequence[PromptMeta]) -> dict[str, str]:
    """The metadata of all tasks as the strings of the file."""
    tasks = [_values(meta) for meta in metas]
    common = _shared(tasks)
    for key in OBJECT_KEYS:
        inner = _shared([task[key] for task in tasks if key in task])
        if inner:
            common[key] = inner
    return {
        "format": PACK_FORMAT,
        "format_version": str(PACK_FORMAT_VERSION),
        "common": canonical(common),
        "tasks": canonical(tasks),
    }


def from_pack_strings(found: Mapping[str, str]) -> tuple[PromptMeta, ...]:
    """The metadata of each task, checked.

    Raises:
        BlobTooNew: The format is newer than this reader.
        BlobInvalid: A rule of the pack or of a task's metadata is broken.
    """
    _check_format(found)
    common, tasks = _json(found, "common"), _json(found, "tasks")
    if not isinstance(common, dict):
        raise BlobInvalid("common is no JSON object", _HINT)
    if not isinstance(tasks, list) or not all(isinstance(t, dict) for t in tasks):
        raise BlobInvalid("tasks is no list of JSON objects", _HINT)
    if not 1 <= len(tasks) <= MAX_TASKS:
        raise BlobInvalid(f"{len(tasks)} tasks, allowed: 1 to {MAX_TASKS}", _HINT)
    metas = tuple(from_strings(_strings(_joined(common, task))) for task in tasks)
    names = [meta.task for meta in metas]
    for name in names:
        if names.count(name) > 1:
            raise BlobInvalid(
                f"task {name!r} occurs {names.count(name)} times, allowed: once", _HINT
            )
    return metas


def _check_format(found: Mapping[str, str]) -> None:
    if found.get("format") != PACK_FORMAT:
        raise BlobInvalid(
            f"format {found.get('format', '')[:32]!r} is not {PACK_FORMAT!r}", _HINT
        )
    version = found.get("format_version", "")
    if not version.isascii() or not version.isdigit() or len(version) > 9:
        raise BlobInvalid(f"format_version {version[:16]!r} is no integer", _HINT)
    if int(version) > PACK_FORMAT_VERSION:
        raise BlobTooNew(
            f"format_version {version} of a pack, known up to {PACK_FORMAT_VERSION}",
            "upgrade promptdial on this device",
        )
    if set(found) != set(_KEYS):
        odd = sorted(set(found) ^ set(_KEYS))[0]
        what = "unknown" if odd in found else "missing"
        raise BlobInvalid(f"metadata key {odd[:64]!r} is {what}", _HINT)


def _values(meta: PromptMeta) -> Values:
    """A blob's metadata as JSON values, without what is of its file alone."""
    strings = to_strings(meta)
    del strings["format"], strings["format_version"]
    return {
        key: text if key in TEXT_KEYS else parse_json(text)
        for key, text in strings.items()
    }


def _shared(items: list[Values]) -> Values:
    """What all have alike, taken out of each."""
    if len(items) < 2:
        return {}
    # By their texts: in Python 1 equals 1.0 and true.
    alike = {
        key: value
        for key, value in items[0].items()
        if all(
            key in item and canonical(item[key]) == canonical(value) for item in items
        )
    }
    for item in items:
        for key in alike:
            del item[key]
    return alike


def _joined(common: Values, task: Values) -> Values:
    """A task's metadata as JSON values.

    Raises:
        BlobInvalid: A key stands in both, which would show one of the two alone.
    """
    found = {**common, **task}
    for key in set(common) & set(task):
        one, two = common[key], task[key]
        both = key in OBJECT_KEYS and isinstance(one, dict) and isinstance(two, dict)
        twice = sorted(set(one) & set(two)) if both else [key]
        if twice:
            raise BlobInvalid(
                f"{twice[0][:64]!r} stands in common and in a task, allowed: one of "
                "them",
                _HINT,
            )
        found[key] = {**one, **two}
    return found


def _strings(values: Values) -> dict[str, str]:
    """JSON values as the strings of a blob's file.

    Raises:
        BlobInvalid: A text is none, or the version no integer.
    """
    found = {"format": FORMAT, "format_version": str(FORMAT_VERSION)}
    for key, value in values.items():
        if key in found:
            raise BlobInvalid(f"metadata key {key[:64]!r} is unknown", _HINT)
        if key in TEXT_KEYS:
            if not isinstance(value, str):
                raise BlobInvalid(f"metadata {key[:64]!r} is not a string", _HINT)
            found[key] = value
        elif key == "version":
            if type(value) is not int:
                raise BlobInvalid(f"version {value!r:.16} is no integer", _HINT)
            found[key] = str(value)
        else:
            found[key] = canonical(value)
    return found


def _json(found: Mapping[str, str], key: str) -> Any:
    try:
        return parse_json(found[key])
    except JsonInvalid as error:
        raise BlobInvalid(f"{key} is no JSON: {str(error)[:100]}", _HINT) from None
