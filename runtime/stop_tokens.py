"""Token ids that end an answer, as the base's own files name them."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from promptdial.prompts.strict_json import JsonInvalid, parse_json
from promptdial.runtime.errors import BundleInvalid
from promptdial.runtime.manifest import CONFIG_NAMES

_KEY = "eos_token_id"


def stop_tokens(folder: Path, names: Iterable[str], vocab: int) -> frozenset[int]:
    """`eos_token_id` of the first of the bundle's configuration files that has one.

    Args:
        folder: The bundle.
        names: Its files, whose digests were checked.
        vocab: V; a larger id is refused.

    Raises:
        BundleInvalid: A file is no JSON object, or the ids are none.
    """
    for name in CONFIG_NAMES:
        if name not in names:
            continue
        found = _read(folder / name).get(_KEY)
        if found is None or found == []:
            continue
        ids = found if isinstance(found, list) else [found]
        if not all(type(item) is int and 0 <= item < vocab for item in ids):
            raise BundleInvalid(
                f"{name}: {_KEY} is {str(found)[:64]}, allowed: 0 to {vocab - 1}"
            )
        return frozenset(ids)
    return frozenset()


def end_token(folder: Path, names: Iterable[str], vocab: int) -> int | None:
    """The one that is written behind an answer in training and in scoring labels.

    config.json's, since generation_config.json may name several (and TinyStories' the
    token that begins a text among them).

    Raises:
        BundleInvalid: As `stop_tokens`.
    """
    there = set(names)
    known = stop_tokens(folder, there, vocab)
    for name in reversed(CONFIG_NAMES):
        # Whatever it is, generation must end at it.
        found = stop_tokens(folder, there & {name}, vocab) & known
        if found:
            return min(found)
    return None


def _read(path: Path) -> dict[str, Any]:
    try:
        value = parse_json(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, JsonInvalid) as error:
        raise BundleInvalid(f"{path.name}: {error}") from None
    if not isinstance(value, dict):
        raise BundleInvalid(f"{path.name} is no JSON object")
    return value
