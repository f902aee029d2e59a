"""The self-test of a prompt: golden inputs have their golden answers on this device.

A blob carries a few inputs whose answers were clear where it was made, by a margin far
above what quantisation and other processors change (DESIGN: `golden`). Of prompts that
write it is the beginning of the greedy answer, whatever options the prompt has: each
token more is one more that another processor may choose otherwise.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from promptdial.prompts.blob import Golden, PromptMeta
from promptdial.runtime.answers import Classification, Spans
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


def run_self_test(engine: "Engine", meta: PromptMeta) -> SelfTest:
    """Ask a prompt its golden inputs.

    Args:
        engine: One that has the prompt.
        meta: What the prompt's blob says about itself.

    Raises:
        RuntimeFailure: The prompt cannot be used at all.
    """
    failures = []
    for golden in meta.golden:
        found = ask_golden(engine, meta, golden)
        if found != golden.label:
            failures.append(f"{golden.text!r} is {found!r}, not {golden.label!r}")
    return SelfTest(meta.task, len(meta.golden), tuple(failures))


def ask_golden(engine: "Engine", meta: PromptMeta, golden: Golden) -> str:
    """The answer of a prompt to a golden input, as the input's label is written.

    Raises:
        RuntimeFailure: The prompt cannot be used.
    """
    if meta.kind == "token":
        # Golden texts are joined words: split again as they were.
        return " ".join(engine.tag(meta.task, golden.text.split(" ")).tags)
    if meta.kind == "generation":
        return engine.generate(meta.task, golden.text, **golden_changes(meta)).text
    answer = engine.run(meta.task, golden.text, golden.text_pair)
    if isinstance(answer, Spans):
        return " ".join(answer.tags)
    return answer.label if isinstance(answer, Classification) else ""
