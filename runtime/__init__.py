"""The device side: opens a bundle, loads prompts, answers requests.

Needs numpy, onnxruntime and tokenizers, and never loads torch or transformers. The
names below are loaded when they are first used, so that the command line can catch
what happens while they load, Ctrl-C among it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from promptdial.runtime.answers import (
        Classification,
        Compatibility,
        Generation,
        Span,
        Spans,
        Timing,
    )
    from promptdial.runtime.engine import Engine
    from promptdial.runtime.errors import RuntimeFailure
    from promptdial.runtime.generating import TextStream
    from promptdial.runtime.source import PromptSource

__all__ = [
    "Classification",
    "Compatibility",
    "Engine",
    "Generation",
    "PromptSource",
    "RuntimeFailure",
    "Span",
    "Spans",
    "TextStream",
    "Timing",
]

_PLACES = {
    "Classification": "answers",
    "Compatibility": "answers",
    "Engine": "engine",
    "Generation": "answers",
    "PromptSource": "source",
    "RuntimeFailure": "errors",
    "Span": "answers",
    "Spans": "answers",
    "TextStream": "generating",
    "Timing": "answers",
}


def __getattr__(name: str) -> Any:
    """Load a public name (PEP 562)."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = import_module(f"{__name__}.{_PLACES[name]}")
    return getattr(module, name)
