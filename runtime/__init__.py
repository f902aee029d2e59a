"""The device side: opens a bundle, loads prompts, answers requests.

Needs numpy, onnxruntime and tokenizers, and never loads torch or transformers.
"""

from promptdial.runtime.answers import Classification, Compatibility, Span, Spans
from promptdial.runtime.engine import Engine
from promptdial.runtime.errors import RuntimeFailure
from promptdial.runtime.source import PromptSource

__all__ = [
    "Classification",
    "Compatibility",
    "Engine",
    "PromptSource",
    "RuntimeFailure",
    "Span",
    "Spans",
]
