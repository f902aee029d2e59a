"""What a sub-command of `promptdial` is: three functions and a line of help."""

import dataclasses
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from typing import Any


@dataclasses.dataclass(frozen=True)
class Command:
    """One sub-command, loaded by name only when it is asked for.

    Attributes:
        summary: One line for `promptdial --help`.
        configure: Adds the command's arguments to its parser.
        run: Does the work; the returned object is the command's answer.
        show: The answer as text for people; None prints `key: value` lines.
        streams: `run` prints its answers itself, one object a line with --json.
    """

    summary: str
    configure: Callable[[ArgumentParser], None]
    run: Callable[[Namespace], dict[str, Any]]
    show: Callable[[dict[str, Any]], str] | None = None
    streams: bool = False
