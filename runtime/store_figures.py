"""What a store counted of answers, for people: two versions compared, and shifts."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from promptdial.prompts.store import PromptStore

NO_ACCURACY = (
    "confidence is no accuracy: a worse version may be surer of itself; eval on "
    "labelled rows tells"
)

SHOWN = (
    "answers",
    "shifts",
    "compared",
    "percent",
    "incumbent",
    "challenger",
    "differences",
    "note",
)
"""Keys of an answer that `lines_of` shows."""


def compared(store: PromptStore, task: str) -> dict[str, Any]:
    """The newest share of a task: figures of both versions, and what differs.

    Raises:
        TaskNotFound: There is no such task.
        UsageError: No version of it ever answered a share.
    """
    found = store.figures.compare(task)
    return {
        "compared": task,
        "percent": found.share.percent,
        "incumbent": asdict(found.incumbent),
        "challenger": asdict(found.challenger),
        "differences": [asdict(item) for item in found.differences],
        "note": NO_ACCURACY,
    }


def counted(store: PromptStore, task: str | None = None) -> dict[str, Any]:
    """Answers by version, and the shifts among them; of one task, or of all."""
    of = {(item.task, item.version) for item in store.versions(task)}
    tallies = store.figures.counted()
    return {
        "answers": [
            {"task": key[0], "version": key[1], "answers": tallies[key].answers}
            for key in sorted(of & tallies.keys())
        ],
        "shifts": [
            asdict(item)
            for item in store.figures.shifts()
            if (item.task, item.version) in of
        ],
    }


def lines_of(answer: dict[str, Any]) -> Iterator[str]:
    """What is counted or compared in a command's answer, as lines for people."""
    for item in answer.get("answers", ()):
        yield f"{item['task']} {item['version']}\t{item['answers']} answers"
    for item in answer.get("shifts", ()):
        yield f"{item['task']} {item['version']}\tshifted: {item['says']}"
    if "compared" not in answer:
        return
    percent = answer["percent"]
    state = f"{percent} %" if percent else "over"
    for name, share in (("incumbent", "the rest"), ("challenger", state)):
        yield _side(answer["compared"], name, share, answer[name])
    for item in answer["differences"]:
        yield item["says"]
    yield answer["note"]


def _side(task: str, name: str, share: str, side: dict[str, Any]) -> str:
    parts = [f"{task} {side['version']}", name, share, f"{side['answers']} answers"]
    for key, digits in (("confidence", 3), ("latency_ms", 2)):
        found = side[key]
        if found is not None:
            low, high = found["low"], found["high"]
            parts.append(
                f"{key} {found['mean']:.{digits}f} ({low:.{digits}f} to "
                f"{high:.{digits}f})"
            )
    if side["abstained"] is not None:
        parts.append(f"abstained {100 * side['abstained']:.1f} %")
    return "\t".join(parts)
