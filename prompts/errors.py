"""Errors of all packages: one root, one table from CODE to exit code.

    PromptdialError
    ├── PromptError            prompts/: the artifact
    │   ├── BlobInvalid        BLOB_INVALID       the file breaks the format
    │   ├── BlobTooBig         QUOTA              the file is over its size limit
    │   ├── BlobTooNew         UPGRADE_RUNTIME    written by a newer format
    │   ├── DataInvalid        DATA_INVALID       a task folder or a row is wrong
    │   ├── TaskNotFound       UNKNOWN_TASK       a source has no blob of that name
    │   ├── FileFailed         FILE               a file cannot be read or written
    │   ├── NoSpace            NO_SPACE           the disk is full
    │   ├── TasksFailed        TASKS_FAILED       some of many tasks were not trained
    │   ├── StoreError         prompts/store/: the prompts of a device
    │   │   ├── StoreInvalid   STORE_INVALID      no store, or a damaged index
    │   │   ├── StoreTooNew    UPGRADE_RUNTIME    written by a newer promptdial
    │   │   ├── StoreReadOnly  READ_ONLY          it cannot be changed from here
    │   │   ├── StoreBusy      BUSY               another process changes it
    │   │   ├── StoreFull      QUOTA              over its limits of count or bytes
    │   │   ├── VersionUnknown UNKNOWN_VERSION    a task has no such version
    │   │   ├── VersionTaken   VERSION_TAKEN      a version with other content
    │   │   ├── VersionInUse   IN_USE             active, previous or pinned
    │   │   ├── BelowFloor     ROLLBACK           older than what was good here
    │   │   ├── NothingBefore  NO_PREVIOUS        no version to go back to
    │   │   ├── OtherBase      WRONG_BASE         a prompt for another base
    │   │   └── MarkedBad      MARKED_BAD         it failed its self-test here
    │   └── UpdateError        prompts/updates/: prompts over the air
    │       ├── Untrusted      UNTRUSTED          signatures or digests are wrong
    │       ├── RolledBack     ROLLBACK           older than what was trusted before
    │       ├── TooBig         TOO_BIG            an answer is over its limit
    │       ├── Offline        OFFLINE            the server cannot be asked
    │       ├── NotARepository NOT_A_REPOSITORY   what answers is something else
    │       ├── Stale          STALE              what is signed has expired
    │       ├── TooSlow        TOO_SLOW           not done when its time was over
    │       ├── ClockBack      CLOCK_BACK         the clock is behind what was seen
    │       ├── UpdateBusy     BUSY               another update runs
    │       ├── KeyRefused     KEY_REFUSED        a signing key cannot be used
    │       └── VersionPublished  VERSION_TAKEN   a published version never changes
    ├── RuntimeFailure         runtime/errors.py
    └── ExportError            export/errors.py

Every error carries a code, what is wrong with the value seen and the value
allowed, and what to do. The command line prints the three on one line.
"""

EXIT_DONE = 0
EXIT_USAGE = 2
EXIT_BAD_INPUT = 3
EXIT_INCOMPATIBLE = 4
EXIT_NOT_TRUSTED = 5
EXIT_OFFLINE = 6
EXIT_ENVIRONMENT = 7

