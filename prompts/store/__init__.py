"""The store of prompts on a device: versions, trials, rollback, tenants.

The names below are loaded when they are first used: a program whose prompts lie in a
folder never loads SQLite.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from promptdial.prompts.store.layout import is_store
    from promptdial.prompts.store.limits import Limits
    from promptdial.prompts.store.making import make_store
    from promptdial.prompts.store.prompt_store import Collected, PromptStore
    from promptdial.prompts.store.rows import Event, Task, Version

__all__ = [
    "Collected",
    "Event",
    "Limits",
    "PromptStore",
    "Task",
    "Version",
    "is_store",
    "make_store",
]

_PLACES = {
    "Collected": "prompt_store",
    "Event": "rows",
    "Limits": "limits",
    "PromptStore": "prompt_store",
    "Task": "rows",
    "Version": "rows",
    "is_store": "layout",
    "make_store": "making",
}


def __getattr__(name: str) -> Any:
    """Load a public name (PEP 562)."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = import_module(f"{__name__}.{_PLACES[name]}")
    return getattr(module, name)
