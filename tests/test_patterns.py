"""Patterns of tokenizers: the well-known pass, what runs away is refused."""

import json

import pytest

from promptdial.runtime.patterns import (
    PatternInvalid,
    check_patterns,
    why_it_runs_away,
)

KNOWN = {
    "gpt2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|"
    r"\s+(?!\S)|\s+",
    "llama3": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "thousands": r"\d(?=(?:\d{3})+(?!\d))",
    "o200k": r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{M}]+"
    r"(?i:'s|'t)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "spaces": " {2,}",
    "brackets in a class": r"[(+)*|]+",
    "atomic head": r"(?>a)+(?<!b)c",
}
RUNAWAY = {
    "nested": "(a+)+b",
    "nested star": r"(?:\w*)*$",
    "choice": "(a|a)*b",
    "optional": "(?:a?){20,}",
    "deep": "((ab+c))+",
    "escaped inside": r"(\)+)+",
    "class inside": r"([)]+)*",
    "twice": "a**",
    "range": "(a{1,3})+",
}


@pytest.mark.parametrize("name", KNOWN)
def test_well_known_patterns_pass(name: str) -> None:
    assert why_it_runs_away(KNOWN[name]) == ""
    check_patterns(json.dumps({"pattern": {"Regex": KNOWN[name]}}))


@pytest.mark.parametrize("name", RUNAWAY)
def test_what_runs_away_is_refused(name: str) -> None:
    assert why_it_runs_away(RUNAWAY[name]) == "repeats a choice without bound"


def test_other_reasons_are_told() -> None:
    assert why_it_runs_away(r"(a)\1") == "holds a backreference"
    assert why_it_runs_away("(a") == "leaves a group open"
    assert why_it_runs_away("a)b") == "closes more groups than it opens"
    with pytest.raises(PatternInvalid, match="at most 4096"):
        check_patterns(json.dumps({"Regex": "a" * 5000}))


def test_escaped_keys_are_seen_and_vocabulary_is_not() -> None:
    check_patterns('{"vocab": {"Regex": 17, "(a+)+": 3}}')
    with pytest.raises(PatternInvalid, match=r"pattern '\(a\+\)\+'"):
        check_patterns(r'{"\u0052egex" : "(a+)+"}')
