"""How much a store holds, unless its maker says otherwise."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Bounds of a store, all tenants together.

    Attributes:
        versions: Versions of all tasks.
        bytes: Bytes of their blobs.
    """

    versions: int = 20_000
    bytes: int = 1 << 30


MAX_TRIES = 3
"""Trials of a version: one that failed, or never ended, so often is marked bad."""

KEPT_EVENTS = 1_000
"""Entries of a store's log; the oldest leave first."""

BUSY_SECONDS = 10.0
"""Time to wait for another process that changes the store."""
