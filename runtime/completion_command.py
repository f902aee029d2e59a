"""The completion command: a script for bash, zsh or fish."""

import argparse
from typing import Any

from promptdial.runtime.cli import COMMANDS, command_parser, load_command
from promptdial.runtime.command import Command
from promptdial.runtime.completion import WRITERS, CommandWords, words_of


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=sorted(WRITERS))


def _run(args: argparse.Namespace) -> dict[str, Any]:
    words = [_words(name) for name in COMMANDS]
    return {"shell": args.shell, "script": WRITERS[args.shell](words)}


def _words(name: str) -> CommandWords:
    command = load_command(name)
    parts = [
        words_of(title, part.summary, command_parser(title, part))
        for title, part in (
            (f"{name} {word}", part) for word, part in command.parts.items()
        )
    ]
    summary = COMMANDS[name][2]
    return words_of(name, summary, command_parser(name, command), parts)


def _show(answer: dict[str, Any]) -> str:
    return str(answer["script"]).rstrip("\n")


completion = Command(
    summary="print a script that lets a shell complete commands and options",
    configure=_configure,
    run=_run,
    show=_show,
)
