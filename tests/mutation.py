"""Structural damage to JSON and to safetensors files whose lengths stay right.

Blind bytes rarely get past the first length or bracket; these changes reach the checks
behind them. Used by the fuzz targets and by the differential test.
"""

import copy
import json
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

ODD_VALUES: tuple[Any, ...] = (
    None,
    True,
    0,
    -1,
    1,
    3,
    2**31,
    2**40,
    2**63,
    10**400,
    1.5,
    -0.0,
    1e308,
    "",
    "0",
    "x",
    "NaN",
    "nan",
    "\x00",
    "\ud800",
    "\n",
    "../x",
    "F32",
    "F16",
    "I8",
    "BF16",
    "[]",
    "{}",
    '["a","a"]',
    "1" * 40,
    "9" * 5000,
    [],
    [0],
    [0, 0],
    [0, 2**62],
    {},
    {"": 0},
)
Place = tuple[Any, Any]
"""A container and the key or index of a value in it."""


def damaged_json(value: Any, random: Random, steps: int) -> Any:
    """A copy of a JSON value with some of its parts changed, moved or dropped."""
    found = [copy.deepcopy(value)]
    for _ in range(steps):
        places = list(_places(found))
        random.choice(_STEPS)(places, random)
    return found[0]


def damaged_text(text: str, random: Random) -> str:
    """JSON text with a piece doubled or cut: what no JSON value can say."""
    begin = random.randrange(len(text) + 1)
    end = min(len(text), begin + random.randrange(1, 40))
    kind = random.randrange(3)
    if kind == 0:
        return text[:begin] + text[end:]
    if kind == 1:
        return text[:end] + text[begin:]
    odd = random.choice(("NaN", "Infinity", "\\ud800", "[" * 50, '{"a":1,', "1e999"))
    return text[:begin] + odd + text[end:]


def damaged_file(data: bytes, random: Random) -> bytes:
    """A safetensors file with a changed header or data; the length is right again.

    What is no such file is given back as it is.
    """
    length = int.from_bytes(data[:8], "little")
    body = data[8 + length :]
    try:
        header = json.loads(data[8 : 8 + length])
    except (ValueError, RecursionError):
        return data
    kind = random.randrange(8)
    if kind < 5:
        header = _damaged_header(header, random)
    text = json.dumps(header, ensure_ascii=bool(random.randrange(2)))
    if kind == 5:
        text = random.choice((damaged_text, _loose_text))(text, random)
    elif kind == 6:
        body = _damaged_bytes(body, random)
    elif kind == 7:
        body = body + bytes(random.randrange(9)) if random.randrange(2) else body[:-1]
    raw = text.encode("utf-8", "surrogatepass")
    return len(raw).to_bytes(8, "little") + raw + body


def _loose_text(text: str, random: Random) -> str:
    """What a lenient reader takes: a key given twice, a blank before the brace."""
    header = json.loads(text)
    if random.randrange(3) == 0 or not isinstance(header, dict) or not header:
        return f" {text}"
    key, entry = random.choice(list(header.items()))
    if isinstance(entry, dict) and entry and random.randrange(2):
        inner, value = random.choice(list(entry.items()))
        again = f"{{{json.dumps(inner)}: {json.dumps(value)}, "
        return text.replace(json.dumps(entry), again + json.dumps(entry)[1:], 1)
    return f"{{{json.dumps(key)}: {json.dumps(entry)}, {text[1:]}"


def _damaged_header(header: Any, random: Random) -> Any:
    """The whole header, or the JSON text that stands in one of its strings."""
    meta = header.get("__metadata__") if isinstance(header, dict) else None
    if isinstance(meta, dict) and meta and random.randrange(2):
        key = random.choice(list(meta))
        text = meta[key]
        try:
            inner = json.loads(text)
        except (ValueError, TypeError, RecursionError):
            inner = text
        changed = damaged_json(inner, random, 1 + random.randrange(2))
        found = changed if isinstance(changed, str) else json.dumps(changed)
        return {**header, "__metadata__": {**meta, key: found}}
    return damaged_json(header, random, 1 + random.randrange(3))


def _damaged_bytes(data: bytes, random: Random) -> bytes:
    if not data:
        return data
    found = bytearray(data)
    place = random.randrange(len(found))
    # Infinity, NaN and huge numbers, as F32 and F16 hold them.
    odd = random.choice((b"\0\0\x80\x7f", b"\xff\xff\x7f\x7f", b"\0\x7c", b"\xff\xff"))
    found[place : place + len(odd)] = odd
    return bytes(found[: len(data)])


def _places(value: Any) -> Iterator[Place]:
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in list(items):
        yield value, key
        if isinstance(item, dict | list):
            yield from _places(item)


def _replace(places: list[Place], random: Random) -> None:
    holder, key = random.choice(places)
    holder[key] = copy.deepcopy(random.choice(ODD_VALUES))


def _swap(places: list[Place], random: Random) -> None:
    (one, first), (two, second) = random.choice(places), random.choice(places)
    # Copies: a value that holds itself is no JSON.
    left, right = copy.deepcopy(one[first]), copy.deepcopy(two[second])
    one[first] = right
    two[second] = left


def _drop(places: list[Place], random: Random) -> None:
    holder, key = random.choice(places)
    if isinstance(holder, dict):
        del holder[key]
    else:
        holder[key] = None


def _rename(places: list[Place], random: Random) -> None:
    holder, key = random.choice(places)
    if isinstance(holder, dict):
        other = random.choice(places)[1]
        holder[str(other)[:40] + random.choice(("", "x", "_scale"))] = holder.pop(key)


def _nudge(places: list[Place], random: Random) -> None:
    numbers = [(h, k) for h, k in places if type(h[k]) is int]
    if numbers:
        holder, key = random.choice(numbers)
        holder[key] += random.choice((-4, -1, 1, 4, 64))


_STEPS: tuple[Callable[[list[Place], Random], None], ...] = (
    _replace,
    _replace,
    _swap,
    _drop,
    _rename,
    _nudge,
)
