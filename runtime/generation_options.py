"""How to generate: what a call asks for, else the prompt, else the defaults."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from promptdial.prompts.strict_json import JsonInvalid, parse_json

MAX_NEW_TOKENS = 1 << 20
MAX_CHOICES = 1024
MAX_SCHEMA_CHARS = 65_536
MAX_REGEX_CHARS = 4_096
_MAX_CHOICE_CHARS = 1024
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
        choices: The answer is one of these strings; none for any answer.
        schema: The answer is JSON that fits this JSON schema; "" for any answer.
        regex: The answer matches this regular expression as a whole; "" for any.
    """

    max_new_tokens: int = 64
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    schema: str = ""
    regex: str = ""


DEFAULTS = GenerationOptions()


class OptionsInvalid(ValueError):
    """An option is unknown, of another type or out of range; the message says which."""


def with_changes(
    options: GenerationOptions, changes: Mapping[str, Any]
) -> GenerationOptions:
    """Options with some of them changed.

    Args:
        options: What to change.
        changes: By name; None leaves an option as it is. A constraint (`choices`,
            `schema`, `regex`) takes the place of the one before, and of stop strings.

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
        given["stop"] = _texts("stop", given["stop"], _MAX_STOPS, _MAX_STOP_CHARS)
    options = _without_constraint(options, given)
    for name, read in CONSTRAINTS.items():
        if name in given:
            given[name] = read(given[name])
    for name, (least, most, whole) in _RANGES.items():
        if name in given:
            given[name] = _number(name, given[name], least, most, whole)
    if 0 < given.get("temperature", 0) < _LEAST_TEMPERATURE:
        raise OptionsInvalid(
            f"temperature {given['temperature']}, allowed: 0 (greedy), or "
            f"{_LEAST_TEMPERATURE:g} to 100"
        )
    changed = replace(options, **given)
    if changed.stop and any(getattr(changed, name) for name in CONSTRAINTS):
        raise OptionsInvalid(
            "stop beside choices, schema or regex, allowed: one of them, since a "
            "constrained answer ends by itself"
        )
    return changed


def _without_constraint(
    options: GenerationOptions, given: Mapping[str, Any]
) -> GenerationOptions:
    """The options, cleared of what a constraint among `given` takes the place of."""
    asked = [name for name in CONSTRAINTS if name in given]
    if len(asked) > 1:
        raise OptionsInvalid(f"{' and '.join(asked)}, allowed: one of them")
    if not asked:
        return options
    return replace(options, stop=(), choices=(), schema="", regex="")


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


def _texts(name: str, value: object, most: int, longest: int) -> tuple[str, ...]:
    texts = (value,) if isinstance(value, str) else value
    if not isinstance(texts, list | tuple) or len(texts) > most:
        raise OptionsInvalid(f"{name} is no list of at most {most} texts")
    for text in texts:
        if not isinstance(text, str) or not 0 < len(text) <= longest:
            raise OptionsInvalid(
                f"{name} {str(text)[:32]!r}, not 1 to {longest} characters"
            )
    return tuple(texts)


def _choices(value: object) -> tuple[str, ...]:
    texts = _texts("choices", value, MAX_CHOICES, _MAX_CHOICE_CHARS)
    if not texts or len(set(texts)) < len(texts):
        raise OptionsInvalid("choices are none, or one is given twice")
    for text in texts:
        _check_unicode("choices", text)
    return texts


def _schema(value: object) -> str:
    """A schema as text; equal ones are equal texts, so that one is compiled once."""
    if isinstance(value, Mapping):
        try:
            value = json.dumps(dict(value))
        except (TypeError, ValueError, RecursionError) as error:
            raise OptionsInvalid(f"schema is no JSON: {str(error)[:100]}") from None
    text = _text("schema", value, MAX_SCHEMA_CHARS)
    try:
        return json.dumps(parse_json(text), separators=(",", ":"))
    except JsonInvalid as error:
        raise OptionsInvalid(f"schema is no JSON: {error}") from None


def _regex(value: object) -> str:
    return _text("regex", value, MAX_REGEX_CHARS)


def _text(name: str, value: object, longest: int) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= longest:
        what = f"{len(value)} characters" if isinstance(value, str) else type(value)
        raise OptionsInvalid(f"{name} of {what}, allowed: text, 1 to {longest}")
    _check_unicode(name, value)
    return value


def _check_unicode(name: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise OptionsInvalid(f"{name} holds half a character") from None


CONSTRAINTS: dict[str, Callable[[object], Any]] = {
    "choices": _choices,
    "schema": _schema,
    "regex": _regex,
}
"""What an answer may be, at most one of them; each read by its function."""
