"""Errors of the runtime.

PromptdialError                  prompts/errors.py
└── RuntimeFailure
    ├── BundleInvalid            BUNDLE_INVALID   a file of the bundle is wrong
    ├── BundleTooNew             UPGRADE_RUNTIME  written by a newer promptdial
    ├── WrongBase                WRONG_BASE       the blob is for another base
    ├── NoPrefix                 NO_PREFIX        the graph takes no such prompt
    ├── PromptRefused            BLOB_INVALID     widths or norms do not fit
    ├── TrialFailed              SELF_TEST        a new prompt failed on this device
    ├── UnknownTask              UNKNOWN_TASK     lists what there is
    ├── WrongKind                WRONG_KIND       e.g. tag() on a classifier
    ├── CannotConstrain          UNSUPPORTED      schema or regex on such a tokenizer
    ├── TextRefused              TEXT_INVALID     empty, not text, surrogates
    ├── NotFinite                NONFINITE        the graph gave NaN or infinity
    ├── EngineClosed             CLOSED           used after close()
    ├── EngineForked             FORKED           used in a forked child
    └── SessionFailed            SESSION          onnxruntime refused
        └── WrongOnDevice        SESSION          a provider computes wrongly
"""

from promptdial.prompts.errors import PromptdialError


class RuntimeFailure(PromptdialError):
    """Root of the runtime's errors."""

    code = "SESSION"


class BundleInvalid(RuntimeFailure):
    """A file of the bundle is missing, changed or broken."""

    code = "BUNDLE_INVALID"
    default_hint = "export or download the bundle again"


class BundleTooNew(RuntimeFailure):
    """The bundle was written by a newer promptdial."""

    code = "UPGRADE_RUNTIME"


class WrongBase(RuntimeFailure):
    """The blob was trained for another base or tokenizer."""

    code = "WRONG_BASE"


class NoPrefix(RuntimeFailure):
    """The bundle's graph cannot take this blob's kind of prompt."""

    code = "NO_PREFIX"


class PromptRefused(RuntimeFailure):
    """The blob is well-formed but its numbers do not fit this base."""

    code = "BLOB_INVALID"
    default_hint = "get the prompt for this base again from its maker"


class TrialFailed(RuntimeFailure):
    """A new prompt failed its self-test, and there is no good one before it."""

    code = "SELF_TEST"
    default_hint = "install a newer version"


class UnknownTask(RuntimeFailure):
    """No prompt of that name; the message lists what there is."""

    code = "UNKNOWN_TASK"


class WrongKind(RuntimeFailure):
    """The prompt is of another kind than the call."""

    code = "WRONG_KIND"


class CannotConstrain(RuntimeFailure):
    """Answers of this bundle cannot follow a schema or a regular expression."""

    code = "UNSUPPORTED"
    default_hint = "use choices, or a bundle of another base"


class TextRefused(RuntimeFailure):
    """The text cannot be encoded."""

    code = "TEXT_INVALID"


class NotFinite(RuntimeFailure):
    """The graph's output holds NaN or infinity: no label is right then."""

    code = "NONFINITE"


class EngineClosed(RuntimeFailure):
    """The engine was closed."""

    code = "CLOSED"


class EngineForked(RuntimeFailure):
    """The engine was opened before a fork; its threads are in the parent."""

    code = "FORKED"


class SessionFailed(RuntimeFailure):
    """onnxruntime could not open or run a graph."""

    code = "SESSION"


class WrongOnDevice(SessionFailed):
    """A provider compiled a graph without complaint, and it computes something else."""

    code = "SESSION"
