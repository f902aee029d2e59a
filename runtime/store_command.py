"""The store command: versions of prompts on a device, from making one to going back."""

import argparse
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from promptdial.prompts.blob import MAX_BLOB_BYTES, PromptBlob
from promptdial.prompts.errors import FileFailed, UsageError
from promptdial.prompts.pack import PACK_SUFFIX, read_pack
from promptdial.prompts.store import PromptStore, Version
from promptdial.runtime.command import Command, command_of_parts
from promptdial.runtime.store_figures import SHOWN, compared, counted, lines_of
from promptdial.runtime.store_init_command import configure_init, init

_MAX_VERSION = 2**31 - 1


def _part(
    summary: str,
    configure: Callable[[argparse.ArgumentParser], None],
    run: Callable[[argparse.Namespace], dict[str, Any]],
) -> Command:
    """A part of the command: what is done to the store of its first argument."""

    def with_store(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("store", metavar="DIR", type=Path, help="the store")
        configure(parser)

    def answer(args: argparse.Namespace) -> dict[str, Any]:
        return {"store": str(args.store), **run(args)}

    return Command(summary, with_store, answer, _show)


def _add_tenant(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tenant", default="", help="whose tasks (default: no one's)")


def _add_floor(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--allow-below-floor",
        action="store_true",
        help="older than what was good here; it is logged",
    )


def _add_version(parser: argparse.ArgumentParser, default: str) -> None:
    """A task of a tenant, and a version of it or what `default` says."""
    parser.add_argument("task", metavar="TASK")
    parser.add_argument(
        "version",
        metavar="VERSION",
        nargs="?",
        type=_version,
        help=f"(default: {default})",
    )
    _add_tenant(parser)


def _version(text: str) -> int:
    """A version as a word.

    Raises:
        UsageError: It is none.
    """
    if not text.isdecimal() or not 1 <= int(text) <= _MAX_VERSION:
        raise UsageError(f"version {text!r}", "give a positive integer")
    return int(text)


def _no_options(_: argparse.ArgumentParser) -> None:
    """Nothing but the store."""


def _base(args: argparse.Namespace) -> dict[str, Any]:
    with PromptStore(args.store) as store:
        return {"base": str(store.base_folder())}


def _configure_list(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("task", metavar="TASK", nargs="?", help="(default: all)")
    parser.add_argument("--events", action="store_true", help="the log too")
    _add_tenant(parser)


def _list(args: argparse.Namespace) -> dict[str, Any]:
    with _opened(args) as store:
        versions = store.versions(args.task)
        found: dict[str, Any] = {"versions": [asdict(item) for item in versions]}
        found["floors"] = {
            item.task: item.floor for item in store.tasks() if item.floor
        }
        found |= counted(store, args.task)
        if args.events:
            found["events"] = [asdict(item) for item in store.events()]
    return found


def _configure_install(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "files", metavar="FILE", nargs="+", type=Path, help="blobs and packs"
    )
    parser.add_argument("--activate", action="store_true", help="at once")
    _add_tenant(parser)


def _install(args: argparse.Namespace) -> dict[str, Any]:
    blobs = [blob for path in args.files for blob in read_prompts(path)]
    done: list[Version] = []
    with _opened(args) as store:
        for blob in blobs:
            found = store.install(blob)
            if args.activate:
                found = store.activate(found.task, found.version)
            done.append(found)
    return {"versions": [asdict(item) for item in done]}


def _configure_activate(parser: argparse.ArgumentParser) -> None:
    _add_version(parser, "the newest that is not bad")
    _add_floor(parser)


def _activate(args: argparse.Namespace) -> dict[str, Any]:
    with _opened(args) as store:
        return asdict(
            store.activate(
                args.task, args.version, allow_below_floor=args.allow_below_floor
            )
        )


def _configure_rollback(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("task", metavar="TASK")
    parser.add_argument(
        "--to", type=int, metavar="VERSION", help="(default: the good one before)"
    )
    _add_floor(parser)
    _add_tenant(parser)


def _rollback(args: argparse.Namespace) -> dict[str, Any]:
    with _opened(args) as store:
        return asdict(
            store.rollback(args.task, args.to, allow_below_floor=args.allow_below_floor)
        )


def _configure_share(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("task", metavar="TASK")
    parser.add_argument("version", metavar="VERSION", type=_version)
    parser.add_argument("percent", metavar="PERCENT", type=_percent, help="0 ends it")
    _add_tenant(parser)
    _add_floor(parser)


def _percent(text: str) -> int:
    """A share as a word; its bounds are the store's.

    Raises:
        UsageError: It is none.
    """
    if not text.isascii() or not text.isdecimal():
        raise UsageError(f"{text!r} percent", "give 1 to 99, or 0 to end it")
    return int(text)


def _share(args: argparse.Namespace) -> dict[str, Any]:
    with _opened(args) as store:
        return asdict(
            store.share(
                args.task,
                args.version,
                args.percent,
                allow_below_floor=args.allow_below_floor,
            )
        )


def _configure_compare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("task", metavar="TASK")
    _add_tenant(parser)


def _compare(args: argparse.Namespace) -> dict[str, Any]:
    with _opened(args) as store:
        return compared(store, args.task)


def _configure_pin(parser: argparse.ArgumentParser) -> None:
    _add_version(parser, "the active one")
    parser.add_argument("--off", action="store_true", help="let it go")


def _pin(args: argparse.Namespace) -> dict[str, Any]:
    with _opened(args) as store:
        return asdict(store.pin(args.task, args.version, pinned=not args.off))


def _configure_remove(parser: argparse.ArgumentParser) -> None:
    _add_version(parser, "the whole task")


def _remove(args: argparse.Namespace) -> dict[str, Any]:
    with _opened(args) as store:
        gone = store.remove(args.task, args.version)
    return {"removed": [asdict(item) for item in gone]}


def _configure_gc(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--keep", type=int, metavar="N", help="versions a task, older ones go"
    )
    _add_tenant(parser)


def _gc(args: argparse.Namespace) -> dict[str, Any]:
    with _opened(args) as store:
        found = store.gc(args.keep)
    return {
        "removed": [asdict(item) for item in found.versions],
        "blobs": found.blobs,
        "bytes": found.bytes,
    }


def read_prompts(path: Path) -> list[PromptBlob | bytes]:
    """The blob of a file, as it lies there, or the blobs of a pack.

    Raises:
        FileFailed: It cannot be read.
        PromptError: It breaks its format.
    """
    if path.name.endswith(PACK_SUFFIX):
        return list(read_pack(path).blobs)
    try:
        with path.open("rb") as file:
            return [file.read(MAX_BLOB_BYTES + 1)]
    except OSError as error:
        raise FileFailed(f"{path}: {error.strerror}", "check the path") from None


def _opened(args: argparse.Namespace) -> PromptStore:
    return PromptStore(args.store, args.tenant)


def _show(answer: dict[str, Any]) -> str:
    """One line a version; what else there is as `key: value`."""
    lines = []
    if "task" in answer:
        lines.append(_line(answer))
    for key, value in answer.items():
        if key in ("versions", "removed"):
            lines += [_line(item) for item in value]
        elif key == "events":
            lines += [
                f"{e['event']}\t{e['task']} {e['version']}\t{e['detail']}"
                for e in value
            ]
        elif "task" not in answer and value != {} and key not in SHOWN:
            lines.append(f"{key}: {value}")
    return "\n".join([*lines, *lines_of(answer)])


def _line(version: dict[str, Any]) -> str:
    marks = [key for key in ("active", "previous", "pinned") if version[key]]
    if version["share"]:
        marks.append(f"{version['share']} %")
    parts = [
        f"{version['task']} {version['version']}",
        version["state"],
        ",".join(marks) or "-",
        f"{version['bytes']} bytes",
        version["digest"],
    ]
    return "\t".join([*parts, version["failure"]] if version["failure"] else parts)


store = command_of_parts(
    "the prompts of a device: install, activate, compare, go back",
    {
        "init": _part(
            "make a store, change its limits, let it take updates", configure_init, init
        ),
        "base": _part(
            "the folder of the base that updates brought", _no_options, _base
        ),
        "list": _part("versions and their states", _configure_list, _list),
        "install": _part("take in blobs and packs", _configure_install, _install),
        "activate": _part(
            "use a version, on trial first", _configure_activate, _activate
        ),
        "rollback": _part("go back to a good version", _configure_rollback, _rollback),
        "share": _part(
            "let a version answer part of the requests", _configure_share, _share
        ),
        "compare": _part(
            "what a share showed, and what is significant", _configure_compare, _compare
        ),
        "pin": _part("keep a version, whatever comes", _configure_pin, _pin),
        "remove": _part("take a version out, or a task", _configure_remove, _remove),
        "gc": _part("remove what no version names", _configure_gc, _gc),
    },
)
