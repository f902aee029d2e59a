"""What sessions of fixed sizes must know of an execution provider; one file each."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from promptdial.prompts.errors import MissingExtra


@dataclass(frozen=True)
class Accelerator:
    """A provider that runs graphs of fixed sizes.

    Attributes:
        devices: What it may be asked to run on, the usual one first; () for no choice.
        is_installed: Whether what brings it is there.
        missing: The error that says how to install it.
        version: Its version; raises `missing` where it is not installed.
        add: Put it into onnxruntime's session options, on a device ("" for the usual).
        keeps_contexts: Whether what it has compiled for a device can be read again.
    """

    devices: tuple[str, ...]
    is_installed: Callable[[], bool]
    missing: Callable[[], MissingExtra]
    version: Callable[[], str]
    add: Callable[[Any, str], None]
    keeps_contexts: Callable[[str], bool]
