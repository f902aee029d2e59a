"""The command line: finds a command by name, loads it, prints its answer."""

import argparse
import importlib
import json
import os
import sys
import traceback
from collections.abc import Sequence
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
    "eval": (
        "promptdial.runtime.eval_command:evaluate",
        "",
        "metric of a blob on rows",
    ),
    "run": ("promptdial.runtime.run_command:run", "", "answers to texts"),
    "inspect": ("promptdial.runtime.inspect_command:inspect", "", "a blob or a bundle"),
    "doctor": ("promptdial.runtime.doctor_command:doctor", "", "what is installed"),
    "pack": ("promptdial.prompts.commands:pack", "", "PEFT folder or .npy to blob"),
    "unpack": ("promptdial.prompts.commands:unpack", "", "blob to PEFT folder"),
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
        from importlib.metadata import version

        print(f"promptdial {version('promptdial')}")
        return EXIT_DONE
    name = arguments[0]
    if name not in COMMANDS:
        known = ", ".join(COMMANDS)
        return _fail("USAGE", f"no command {name!r}; choose from {known}")
    command = _load(name)
    parser = _Parser(prog=f"promptdial {name}", description=command.summary)
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    command.configure(parser)
    # Intermixed: texts may come before and after options.
    args = parser.parse_intermixed_args(arguments[1:])
    answer = command.run(args)
    if not command.streams:
        _print_answer(command, answer, args.json)
    return EXIT_DONE


def _load(name: str) -> Command:
    """Import a command.

    Raises:
        MissingExtra: Something that it needs is not installed.
    """
    place, extra, _ = COMMANDS[name]
    module, attribute = place.split(":")
    try:
        command = getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        # One of our own modules missing is a broken installation, not an extra.
        if not extra or (error.name or "").split(".")[0] == _OURS:
            raise
        raise MissingExtra(f"promptdial {name}", extra) from None
    assert isinstance(command, Command)
    return command


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
    lines = ["usage: promptdial COMMAND ... [--json]", ""]
    lines += [f"  {name:8} {line}" for name, (_, _, line) in COMMANDS.items()]
    lines += ["", "promptdial COMMAND --help tells more; --version the version"]
    return "\n".join(lines)


def _fail(code: str, message: str) -> int:
    line = " ".join(message.split())
    print(f"promptdial: {code}: {line}", file=sys.stderr)
    return EXIT_CODES[code]
