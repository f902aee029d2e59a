"""Regular expressions of a tokenizer.json: those that can run away are refused.

tokenizers hands the patterns of `Split` and `Replace` to a backtracking engine, so a
bundle could hang a device with one line of text. What backtracks without end is a
choice within a repetition: `(a+)+`, `(a|a)*`. The rule here is stricter than needed and
simple: what is repeated without bound may hold no repetition of varying length and no
choice. The patterns of GPT-2, Llama, Qwen and others keep to it. Backreferences are
refused too.
"""

import json
import re
from collections.abc import Iterator

MAX_PATTERN = 4096
"""Characters of one pattern; the longest in use have some 400."""

# Any letter of a JSON key may be written as an escape.
_KEY = re.compile(
    r'"(?:R|\\u0052)(?:e|\\u0065)(?:g|\\u0067)(?:e|\\u0065)(?:x|\\u0078)"\s*:\s*(?=")'
)
_REPEAT = re.compile(r"(?:[*+?]|\{(\d*)(,?)(\d*)\})[?+]?")
_CLASS = re.compile(r"\[\^?\]?(?:\\.|\[:\^?\w+:\]|[^\]\\])*\]", re.DOTALL)
_BACKREFERENCE = re.compile(r"\\(?:[1-9]|k|g)")


class PatternInvalid(ValueError):
    """A pattern may run away; the message shows it."""


def check_patterns(tokenizer_json: str) -> None:
    """Check every pattern of a tokenizer.json, without parsing its vocabulary.

    Raises:
        PatternInvalid: One may run away.
    """
    for pattern in patterns_of(tokenizer_json):
        if len(pattern) > MAX_PATTERN:
            raise PatternInvalid(
                f"a pattern of {len(pattern)} characters, at most {MAX_PATTERN}"
            )
        reason = why_it_runs_away(pattern)
        if reason:
            raise PatternInvalid(f"pattern {pattern[:80]!r} {reason}")


def patterns_of(tokenizer_json: str) -> Iterator[str]:
    """The values of all keys `Regex`, however their letters are written.

    Raises:
        PatternInvalid: One is no JSON string.
    """
    decoder = json.JSONDecoder()
    for found in _KEY.finditer(tokenizer_json):
        try:
            yield decoder.raw_decode(tokenizer_json, found.end())[0]
        except ValueError as error:
            raise PatternInvalid(f"a pattern is no JSON: {error}") from None


def why_it_runs_away(pattern: str) -> str:
    """What in a pattern could backtrack without end; "" for nothing.

    Args:
        pattern: In the syntax of Oniguruma, of which groups, classes, choices and
            repetitions matter here.
    """
    varying = [False]  # for the open groups: holds a choice or a varying repetition
    last = False  # the same for what was read last
    place = 0
    while place < len(pattern):
        repeat = _REPEAT.match(pattern, place)
        if repeat and place:
            if _is_unbounded(repeat) and last:
                return "repeats a choice without bound"
            last = last or not _is_exact(repeat)
            varying[-1] = varying[-1] or last
            place = repeat.end()
            continue
        if _BACKREFERENCE.match(pattern, place):
            return "holds a backreference"
        place, last = _next(pattern, place, varying)
        if not varying:
            return "closes more groups than it opens"
    return "" if len(varying) == 1 else "leaves a group open"


def _next(pattern: str, place: int, varying: list[bool]) -> tuple[int, bool]:
    """Read one item that is no repetition: where it ends, and whether it varies."""
    sign = pattern[place]
    if sign == "\\":
        return place + 2, False
    if sign == "[":
        found = _CLASS.match(pattern, place)
        return (found.end() if found else len(pattern)), False
    if sign == "(":
        varying.append(False)
        # The head of `(?:`, `(?i:`, `(?=`, `(?<!` is no repetition.
        head = re.compile(r"\(\?[a-zA-Z-]*[:=!>]?|\(\?<[=!]").match(pattern, place)
        return (head.end() if head else place + 1), False
    if sign == ")":
        held = varying.pop()
        if varying:
            varying[-1] = varying[-1] or held
        return place + 1, held
    if sign == "|":
        varying[-1] = True
    return place + 1, False


def _is_unbounded(repeat: re.Match[str]) -> bool:
    sign = repeat.group()[0]
    return sign in "*+" or (sign == "{" and repeat[2] == "," and not repeat[3])


def _is_exact(repeat: re.Match[str]) -> bool:
    return repeat.group()[0] == "{" and not repeat[2]