EXIT_CODES: dict[str, int] = {
    "USAGE": EXIT_USAGE,
    "UNKNOWN_TASK": EXIT_USAGE,
    "UNKNOWN_VERSION": EXIT_USAGE,
    "NO_PREVIOUS": EXIT_USAGE,
    "IN_USE": EXIT_USAGE,
    "WRONG_KIND": EXIT_USAGE,
    "TEXT_INVALID": EXIT_BAD_INPUT,
    "BLOB_INVALID": EXIT_BAD_INPUT,
    "BUNDLE_INVALID": EXIT_BAD_INPUT,
    "DATA_INVALID": EXIT_BAD_INPUT,
    "TASKS_FAILED": EXIT_BAD_INPUT,
    "STORE_INVALID": EXIT_BAD_INPUT,
    "VERSION_TAKEN": EXIT_BAD_INPUT,
    "MARKED_BAD": EXIT_BAD_INPUT,
    "SELF_TEST": EXIT_BAD_INPUT,
    "QUOTA": EXIT_BAD_INPUT,
    "NONFINITE": EXIT_BAD_INPUT,
    "WRONG_BASE": EXIT_INCOMPATIBLE,
    "UPGRADE_RUNTIME": EXIT_INCOMPATIBLE,
    "NO_PREFIX": EXIT_INCOMPATIBLE,
    "UNSUPPORTED": EXIT_INCOMPATIBLE,
    "PARITY": EXIT_INCOMPATIBLE,
    "ROLLBACK": EXIT_NOT_TRUSTED,
    "UNTRUSTED": EXIT_NOT_TRUSTED,
    "TOO_BIG": EXIT_NOT_TRUSTED,
    "OFFLINE": EXIT_OFFLINE,
    "STALE": EXIT_OFFLINE,
    "NOT_A_REPOSITORY": EXIT_OFFLINE,
    "TOO_SLOW": EXIT_OFFLINE,
    "CLOSED": EXIT_USAGE,
    "FORKED": EXIT_USAGE,
    "SESSION": EXIT_ENVIRONMENT,
    "MISSING_EXTRA": EXIT_ENVIRONMENT,
    "FILE": EXIT_ENVIRONMENT,
    "NO_SPACE": EXIT_ENVIRONMENT,
    "READ_ONLY": EXIT_ENVIRONMENT,
    "BUSY": EXIT_ENVIRONMENT,
    "CLOCK_BACK": EXIT_ENVIRONMENT,
    "KEY_REFUSED": EXIT_ENVIRONMENT,
    "INTERRUPTED": EXIT_ENVIRONMENT,
    "INTERNAL": EXIT_ENVIRONMENT,
}


def one_line(text: str) -> str:
    """Text as it may stand in a line: no breaks, control signs or lone surrogates.

    A message shows values of files that anyone may have written.
    """
    line = " ".join(text.split())
    if line.isprintable():
        return line
    return "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in line)


class PromptdialError(Exception):
    """Root of every error that promptdial raises on purpose.

    Attributes:
        code: A key of `EXIT_CODES`.
        message: What is wrong, with the value seen and the value allowed.
        hint: What to do about it; the class's own where none is given.
    """

    code = "USAGE"
    default_hint = ""

    def __init__(self, message: str, hint: str = "") -> None:
        message = one_line(message)
        super().__init__(message)
        self.message = message
        self.hint = one_line(hint) or self.default_hint

    def __str__(self) -> str:
        tail = f"; {self.hint}" if self.hint else ""
        return f"{self.code}: {self.message}{tail}"

    @property
    def exit_code(self) -> int:
        """Exit code of the command line for this error."""
        return EXIT_CODES[self.code]


class UsageError(PromptdialError):
    """A command or call that cannot be meant as it was written."""

    code = "USAGE"


class MissingExtra(PromptdialError):
    """An optional dependency is not installed."""

    code = "MISSING_EXTRA"

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(
            f"{what} needs packages that are not installed",
            f"run: pip install 'promptdial[{extra}]'",
        )


class PromptError(PromptdialError):
    """Something is wrong with a prompt artifact."""

    code = "BLOB_INVALID"


class BlobInvalid(PromptError):
    """The file breaks a rule of the blob format; the message names the rule."""

    code = "BLOB_INVALID"
    default_hint = "get the prompt again from its maker"


class BlobTooBig(PromptError):
    """The file is over the size limit of a blob."""

    code = "QUOTA"


class BlobTooNew(PromptError):
    """The blob was written in a format newer than this reader knows."""

    code = "UPGRADE_RUNTIME"


class DataInvalid(PromptError):
    """A task folder, a data row or an interchange folder cannot be used."""

    code = "DATA_INVALID"


class TaskNotFound(PromptError):
    """A prompt source has no blob of that name."""

    code = "UNKNOWN_TASK"


class FileFailed(PromptError):
    """A file cannot be read or written."""

    code = "FILE"


class NoSpace(PromptError):
    """The disk is full; what was there before is unchanged."""

    code = "NO_SPACE"


