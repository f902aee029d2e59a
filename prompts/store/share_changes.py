"""What becomes of a task that two versions answer, inside one transaction.

The active version, the incumbent, is good; the challenger answers a share of the
requests once its trial passed. Whatever changes the active version ends it, and so
does a challenger that goes bad: the incumbent then answers alone.
"""

import secrets

from promptdial.prompts.errors import NothingBefore, UsageError, VersionInUse
from promptdial.prompts.metadata import PromptMeta
from promptdial.prompts.store.changes import (
    refuse_bad,
    refuse_below_floor,
    refuse_other_base,
)
from promptdial.prompts.store.edits import Edits
from promptdial.prompts.store.rows import GOOD, STAGED, TRIAL, Share, Version

MAX_PERCENT = 99
"""All of the requests are not a share: activate the version."""

_EXPERIMENT_BITS = 62
"""What SQLite keeps in an integer."""


def begin_share(
    edits: Edits,
    task: str,
    version: int,
    percent: int,
    *,
    allow_below_floor: bool = False,
) -> Version:
    """Let a version answer a share of the requests; one never good is on trial first.

    Answers are counted anew with every share, and so they are of one percentage.

    Args:
        edits: The tenant's.
        task: The task.
        version: The challenger.
        percent: 1 to MAX_PERCENT.
        allow_below_floor: Let it be older than one that was good; it is logged.

    Raises:
        UsageError: The percentage is out of range.
        TaskNotFound, VersionUnknown: There is no such version.
        MarkedBad: It failed here.
        VersionInUse: It is the active one.
        NothingBefore: No good version is active.
        BelowFloor: It is older than one that was good here.
        OtherBase: It is for another base than the store's.
    """
    if not 1 <= percent <= MAX_PERCENT:
        raise UsageError(
            f"{percent} percent, allowed: 0 to {MAX_PERCENT}",
            "activate the version that shall answer all requests",
        )
    wanted = edits.version(task, version)
    refuse_bad(wanted)
    now = edits.task(task)
    if version == now.active:
        raise VersionInUse(
            f"version {version} of task {task!r} is active",
            "share with another one; the active one answers the rest",
        )
    if now.active is None or edits.version(task, now.active).state != GOOD:
        raise NothingBefore(
            f"task {task!r} has no good active version beside which {version} could "
            f"answer ({now.active or 'none'})",
            "activate one, and let it answer a request",
        )
    refuse_other_base(edits, wanted)
    refuse_below_floor(edits, wanted, now, allow_below_floor)
    if wanted.state == STAGED:
        edits.set_state(wanted, TRIAL)
    number = secrets.randbits(_EXPERIMENT_BITS)
    edits.set_share(Share(task, now.active, version, percent, number))
    edits.log(task, version, "shared", f"{percent} %, the rest is {now.active}'s")
    return edits.version(task, version)


def refuse_unlike(incumbent: PromptMeta, challenger: PromptMeta) -> None:
    """Refuse two versions whose answers an application cannot take in turn.

    Raises:
        UsageError: They are of different kinds, or embed: a vector says no version, and
            those of two cannot be compared with each other.
    """
    if incumbent.kind != challenger.kind:
        raise UsageError(
            f"version {challenger.version} of task {challenger.task!r} is "
            f"{challenger.kind}, {incumbent.version} is {incumbent.kind}",
            "share versions of one kind",
        )
    if challenger.kind == "embedding":
        raise UsageError(
            f"task {challenger.task!r} is {challenger.kind}, and vectors of two "
            "versions cannot be compared",
            "activate the version, and embed everything anew",
        )


def end_share(edits: Edits, task: str, version: int) -> Version:
    """Let the active version answer all requests again.

    Raises:
        TaskNotFound, VersionUnknown: There is no such version.
        UsageError: It answers no share.
    """
    found = edits.version(task, version)
    if not found.share:
        raise UsageError(
            f"version {version} of task {task!r} answers no share", "see store list"
        )
    edits.end_share(task)
    return edits.version(task, version)
