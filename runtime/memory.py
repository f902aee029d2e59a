"""Memory that loading leaves behind, given back to the system."""

import ctypes


def trim() -> None:
    """Return free pages of the allocator (glibc; elsewhere nothing happens).

    Parsing a tokenizer and packing weights leave free pages as large as the graph
    that no later request needs.
    """
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError):
        return