class TasksFailed(PromptError):
    """Some of many tasks could not be trained; the report says why, one by one."""

    code = "TASKS_FAILED"


class StoreError(PromptError):
    """Root of the errors of a store of prompts."""

    code = "STORE_INVALID"


class StoreInvalid(StoreError):
    """A folder is no store, or the store's index is damaged."""

    code = "STORE_INVALID"
    default_hint = "make one with promptdial store init, and install the prompts again"


class StoreTooNew(StoreError):
    """The store's index was written by a newer promptdial."""

    code = "UPGRADE_RUNTIME"
    default_hint = "upgrade promptdial on this device"


class StoreReadOnly(StoreError):
    """The store lies where nothing can be written."""

    code = "READ_ONLY"
    default_hint = "check permissions, and how the disk is mounted"


class StoreBusy(StoreError):
    """Another process holds the store for longer than one waits."""

    code = "BUSY"
    default_hint = "try again when it is done"


class StoreFull(StoreError):
    """One version more would be over the store's limits."""

    code = "QUOTA"
    default_hint = "remove versions, or run promptdial store gc --keep 2"


class VersionUnknown(StoreError):
    """A task has no such version."""

    code = "UNKNOWN_VERSION"


class VersionTaken(StoreError):
    """A version number is known with other content: a published version never changes.

    The floor counts as well, after the version itself was removed.
    """

    code = "VERSION_TAKEN"
    default_hint = "publish the other content under a new version"


class VersionInUse(StoreError):
    """A version is active, previous or pinned, and must stay."""

    code = "IN_USE"


class BelowFloor(StoreError):
    """A version is older than one that was good on this device."""

    code = "ROLLBACK"
    default_hint = "to go back on purpose, give --allow-below-floor"


class NothingBefore(StoreError):
    """A task has no earlier good version to go back to."""

    code = "NO_PREVIOUS"


class OtherBase(StoreError):
    """A version was made for another base than the one that the store has."""

    code = "WRONG_BASE"
    default_hint = "install the version for this base, or bring both by an update"


class MarkedBad(StoreError):
    """A version failed its self-test on this device; it is not tried again."""

    code = "MARKED_BAD"
    default_hint = "install a newer version"


class UpdateError(PromptError):
    """Root of the errors of updates; what the device had stays as it was."""

    code = "UNTRUSTED"


class Untrusted(UpdateError):
    """Signatures, digests or signed values are not what they must be."""

    code = "UNTRUSTED"
    default_hint = "nothing was changed; tell who runs the repository"


class RolledBack(UpdateError):
    """The repository shows something older than this device has trusted before."""

    code = "ROLLBACK"
    default_hint = "nothing was changed; tell who runs the repository"


class TooBig(UpdateError):
    """An answer has more bytes than it may have."""

    code = "TOO_BIG"
    default_hint = "nothing was changed; tell who runs the repository"


class Offline(UpdateError):
    """The server cannot be reached, or answers with an error."""

    code = "OFFLINE"
    default_hint = "the prompts that are there go on serving; try again later"


class NotARepository(UpdateError):
    """Something answers that is no repository, such as a captive portal."""

    code = "NOT_A_REPOSITORY"
    default_hint = "check --url, and whether this network asks for a login"


class Stale(UpdateError):
    """What the repository shows has expired."""

    code = "STALE"
    default_hint = "the publisher must run promptdial repo refresh"


class TooSlow(UpdateError):
    """A download was not done when its time was over."""

    code = "TOO_SLOW"
    default_hint = "what has come is kept; try again on a better connection"


class ClockBack(UpdateError):
    """The clock is behind a time that this device has seen before."""

    code = "CLOCK_BACK"
    default_hint = "set the clock, then try again"


class UpdateBusy(UpdateError):
    """Another update of the same store, or change of the same repository, runs."""

    code = "BUSY"
    default_hint = "try again when it is done"


class KeyRefused(UpdateError):
    """A signing key is missing, readable by others or of another kind."""

    code = "KEY_REFUSED"


class VersionPublished(UpdateError):
    """A version is published with other content, or a newer one is."""

    code = "VERSION_TAKEN"
    default_hint = "publish the other content under a new version"
