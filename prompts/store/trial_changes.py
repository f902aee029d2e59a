"""What becomes of a version on trial, inside one transaction.

As Android does with a slot that was never booted
(https://source.android.com/docs/core/ota/ab): tries are counted before, the floor
against rollback rises after, and what fails leaves by itself.
"""

from promptdial.prompts.store.edits import Edits
from promptdial.prompts.store.limits import MAX_TRIES
from promptdial.prompts.store.rows import BAD, GOOD, TRIAL, Version, versions_of


def begin_trial(edits: Edits, task: str, digest: str) -> bool:
    """Count a trial before it begins; False where there is none to begin.

    A version whose last try never ended, as a crash leaves it, is marked bad here.
    """
    found = _on_trial(edits, task, digest)
    if found is None:
        return False
    if found.tries >= MAX_TRIES:
        said = found.failure or f"{found.tries} trials were begun and never ended"
        _mark_bad(edits, found, said)
        return False
    edits.set_tries(found, found.tries + 1)
    return True


def drop_trial(edits: Edits, task: str, digest: str) -> None:
    """Take back a trial that was stopped and says nothing about the prompt."""
    found = _on_trial(edits, task, digest)
    if found is not None:
        edits.set_tries(found, max(0, found.tries - 1))


def end_trial(edits: Edits, task: str, digest: str, failure: str) -> None:
    """A trial passed (no failure) or failed; nothing for a version that is not in use.

    It becomes good, and the floor rises to it unless it answers a share alone: then it
    rises when the version is activated, so that the one beside it stays usable. Or the
    last try is used up: it is bad, and the good version before or beside it answers.
    """
    found = _on_trial(edits, task, digest)
    if found is None:
        return
    if not failure:
        edits.set_state(found, GOOD)
        if found.active:
            edits.raise_floor(found)
        edits.log(task, found.version, GOOD)
    elif found.tries >= MAX_TRIES:
        _mark_bad(edits, found, failure)
    else:
        edits.set_state(found, TRIAL, failure)
        edits.log(task, found.version, "failed", failure)


def _on_trial(edits: Edits, task: str, digest: str) -> Version | None:
    for item in versions_of(edits.connection, edits.tenant, task):
        in_use = item.active or item.share
        if item.digest == digest and in_use and item.state == TRIAL:
            return item
    return None


def _mark_bad(edits: Edits, found: Version, failure: str) -> None:
    edits.set_state(found, BAD, failure)
    edits.remember_bad(found.digest, failure)
    edits.repoint(found.task)
    edits.log(found.task, found.version, BAD, failure)
