"""The store command: versions of prompts on a device, from making one to going back."""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from promptdial.prompts.blob import MAX_BLOB_BYTES, PromptBlob
from promptdial.prompts.errors import FileFailed, UsageError
from promptdial.prompts.pack import PACK_SUFFIX, read_pack
from promptdial.prompts.store import Limits, PromptStore, Version, make_store
from promptdial.runtime.command import Command
from promptdial.runtime.store_figures import SHOWN, compared, counted, lines_of

_MAX_VERSION = 2**31 - 1


@dataclass(frozen=True)
class _Action:
    """One thing that the command does.

    Attributes:
        usage: Its arguments behind DIR.
        least: Fewest of them.
        most: Most of them; None for any number.
        options: The options that it takes, besides --tenant.
        run: Does it.
    """

    usage: str
    least: int
    most: int | None
    options: tuple[str, ...]
    run: Callable[[argparse.Namespace], dict[str, Any]]


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    lines = [f"  {name} DIR {action.usage}" for name, action in _ACTIONS.items()]
    parser.epilog = "\n".join(["actions:", *lines])
    parser.add_argument("action", choices=tuple(_ACTIONS))
    parser.add_argument("store", metavar="DIR", type=Path, help="the store's folder")
    parser.add_argument("names", metavar="...", nargs="*", help="see below")
    parser.add_argument("--tenant", default="", help="whose tasks (default: no one's)")
    parser.add_argument("--max-versions", type=int, metavar="N", help="init: of all")
    parser.add_argument("--max-bytes", type=int, metavar="N", help="init: of blobs")
    parser.add_argument("--events", action="store_true", help="list: the log too")
    parser.add_argument("--activate", action="store_true", help="install: at once")
    parser.add_argument("--to", type=int, metavar="VERSION", help="rollback: to it")
    parser.add_argument(
        "--allow-below-floor",
        action="store_true",
        help="activate, rollback, share: older than what was good here; it is logged",
    )
    parser.add_argument("--off", action="store_true", help="pin: let it go")
    parser.add_argument(
        "--keep", type=int, metavar="N", help="gc: versions a task, older ones go"
    )


def _run(args: argparse.Namespace) -> dict[str, Any]:
    action = _ACTIONS[args.action]
    usage = f"promptdial store {args.action} DIR {action.usage}".strip()
    count = len(args.names)
    if count < action.least or (action.most is not None and count > action.most):
        raise UsageError(f"{count} arguments behind DIR", f"give: {usage}")
    for option in sorted({item for one in _ACTIONS.values() for item in one.options}):
        given = getattr(args, option.removeprefix("--").replace("-", "_"))
        if given not in (None, False) and option not in action.options:
            raise UsageError(f"store {args.action} takes no {option}", f"give: {usage}")
    return {"store": str(args.store), **action.run(args)}


def _init(args: argparse.Namespace) -> dict[str, Any]:
    limits = None
    if args.max_versions is not None or args.max_bytes is not None:
        default = Limits()
        limits = Limits(
            versions=default.versions
            if args.max_versions is None
            else args.max_versions,
            bytes=default.bytes if args.max_bytes is None else args.max_bytes,
        )
    made = make_store(args.store, limits)
    with _opened(args) as store:
        return {"made": made, "limits": asdict(store.limits())}


def _list(args: argparse.Namespace) -> dict[str, Any]:
    with _opened(args) as store:
        versions = store.versions(*args.names)
        found: dict[str, Any] = {"versions": [asdict(item) for item in versions]}
        found["floors"] = {
            item.task: item.floor for item in store.tasks() if item.floor
        }
        found |= counted(store, *args.names)
        if args.events:
            found["events"] = [asdict(item) for item in store.events()]
    return found


def _install(args: argparse.Namespace) -> dict[str, Any]:
    blobs = [blob for name in args.names for blob in read_prompts(Path(name))]
    done: list[Version] = []
    with _opened(args) as store:
        for blob in blobs:
            found = store.install(blob)
            if args.activate:
                found = store.activate(found.task, found.version)
            done.append(found)
    return {"versions": [asdict(item) for item in done]}


def _activate(args: argparse.Namespace) -> dict[str, Any]:
    task, version = _task_and_version(args.names)
    with _opened(args) as store:
        return asdict(
            store.activate(task, version, allow_below_floor=args.allow_below_floor)
        )


def _rollback(args: argparse.Namespace) -> dict[str, Any]:
    with _opened(args) as store:
        return asdict(
            store.rollback(
                args.names[0], args.to, allow_below_floor=args.allow_below_floor
            )
        )


def _share(args: argparse.Namespace) -> dict[str, Any]:
    *names, percent = args.names
    if not percent.isascii() or not percent.isdecimal():
        raise UsageError(f"{percent!r} percent", "give 1 to 99, or 0 to end it")
    task, version = _task_and_version(names)
    assert version is not None
    with _opened(args) as store:
        return asdict(
            store.share(
                task,
                version,
                int(percent),
                allow_below_floor=args.allow_below_floor,
            )
        )


def _compare(args: argparse.Namespace) -> dict[str, Any]:
    with _opened(args) as store:
        return compared(store, args.names[0])


def _pin(args: argparse.Namespace) -> dict[str, Any]:
    task, version = _task_and_version(args.names)
    with _opened(args) as store:
        return asdict(store.pin(task, version, pinned=not args.off))


def _remove(args: argparse.Namespace) -> dict[str, Any]:
    task, version = _task_and_version(args.names)
    with _opened(args) as store:
        gone = store.remove(task, version)
    return {"removed": [asdict(item) for item in gone]}


def _gc(args: argparse.Namespace) -> dict[str, Any]:
    with _opened(args) as store:
        found = store.gc(args.keep)
    return {
        "removed": [asdict(item) for item in found.versions],
        "blobs": found.blobs,
        "bytes": found.bytes,
    }


_ACTIONS = {
    "init": _Action("", 0, 0, ("--max-versions", "--max-bytes"), _init),
    "list": _Action("[TASK] [--events]", 0, 1, ("--events",), _list),
    "install": _Action("FILE ... [--activate]", 1, None, ("--activate",), _install),
    "activate": _Action("TASK [VERSION]", 1, 2, ("--allow-below-floor",), _activate),
    "rollback": _Action(
        "TASK [--to VERSION]", 1, 1, ("--to", "--allow-below-floor"), _rollback
    ),
    "share": _Action("TASK VERSION PERCENT", 3, 3, ("--allow-below-floor",), _share),
    "compare": _Action("TASK", 1, 1, (), _compare),
    "pin": _Action("TASK [VERSION] [--off]", 1, 2, ("--off",), _pin),
    "remove": _Action("TASK [VERSION]", 1, 2, (), _remove),
    "gc": _Action("[--keep N]", 0, 0, ("--keep",), _gc),
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


def _task_and_version(names: Sequence[str]) -> tuple[str, int | None]:
    task, *more = names
    if not more:
        return task, None
    if not more[0].isdecimal() or not 1 <= int(more[0]) <= _MAX_VERSION:
        raise UsageError(f"version {more[0]!r}", "give a positive integer")
    return task, int(more[0])


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


store = Command(
    summary="the prompts of a device: install, activate, compare, go back",
    configure=_configure,
    run=_run,
    show=_show,
)
