"""The trial of one prompt on this device: does it load, is it right, is it quick.

Loading checks shapes, norms and fingerprints (fitting.py), and every answer that its
numbers are finite. Golden inputs (selftest.py) must have their golden labels, and a
part of the margin that they had where the prompt was made. And a request may not take
much longer than the base's own on the same text, whatever the device.
"""

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from promptdial.prompts.blob import Golden, PromptBlob, PromptMeta
from promptdial.prompts.metadata import LIKELIHOOD
from promptdial.runtime.manifest import DECODER
from promptdial.runtime.selftest import (
    GOLDEN_TOKENS,
    GoldenAnswer,
    ask_all,
    ask_golden,
    wrong_answers,
)

if TYPE_CHECKING:
    from promptdial.runtime.engine import Engine

MARGIN_SHARE = 0.25
"""Part of a golden margin that must be left. Between processors and variants answers
agree at a cosine of 0.988 and better, which moves margins by far less."""

LATENCY_FACTOR = 3.0
"""A request may take so many times the base's own with as many rows. A kept prefix
makes it 1.0 to 1.1; the rest is room for a device that is busy."""

LATENCY_SLACK_MS = 5.0
"""And so much more, since short requests are mostly overhead."""

LEAST_ROUNDS, MOST_ROUNDS = 3, 10
"""Times that both are timed, in turn: the quickest counts, since other work on the
device only ever adds. What is bad is bad for good, so one that looks slow gets most."""

PLAIN_TEXT = "this is a test"
"""Asked where a prompt has no golden input."""


def failure_of(engine: "Engine", blob: PromptBlob) -> str:
    """What is wrong with a prompt on this device, in a line; "" for nothing.

    Args:
        engine: One that has the prompt.
        blob: The prompt.

    Raises:
        RuntimeFailure: It cannot be used at all, or an answer is not finite.
    """
    answers = ask_all(engine, blob.meta)
    wrong = wrong_answers(blob.meta, answers)
    if wrong:
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        return f"golden input {wrong[0]}{more}"
    return _margins(blob.meta, answers) or _latency(engine, blob)


def _margins(meta: PromptMeta, answers: Sequence[GoldenAnswer]) -> str:
    """What is wrong with the margins of the golden answers."""
    for golden, found in zip(meta.golden, answers, strict=True):
        least = MARGIN_SHARE * golden.margin
        if found.margin is not None and found.margin < least:
            return (
                f"golden input {golden.text!r} has margin {found.margin:.3f}, at "
                f"least {least:.3f}"
            )
    return ""


def _latency(engine: "Engine", blob: PromptBlob) -> str:
    """What is wrong with the time of a request, beside one without a prompt."""
    meta = blob.meta
    pair = PLAIN_TEXT if meta.kind == "pair" else None
    asked = meta.golden[0] if meta.golden else Golden(PLAIN_TEXT, pair, (), "", 0.0)
    whole = asked.text if asked.text_pair is None else f"{asked.text} {asked.text_pair}"
    rows = len(asked.tokens) or len(whole.split())
    times = LATENCY_FACTOR * (1 + _rows_besides(engine, blob) / rows)
    own = base = allowed = float("inf")
    for number in range(MOST_ROUNDS):
        started = time.perf_counter()
        ask_golden(engine, meta, asked)
        middle = time.perf_counter()
        if engine.manifest.family == DECODER:
            engine.generate(None, whole, max_new_tokens=GOLDEN_TOKENS)
        else:
            engine.run(None, whole)
        base = min(base, 1e3 * (time.perf_counter() - middle))
        own = min(own, 1e3 * (middle - started))
        allowed = times * base + LATENCY_SLACK_MS
        if number + 1 >= LEAST_ROUNDS and own <= allowed:
            return ""
    return (
        f"a request takes {own:.1f} ms, at most {allowed:.1f} where the base alone "
        f"takes {base:.1f}"
    )


def _rows_besides(engine: "Engine", blob: PromptBlob) -> int:
    """Rows that a request has besides the text's: those that no prefix saves."""
    if blob.meta.pooling == LIKELIHOOD:
        return sum(len(label) for label in blob.meta.labels)  # at most so many tokens
    return 0 if engine.manifest.prefix else blob.num_virtual_tokens
