"""Progress of a download: a bar on a terminal, plain lines elsewhere."""

import time
from typing import TextIO

_WIDTH = 24
_EVERY = 0.1


class Progress:
    """Shows how far files are. One at a time."""

    def __init__(self, stream: TextIO | None) -> None:
        """Take where to show it; None for nowhere."""
        self._stream = stream
        self._live = stream is not None and stream.isatty()
        self._label, self._total, self._came, self._shown = "", 0, 0, 0.0

    def begin(self, label: str, total: int, came: int = 0) -> None:
        """A file of `total` bytes begins; `came` of them were here."""
        self._label, self._total, self._came, self._shown = label, total, came, 0.0
        self._draw()

    def advance(self, size: int) -> None:
        """Bytes came."""
        self._came += size
        if time.monotonic() - self._shown >= _EVERY:
            self._draw()

    def end(self) -> None:
        """The file is here."""
        if self._stream is None:
            return
        if self._live:
            self._draw()
            self._stream.write("\n")
        else:
            self._stream.write(f"promptdial: {self._label}: {self._total:,} bytes\n")
        self._stream.flush()

    def _draw(self) -> None:
        if self._stream is None or not self._live:
            return
        self._shown = time.monotonic()
        share = min(1.0, self._came / self._total) if self._total else 1.0
        bar = "#" * round(share * _WIDTH)
        line = (
            f"\r{self._label[:40]:40} [{bar:{_WIDTH}}] {share:4.0%} {self._total:,} B"
        )
        self._stream.write(line)
        self._stream.flush()
