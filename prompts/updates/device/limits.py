"""How much a repository may cost a device: bytes, seconds, and the meter of both."""

import time
from dataclasses import dataclass

from promptdial.prompts.errors import TooBig, TooSlow


@dataclass(frozen=True)
class Limits:
    """The most that an update may cost, whatever answers.

    Attributes:
        wait_seconds: Longest silence of a connection, and longest time to connect.
        metadata_seconds: All metadata of one update together.
        metadata_bytes: All metadata of one update together, headers counted.
        file_seconds: One file, besides what its size allows.
        least_rate: Bytes a second; a file may take its length over this much longer.
        headroom: Bytes over its length that a file's download may cost (headers,
            attempts that began again).
        attempts: Connections that a file's download may take; each goes on where the
            one before broke off.
        root_bytes: One root.
        timestamp_bytes: One timestamp.
        snapshot_bytes: One snapshot.
        list_bytes: One list of targets, when its length is not signed.
        roots: New roots in one update.
        lists: Lists of targets that the search for one target may go through.
        version_jump: Timestamp versions that may lie between two updates.
    """

    wait_seconds: float = 10.0
    metadata_seconds: float = 60.0
    metadata_bytes: int = 4_000_000
    file_seconds: float = 60.0
    least_rate: int = 2_000
    headroom: int = 65_536
    attempts: int = 3
    root_bytes: int = 65_536
    timestamp_bytes: int = 16_384
    snapshot_bytes: int = 262_144
    list_bytes: int = 262_144
    roots: int = 64
    lists: int = 8
    version_jump: int = 10_000_000


DEFAULT_LIMITS = Limits()


class Meter:
    """Counts what a phase costs and stops it when that is too much.

    Attributes:
        received: Bytes that came over the network since the meter was made, headers
            among them.
    """

    def __init__(self) -> None:
        self.received = 0
        self._most_bytes = 0
        self._deadline = 0.0
        self._seconds = 0.0
        self._begun_at = 0

    def begin(self, seconds: float, most_bytes: int) -> None:
        """Begin a phase that may cost this much."""
        self._seconds = seconds
        self._deadline = time.monotonic() + seconds
        self._begun_at = self.received
        self._most_bytes = most_bytes

    def left(self) -> float:
        """Seconds until the phase must be over.

        Raises:
            TooSlow: It must be over now.
        """
        left = self._deadline - time.monotonic()
        if left <= 0:
            came = self.received - self._begun_at
            raise TooSlow(
                f"not done after {self._seconds:.3g} s, {came} bytes had come",
            )
        return left

    def count(self, size: int) -> None:
        """Count bytes that came.

        Raises:
            TooBig: They are more than the phase may cost.
        """
        self.received += size
        came = self.received - self._begun_at
        if came > self._most_bytes:
            raise TooBig(f"{came} bytes came, allowed: {self._most_bytes}")
