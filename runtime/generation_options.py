"""How to generate: what a call asks for, else the prompt, else the defaults."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

MAX_NEW_TOKENS = 1 << 20
_MAX_STOPS = 16
_LEAST_TEMPERATURE = 1e-3
"""Below it, logits divided by it leave float32."""
_MAX_STOP_CHARS = 256


@dataclass(frozen=True)
class GenerationOptions:
    """How to choose tokens, and when to end.

    Attributes:
        max_new_tokens: At most so many.
        temperature: Divides the logits; 0 always takes the best token (greedy).
        top_k: Draw from so many of the best; 0 from all.
        top_p: Draw from the fewest whose probabilities reach this sum.
        min_p: Draw from those of at least this share of the best one's probability.
        repetition_penalty: Above 1, tokens of text and answer become less likely.
        seed: Equal seeds give equal answers.
        stop: The answer ends before any of these strings.
    """

    max_new_tokens: int = 64
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()


DEFAULTS = GenerationOptions()


class OptionsInvalid(ValueError):
    """An option is unknown, of another type or out of range; the message says which."""


def with_changes(
    options: GenerationOptions, changes: Mapping[str, Any]
) -> GenerationOptions:
    """Options with some of them changed.

    Args:
        options: What to change.
        changes: By name; None leaves an option as it is.

    Raises:
        OptionsInvalid: One is unknown or cannot be.
    """
    given = {name: value for name, value in changes.items() if value is not None}
    known = {item.name for item in fields(GenerationOptions)}
    for name in given:
        if name not in known:
            allowed = ", ".join(sorted(known))
            raise OptionsInvalid(f"option {name[:32]!r}, allowed: {allowed}")
    if "stop" in given:
        given["stop"] = _stops(given["stop"])
    for name, (least, most, whole) in _RANGES.items():
        if name in given:
            given[name] = _number(name, given[name], least, most, whole)
    if 0 < given.get("temperature", 0) < _LEAST_TEMPERATURE:
        raise OptionsInvalid(
            f"temperature {given['temperature']}, allowed: 0 (greedy), or "
            f"{_LEAST_TEMPERATURE:g} to 100"
        )
    return replace(options, **given)


_RANGES: dict[str, tuple[float, float, bool]] = {
    "max_new_tokens": (1, MAX_NEW_TOKENS, True),
    "temperature": (0, 100, False),
    "top_k": (0, MAX_NEW_TOKENS, True),
    "top_p": (1e-6, 1, False),
    "min_p": (0, 1, False),
    "repetition_penalty": (1e-3, 1e3, False),
    "seed": (0, 2**63 - 1, True),
}
"""Least and largest value, and whether it is a whole number."""


def _number(
    name: str, value: object, least: float, most: float, whole: bool
) -> int | float:
    wanted = (int,) if whole else (int, float)
    if type(value) not in wanted:
        kind = "a whole number" if whole else "a number"
        raise OptionsInvalid(f"{name} is {str(value)[:32]!r}, not {kind}")
    assert isinstance(value, int | float)
    if not least <= value <= most:
        raise OptionsInvalid(f"{name} {value}, allowed: {least:g} to {most:g}")
    return value


def _stops(value: object) -> tuple[str, ...]:
    texts = (value,) if isinstance(value, str) else value
    if not isinstance(texts, list | tuple) or len(texts) > _MAX_STOPS:
        raise OptionsInvalid(f"stop is no list of at most {_MAX_STOPS} texts")
    for text in texts:
        if not isinstance(text, str) or not 0 < len(text) <= _MAX_STOP_CHARS:
            raise OptionsInvalid(
                f"stop {str(text)[:32]!r}, not 1 to {_MAX_STOP_CHARS} characters"
            )
    return tuple(texts)
