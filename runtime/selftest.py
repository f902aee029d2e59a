"""The self-test of a prompt: golden inputs have their golden answers on this device.

A blob carries a few inputs whose answers were clear where it was made, by a margin far
above what quantisation and other processors change (DESIGN: `golden`). Of prompts that
write it is the beginning of the greedy answer, whatever options the prompt has: each
token more is one more that another processor may choose otherwise.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from promptdial.prompts.blob import Golden, PromptMeta
from promptdial.runtime.answers import Classification
from promptdial.runtime.generation_options import CONSTRAINTS

if TYPE_CHECKING:
    from promptdial.runtime.engine import Engine

GOLDEN_TOKENS = 8


def golden_changes(meta: PromptMeta) -> dict[str, Any]:
    """Options that golden answers are written with, over the prompt's own.

    Greedy and ended by the base's end tokens alone; a constraint of the prompt's stays.
    """
    changes: dict[str, Any] = {
        "max_new_tokens": GOLDEN_TOKENS,
        "temperature": 0.0,
        "repetition_penalty": 1.0,
    }
    if not any(key in meta.generation for key in CONSTRAINTS):
        changes["stop"] = ()
    return changes


@dataclass(frozen=True)
class SelfTest:
    """What the golden inputs of one prompt showed.

    Attributes:
        task: The prompt's task.
        asked: Number of golden inputs.
        failures: One line for each wrong answer: input, answer, wanted answer.
    """

    task: str
    asked: int
    failures: tuple[str, ...]


@dataclass(frozen=True)
class GoldenAnswer:
    """The answer to a golden input.

    Attributes:
        label: As the input's label is written.
        margin: Between the two best scores; None where the kind has no scores.
    """

    label: str
    margin: float | None = None


def run_self_test(engine: "Engine", meta: PromptMeta) -> SelfTest:
    """Ask a prompt its golden inputs.

    Args:
        engine: One that has the prompt.
        meta: What the prompt's blob says about itself.

    Raises:
        RuntimeFailure: The prompt cannot be used at all.
    """
    failures = wrong_answers(meta, ask_all(engine, meta))
    return SelfTest(meta.task, len(meta.golden), failures)


def ask_all(engine: "Engine", meta: PromptMeta) -> list[GoldenAnswer]:
    """The answers to all golden inputs of a prompt, in their order.

    Raises:
        RuntimeFailure: The prompt cannot be used.
    """
    return [ask_golden(engine, meta, golden) for golden in meta.golden]


def wrong_answers(meta: PromptMeta, answers: Sequence[GoldenAnswer]) -> tuple[str, ...]:
    """One line for each golden input whose answer is wrong."""
    return tuple(
        f"{golden.text!r} is {found.label!r}, not {golden.label!r}"
        for golden, found in zip(meta.golden, answers, strict=True)
        if found.label != golden.label
    )


def ask_golden(engine: "Engine", meta: PromptMeta, golden: Golden) -> GoldenAnswer:
    """The answer of a prompt to a golden input.

    Raises:
        RuntimeFailure: The prompt cannot be used.
    """
    if meta.kind == "token":
        # Golden texts are joined words: split again as they were.
        spans = engine.tag(meta.task, golden.text.split(" "))
        return GoldenAnswer(" ".join(spans.tags))
    if meta.kind == "generation":
        written = engine.generate(meta.task, golden.text, **golden_changes(meta))
        return GoldenAnswer(written.text)
    answer = engine.run(meta.task, golden.text, golden.text_pair)
    if not isinstance(answer, Classification):
        return GoldenAnswer("")
    best, second = [*sorted(answer.scores.values(), reverse=True), 0.0][:2]
    return GoldenAnswer(answer.label, best - second)
