"""What the log hears of prompts; a user's text is never among it.

The one logger is `promptdial`. INFO: a prompt is ready, refused and why, or was tried.
DEBUG: a prompt left the cache. A program that wants to see it says

    logging.basicConfig()
    logging.getLogger("promptdial").setLevel(logging.INFO)
"""

import logging

from promptdial.prompts.blob import PromptMeta
from promptdial.prompts.errors import PromptdialError

LOGGER = logging.getLogger("promptdial")

# A library is silent until its user asks: without a handler, Python would print
# warnings to stderr.
LOGGER.addHandler(logging.NullHandler())


def ready(meta: PromptMeta, digest: str, length: int, nbytes: int) -> None:
    """A prompt of `length` virtual tokens was made ready and takes `nbytes`."""
    LOGGER.info(
        "prompt %s version %d is ready: %d virtual tokens, %d bytes, %s",
        meta.task,
        meta.version,
        length,
        nbytes,
        digest,
    )


def refused(what: str, error: PromptdialError) -> None:
    """A prompt cannot be used."""
    LOGGER.info("%s is refused: %s", what, error)


def tried(task: str, digest: str, failure: str) -> None:
    """A new version was tried before its first use."""
    became = f"failed its trial: {failure}" if failure else "passed its trial"
    LOGGER.info("prompt %s %s %s", task, digest, became)


def evicted(meta: PromptMeta, nbytes: int) -> None:
    """A prompt left the cache for lack of room."""
    LOGGER.debug(
        "prompt %s version %d left the cache: %d bytes", meta.task, meta.version, nbytes
    )
