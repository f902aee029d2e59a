"""What a sub-command of `promptdial` is: three functions and a line of help."""

import dataclasses
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Mapping
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
        parts: Commands that the first word chooses among, such as `repo init`; where
            there are some, they are what is run.
    """

    summary: str
    configure: Callable[[ArgumentParser], None]
    run: Callable[[Namespace], dict[str, Any]]
    show: Callable[[dict[str, Any]], str] | None = None
    streams: bool = False
    parts: Mapping[str, "Command"] = dataclasses.field(default_factory=dict)


def command_of_parts(summary: str, parts: Mapping[str, Command]) -> Command:
    """A command whose first word chooses among parts."""

    def configure(parser: ArgumentParser) -> None:
        parser.formatter_class = RawDescriptionHelpFormatter
        width = max(len(name) for name in parts)
        lines = [f"  {name:{width}}  {part.summary}" for name, part in parts.items()]
        parser.epilog = "\n".join(["parts, each with --help:", *lines])
        parser.add_argument("part", metavar="PART", choices=tuple(parts), help="below")

    def run(args: Namespace) -> dict[str, Any]:
        raise AssertionError(f"part {args.part} is run by the command line")

    return Command(summary, configure, run, parts=parts)
