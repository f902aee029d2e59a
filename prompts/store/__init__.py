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
    from promptdial.prompts.store.device_rows import Device
    from promptdial.prompts.store.figures import Figures
    from promptdial.prompts.store.layout import is_store
    from promptdial.prompts.store.limits import Limits
    from promptdial.prompts.store.making import make_store
    from promptdial.prompts.store.prompt_store import Collected, PromptStore
    from promptdial.prompts.store.rows import Event, Share, Task, Version
    from promptdial.prompts.store.setting_up import set_up_updates
    from promptdial.prompts.store.shifts import Shift
    from promptdial.prompts.store.tally import Tally
    from promptdial.prompts.updates.receiver import BaseState, Following

__all__ = [
    "BaseState",
    "Collected",
    "Comparison",
    "Device",
    "Difference",
    "Event",
    "Figures",
    "Following",
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
    "set_up_updates",
]

_PLACES = {
    "BaseState": "device_rows",
    "Collected": "prompt_store",
    "Comparison": "comparison",
    "Device": "device_rows",
    "Difference": "comparison",
    "Event": "rows",
    "Figures": "figures",
    "Following": "device_rows",
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
    "set_up_updates": "setting_up",
}


def __getattr__(name: str) -> Any:
    """Load a public name (PEP 562)."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = import_module(f"{__name__}.{_PLACES[name]}")
    return getattr(module, name)
