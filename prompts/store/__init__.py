"""The store of prompts on a device: versions, trials, shares, rollback, tenants.

The names below are loaded when they are first used: a program whose prompts lie in a
folder never loads SQLite.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from promptdial.prompts.store.comparison import (
        Comparison,
        Difference,
        Mean,
        Side,
    )
    from promptdial.prompts.store.figures import Figures
    from promptdial.prompts.store.layout import is_store
    from promptdial.prompts.store.limits import Limits
    from promptdial.prompts.store.making import make_store
    from promptdial.prompts.store.prompt_store import Collected, PromptStore
    from promptdial.prompts.store.rows import Event, Share, Task, Version
    from promptdial.prompts.store.shifts import Shift
    from promptdial.prompts.store.tally import Tally

__all__ = [
    "Collected",
    "Comparison",
    "Difference",
    "Event",
    "Figures",
    "Limits",
    "Mean",
    "PromptStore",
    "Share",
    "Shift",
    "Side",
    "Tally",
    "Task",
    "Version",
    "is_store",
    "make_store",
]

_PLACES = {
    "Collected": "prompt_store",
    "Comparison": "comparison",
    "Difference": "comparison",
    "Event": "rows",
    "Figures": "figures",
    "Limits": "limits",
    "Mean": "comparison",
    "PromptStore": "prompt_store",
    "Share": "rows",
    "Shift": "shifts",
    "Side": "comparison",
    "Tally": "tally",
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
