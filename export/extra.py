"""The packages of the `export` extra: imported late, named when they are missing."""

from collections.abc import Iterator
from contextlib import contextmanager

from promptdial.prompts.errors import MissingExtra

PACKAGES = frozenset(
    {
        "huggingface_hub",
        "onnx",
        "onnxscript",
        "optimum",
        "requests",
        "safetensors",
        "torch",
        "transformers",
    }
)


@contextmanager
def needs_export_extra(what: str) -> Iterator[None]:
    """Put around the imports of what needs the extra.

    Args:
        what: What needs it, for the message.

    Raises:
        MissingExtra: One of the extra's packages cannot be imported.
    """
    try:
        yield
    except ImportError as error:
        if (error.name or "").split(".")[0] in PACKAGES:
            raise MissingExtra(what, "export") from error
        raise
