"""Mutations that keep JSON valid, so that checks behind the parser are reached."""

import json
import random
from typing import Any

INTERESTING: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    1,
    -1,
    2**31,
    2**40,
    2**63,
    10**400,
    0.5,
    -0.0,
    1e308,
    "",
    "0",
    "I8",
    "F16",
    "../x",
    "\u0000",
    "\ud800",
    "[]",
    '{"a":1}',
    [],
    [0],
    [[]],
    {},
    {"": 0},
    "x" * 300,
)


def mutate_json(text: bytes, seed: int | str) -> bytes | None:
    """The text with one to three places changed; None where it is no JSON."""
    rng = random.Random(seed)
    try:
        root = [json.loads(text)]
        for _ in range(rng.randint(1, 3)):
            _change(rng, root)
        return json.dumps(root[0]).encode("utf-8", "surrogatepass")
    except (ValueError, RecursionError):
        return None


def _change(rng: random.Random, root: list[Any]) -> None:
    holders: list[Any] = []
    _collect(root, holders)
    holder = rng.choice(holders)
    keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
    key = rng.choice(keys)
    action = rng.randrange(5)
    if action == 0 and holder is not root:
        del holder[key]
    elif action == 1 and isinstance(holder, dict):
        holder[rng.choice(["", "x", "__metadata__", str(key) + "_"])] = holder[key]
    elif action == 2 and isinstance(holder[key], str):
        # Metadata of blobs is JSON inside of strings.
        inner = mutate_json(holder[key].encode("utf-8", "replace"), rng.random().hex())
        holder[key] = holder[key][:-1] if inner is None else inner.decode()
    elif action == 3:
        other = rng.choice(holders)
        if other is not root:
            holder[key] = rng.choice(list(other))
    else:
        holder[key] = rng.choice(INTERESTING)


def _collect(node: Any, found: list[Any]) -> None:
    if isinstance(node, dict | list) and len(node):
        found.append(node)
        for child in node.values() if isinstance(node, dict) else node:
            _collect(child, found)
