"""Execution providers that are plug-ins: libraries that onnxruntime is told of."""

import threading
from functools import cache
from typing import Any

from promptdial.runtime.errors import SessionFailed
from promptdial.runtime.session import first_line

_REGISTERING = threading.Lock()


def devices_of(provider: str, library: str, hint: str) -> list[Any]:
    """The devices of a plug-in; its library is registered once in a process.

    Args:
        provider: onnxruntime's name for it.
        library: Path of the plug-in.
        hint: What to do where it cannot be loaded, or sees no device.

    Raises:
        SessionFailed: It cannot be loaded, or sees no device.
    """
    # First, for the application may have registered it under a name of its own.
    found = _there(provider)
    if found:
        return found
    try:
        with _REGISTERING:
            _register(provider, library)
    except Exception as error:  # onnxruntime raises bare classes of its own
        raise SessionFailed(f"provider {provider}: {first_line(error)}", hint) from None
    found = _there(provider)
    if not found:
        raise SessionFailed(f"provider {provider}: it sees no device", hint)
    return found


def _there(provider: str) -> list[Any]:
    import onnxruntime as ort

    return [item for item in ort.get_ep_devices() if item.ep_name == provider]


@cache
def _register(provider: str, library: str) -> None:
    """Once: onnxruntime refuses a name that it knows. What fails is tried again."""
    import onnxruntime as ort

    ort.register_execution_provider_library(provider, library)
