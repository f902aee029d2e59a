"""The command line: finds a command by name, loads it, prints its answer."""

import argparse
import importlib
import json
import logging
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

from promptdial.prompts.errors import (
    EXIT_CODES,
    EXIT_DONE,
    EXIT_USAGE,
    MissingExtra,
    PromptdialError,
    UsageError,
)
from promptdial.runtime.command import Command

COMMANDS: dict[str, tuple[str, str, str]] = {
    "export": ("promptdial.export.commands:export", "export", "MODEL to bundle"),
    "verify": (
        "promptdial.export.commands:verify",
        "export",
        "parity of a bundle with PyTorch",
    ),
    "train": (
        "promptdial.prompts.training.commands:train",
        "train",
        "train a prompt for a task",
    ),
    "train-pack": (
        "promptdial.prompts.training.packs.shared_command:train_pack",
        "train",
        "train one pack for many tasks",
    ),
    "train-all": (
        "promptdial.prompts.training.many.many_command:train_all",
        "train",
        "train every task of a folder",
    ),
    "eval": (
        "promptdial.runtime.eval_command:evaluate",
        "",
        "metric of a blob on rows",
    ),
    "run": ("promptdial.runtime.run_command:run", "", "answers to texts"),
    "inspect": (
        "promptdial.runtime.inspect_command:inspect",
        "",
        "a blob, a pack, a bundle or a store",
    ),
    "store": (
        "promptdial.runtime.store_command:store",
        "",
        "prompts of a device: install, activate, roll back",
    ),
    "doctor": ("promptdial.runtime.doctor_command:doctor", "", "what is installed"),
    "pack": ("promptdial.prompts.commands:pack", "", "PEFT folder or .npy to blob"),
    "unpack": (
        "promptdial.prompts.commands:unpack",
        "",
        "blob to PEFT folder, pack to blobs",
    ),
    "repo": (
        "promptdial.prompts.updates.publishing.commands:repo",
        "ota",
        "the publishing side of updates",
    ),
    "update": (
        "promptdial.prompts.updates.device.commands:update",
        "ota",
        "bring a device's prompts up to date",
    ),
    "completion": (
        "promptdial.runtime.completion_command:completion",
        "",
        "script that lets a shell complete commands and options",
    ),
    "demo": (
        "promptdial.prompts.training.demo_command:demo",
        "demo",
        "the whole road on MiniLM, offline",
    ),
}
"""Name to (where it is, extra that it needs, one line). Loaded only when asked for."""

_OURS = "promptdial"


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line like all others."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message, f"see {self.prog} --help")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: Arguments without the program's name; None for the process's own.

    Returns:
        The exit code (prompts/errors.py).
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        return _dispatch(arguments)
    except PromptdialError as error:
        return _fail(error.code, str(error).removeprefix(f"{error.code}: "))
    except KeyboardInterrupt:
        return _fail("INTERRUPTED", "stopped; nothing half-written is left")
    except BrokenPipeError:
        # The reader of stdout went away (`| head`): nothing to say to it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_DONE
    except Exception as error:
        if os.environ.get("PROMPTDIAL_DEBUG"):
            traceback.print_exc()
        return _fail(
            "INTERNAL",
            f"{type(error).__name__}: {error}; "
            "set PROMPTDIAL_DEBUG=1 for a traceback, and report it",
        )


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_overview())
        return EXIT_DONE if arguments else EXIT_USAGE
    if arguments[0] == "--version":
        print(_version_line())
        return EXIT_DONE
    name = arguments[0]
    if name not in COMMANDS:
        known = ", ".join(COMMANDS)
        return _fail("USAGE", f"no command {name!r}; choose from {known}")
    with _extra_named(name):
        command = load_command(name)
        words = arguments[1:]
        title, command = _part(name, command, words)
        # Intermixed: texts may come before and after options.
        args = command_parser(title, command).parse_intermixed_args(words)
        with _log_shown(args.verbose):
            answer = command.run(args)
    if not command.streams:
        _print_answer(command, answer, args.json)
    return EXIT_DONE


def _part(name: str, command: Command, words: list[str]) -> tuple[str, Command]:
    """The part that the first word chooses, taken out of the words; or the command.

    Options may stand before it, each with its value.
    """
    before = ""
    for number, word in enumerate(words):
        if word in command.parts:
            del words[number]
            return f"{name} {word}", command.parts[word]
        if not word.startswith("-") and not before.startswith("-"):
            break
        before = word
    return name, command


def load_command(name: str) -> Command:
    """Import a command: light, since what needs an extra is imported when it runs."""
    module, attribute = COMMANDS[name][0].split(":")
    command = getattr(importlib.import_module(module), attribute)
    assert isinstance(command, Command)
    return command


def command_parser(name: str, command: Command) -> argparse.ArgumentParser:
    """The parser of a command, with the options that every command has."""
    # No abbreviations: one that is clear today means another option tomorrow.
    parser = _Parser(
        prog=f"promptdial {name}", description=command.summary, allow_abbrev=False
    )
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument(
        "-v",
        "--verbose",
        action="count",
        default=0,
        help="say on stderr what becomes of prompts; twice for more",
    )
    command.configure(parser)
    return parser


@contextmanager
def _extra_named(name: str) -> Iterator[None]:
    """Name the pip command for a package that a command misses.

    Raises:
        MissingExtra: Something that it needs is not installed.
    """
    extra = COMMANDS[name][1]
    try:
        yield
    except ModuleNotFoundError as error:
        # One of our own modules missing is a broken installation, not an extra.
        if not extra or (error.name or "").split(".")[0] == _OURS:
            raise
        raise MissingExtra(f"promptdial {name}", extra) from None


@contextmanager
def _log_shown(verbose: int) -> Iterator[None]:
    """Show the log on stderr while a command runs: -v INFO, -vv DEBUG."""
    if not verbose:
        yield
        return
    logger, handler = logging.getLogger(_OURS), logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("promptdial: %(levelname)s: %(message)s"))
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO if verbose == 1 else logging.DEBUG)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)


def _version_line() -> str:
    from promptdial.runtime.doctor_command import package_versions

    found = package_versions()
    own = found.pop("promptdial")
    others = ", ".join(f"{name} {version}" for name, version in found.items())
    return f"promptdial {own} ({others})"


def _print_answer(command: Command, answer: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(answer, ensure_ascii=False))
    elif command.show is not None:
        text = command.show(answer)
        if text:
            print(text)
    else:
        for key, value in answer.items():
            print(f"{key}: {_plain(value)}")
    sys.stdout.flush()


def _plain(value: object) -> str:
    if isinstance(value, dict | list):
        return json.dumps(value, ensure_ascii=False)
    return str(value)


def _overview() -> str:
    lines = ["usage: promptdial COMMAND ... [--json] [-v]", ""]
    lines += [f"  {name:10} {line}" for name, (_, _, line) in COMMANDS.items()]
    lines += ["", "promptdial COMMAND --help tells more; --version the version"]
    return "\n".join(lines)


def _fail(code: str, message: str) -> int:
    line = " ".join(message.split())
    print(f"promptdial: {code}: {line}", file=sys.stderr)
    return EXIT_CODES[code]
