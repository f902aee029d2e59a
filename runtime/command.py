"""What a sub-command of `promptdial` is: three functions and a line of help."""

import dataclasses
from argparse import SUPPRESS, ArgumentParser, Namespace
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
    """

    summary: str
    configure: Callable[[ArgumentParser], None]
    run: Callable[[Namespace], dict[str, Any]]
    show: Callable[[dict[str, Any]], str] | None = None
    streams: bool = False


def add_common_options(parser: ArgumentParser) -> None:
    """The options that every command has, and every part of one."""
    # Suppressed: a part must not undo what was given before its name.
    parser.add_argument(
        "--json",
        action="store_true",
        default=SUPPRESS,
        help="one JSON object on stdout",
    )
    parser.add_argument(
        "-v",
        "--verbose",
        action="count",
        default=SUPPRESS,
        help="say on stderr what becomes of prompts; twice for more",
    )


def command_of_parts(summary: str, parts: Mapping[str, Command]) -> Command:
    """A command whose first word chooses among parts, such as `repo init`."""

    def configure(parser: ArgumentParser) -> None:
        chosen = parser.add_subparsers(dest="part", metavar="PART", required=True)
        for name, part in parts.items():
            own = chosen.add_parser(name, help=part.summary, description=part.summary)
            add_common_options(own)
            part.configure(own)

    def run(args: Namespace) -> dict[str, Any]:
        return parts[args.part].run(args)

    return Command(summary, configure, run)
