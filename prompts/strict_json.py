"""JSON read strictly: what Python's reader takes and JSON or UTF-8 does not is refused.

Python takes a key given twice (the last one wins), `NaN` and `Infinity`, numbers that
end as infinity (`1e999`) and escapes of half a character. Each could show one value to
a check and another to a later reader, or could never be written again.
"""

import json
import math
from typing import Any


class JsonInvalid(ValueError):
    """The text is not strict JSON; the message says why."""


def parse_json(text: str) -> Any:
    """The value of a JSON text.

    Raises:
        JsonInvalid: It is none.
    """
    try:
        value = json.loads(
            text,
            object_pairs_hook=_once,
            parse_constant=_no_constant,
            parse_float=_finite,
        )
        _check_unicode(text, value)
    except JsonInvalid:
        raise
    except (ValueError, RecursionError) as error:
        raise JsonInvalid(str(error)[:200]) from None
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [key for key, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise JsonInvalid(f"duplicate name {twice[:64]!r}, allowed: once")
    return found


def _no_constant(name: str) -> None:
    raise JsonInvalid(f"{name} is no JSON")


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise JsonInvalid(f"number {digits[:32]}, allowed: below 1.8e308")
    return number


def _check_unicode(text: str, value: object) -> None:
    """Refuse lone surrogates: only an escape can have made one."""
    if "\\u" not in text:
        return
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise JsonInvalid("a lone surrogate, allowed: whole characters") from None
