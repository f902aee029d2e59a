"""Errors of the build side: everything that export and verify can refuse.

PromptdialError
└── ExportError
    ├── Unsupported      UNSUPPORTED     nothing here can build what was asked
    ├── NoPrefix         NO_PREFIX       the architecture takes no prefix
    ├── ModelNotFound    USAGE           MODEL names nothing
    ├── ModelInvalid     BUNDLE_INVALID  the checkpoint cannot be used
    ├── Offline          OFFLINE         the hub did not answer
    ├── BundleBroken     BUNDLE_INVALID  OUT holds something else, or is damaged
    ├── WrongBase        WRONG_BASE      made from another model
    ├── ParityFailed     PARITY          a graph is too far from PyTorch
    ├── FileFailed       FILE            a file cannot be written or read
    └── NoSpace          NO_SPACE        the disk is full
"""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from promptdial.prompts.errors import PromptdialError


class ExportError(PromptdialError):
    """Root of the build side's errors."""

    code = "UNSUPPORTED"


class Unsupported(ExportError):
    """What was asked for is valid, and no part of promptdial builds it."""

    code = "UNSUPPORTED"


class NoPrefix(ExportError):
    """The architecture's attention cannot take keys and values in front."""

    code = "NO_PREFIX"


class ModelNotFound(ExportError):
    """MODEL is neither a folder, an alias nor a model of the hub."""

    code = "USAGE"


class ModelInvalid(ExportError):
    """The checkpoint is incomplete, damaged or in a format that is not read."""

    code = "BUNDLE_INVALID"


class Offline(ExportError):
    """The hub could not be reached and nothing is cached."""

    code = "OFFLINE"


class BundleBroken(ExportError):
    """The folder is no bundle, or its files do not match its manifest."""

    code = "BUNDLE_INVALID"


class WrongBase(ExportError):
    """Two things that must come from the same base do not."""

    code = "WRONG_BASE"


class ParityFailed(ExportError):
    """A graph's outputs are further from PyTorch than its precision allows."""

    code = "PARITY"


class FileFailed(ExportError):
    """The operating system refused to read or write a file."""

    code = "FILE"


class NoSpace(ExportError):
    """The disk is full."""

    code = "NO_SPACE"


@contextmanager
def file_errors(path: Path) -> Iterator[None]:
    """Turn an OSError about `path` into an error of this tree.

    Raises:
        NoSpace: The disk or the quota is full.
        FileFailed: Any other refusal.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        where = error.filename or path
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NoSpace(f"{where}: {reason}", "free some space") from error
        raise FileFailed(f"{where}: {reason}", "check path and rights") from error
