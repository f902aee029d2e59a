"""How a prompt's scores are read: temperature, threshold, what is out of scope.

One metadata key of a blob, `scores`; without it a prompt's scores are its logits'
softmax and it never abstains.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from promptdial.prompts.errors import BlobInvalid

MIN_TEMPERATURE = 0.01
MAX_TEMPERATURE = 100.0

MAX_LOGIT = 1000.0

_NUMBERS = ("temperature", "threshold", "out_of_scope_bias", "background")
_KEYS = (*_NUMBERS, "out_of_scope")
_SCORED = ("classification", "pair", "token")
"""Kinds whose answers have scores; of these, tags are never abstained from."""
_ABSTAINING = ("classification", "pair")


@dataclass(frozen=True)
class Scores:
    """How logits become scores, and which answers are none.

    Attributes:
        temperature: Logits are divided by it (Guo et al. 2017, arXiv:1706.04599).
        threshold: An answer with a score below it is an abstention; 0 for none.
        out_of_scope: The label that stands for "none of these": an input that is
            likeliest to have it is an abstention. "" where there is none.
        out_of_scope_bias: Added to that label's logit, after the temperature.
        background: A constant logit b beside that label's own z, which becomes
            log(exp(z) + exp(b)): what fits no label is out of scope. None for none.
    """

    temperature: float = 1.0
    threshold: float = 0.0
    out_of_scope: str = ""
    out_of_scope_bias: float = 0.0
    background: float | None = None


PLAIN = Scores()
"""Of prompts that say nothing about their scores."""


def to_object(scores: Scores) -> dict[str, Any]:
    """The object of the metadata key: what differs from the defaults."""
    return {
        key: getattr(scores, key)
        for key in _KEYS
        if getattr(scores, key) != getattr(PLAIN, key)
    }


def from_object(found: Mapping[str, Any]) -> Scores:
    """Scores of the metadata key's object.

    Raises:
        BlobInvalid: A key is unknown, or a value of the wrong type.
    """
    unknown = sorted(set(found) - set(_KEYS))
    if unknown:
        raise _invalid(
            f"scores has the unknown key {unknown[0][:64]!r}, allowed: "
            f"{', '.join(_KEYS)}"
        )
    for key in _NUMBERS:
        if key in found and type(found[key]) not in (int, float):
            raise _invalid(f"scores: {key} {str(found[key])[:64]!r} is no number")
    if not isinstance(found.get("out_of_scope", ""), str):
        raise _invalid("scores: out_of_scope is no label")
    return Scores(**found)


def check_scores(scores: Scores, kind: str, labels: tuple[str, ...]) -> None:
    """Check values, and that the prompt's kind and labels give them a meaning.

    Raises:
        BlobInvalid: They do not; what has no effect is refused as well.
    """
    low, high = MIN_TEMPERATURE, MAX_TEMPERATURE
    # Written so that NaN is refused too.
    if not low <= scores.temperature <= high:
        raise _invalid(
            f"scores: temperature {str(scores.temperature)[:32]}, allowed: {low} to "
            f"{high:g}"
        )
    if not 0 <= scores.threshold <= 1:
        raise _invalid(
            f"scores: threshold {str(scores.threshold)[:32]}, allowed: 0 to 1"
        )
    if scores.out_of_scope and scores.out_of_scope not in labels:
        raise _invalid(
            f"scores: out_of_scope {scores.out_of_scope[:64]!r} is no label, allowed: "
            f"{', '.join(labels)[:64]}"
        )
    for key, value in (
        ("out_of_scope_bias", scores.out_of_scope_bias),
        ("background", scores.background or 0.0),
    ):
        if not abs(value) <= MAX_LOGIT:
            raise _invalid(
                f"scores: {key} {str(value)[:32]}, allowed: -{MAX_LOGIT:g} to "
                f"{MAX_LOGIT:g}"
            )
        if not scores.out_of_scope and getattr(scores, key) != getattr(PLAIN, key):
            raise _invalid(f"scores: {key} without out_of_scope")
    if scores.out_of_scope and len(labels) < 2:
        raise _invalid("scores: out_of_scope is the prompt's only label")
    if scores != PLAIN and kind not in _SCORED:
        raise _invalid(f"scores in a prompt of kind {kind}, which has none")
    if (scores.threshold or scores.out_of_scope) and kind not in _ABSTAINING:
        raise _invalid(
            f"scores: threshold or out_of_scope in a prompt of kind {kind}, allowed: "
            f"{', '.join(_ABSTAINING)}"
        )


def may_abstain(scores: Scores) -> bool:
    """Whether an answer can be an abstention at all."""
    return bool(scores.threshold or scores.out_of_scope)


def _invalid(rule: str) -> BlobInvalid:
    return BlobInvalid(rule, "get the prompt again from its maker")
