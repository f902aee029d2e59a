"""Progress of long work: a bar on a terminal, plain lines elsewhere, on stderr."""

import sys
from types import TracebackType

from tqdm import tqdm


class Progress:
    """Counts steps of one run. Use as a context manager."""

    def __init__(self, total: int, title: str, done: int = 0) -> None:
        self._live = sys.stderr.isatty()
        self._title = title
        self._bar = tqdm(
            total=total,
            initial=done,
            desc=title,
            file=sys.stderr,
            disable=not self._live,
            leave=False,
        )

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.close()

    def step(self) -> None:
        """One step is done."""
        self._bar.update(1)

    def say(self, line: str) -> None:
        """Show a line of its own, above the bar where there is one."""
        if self._live:
            self._bar.write(f"{self._title}: {line}", file=sys.stderr)
        else:
            say(self._title, line)


def say(title: str, line: str) -> None:
    """Show a line where no bar is up."""
    print(f"{title}: {line}", file=sys.stderr, flush=True)
