"""The init part of the store command: limits, and what updates are to bring."""

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

from promptdial.prompts.errors import FileFailed, UsageError
from promptdial.prompts.store import (
    BaseState,
    Device,
    Following,
    Limits,
    PromptStore,
    is_store,
    make_store,
    set_up_updates,
)
from promptdial.runtime.bundle import open_bundle


def configure_init(parser: argparse.ArgumentParser) -> None:
    """Limits of a store, and what its updates are to bring."""
    parser.add_argument("--max-versions", type=int, metavar="N", help="of all tasks")
    parser.add_argument("--max-bytes", type=int, metavar="N", help="of all blobs")
    parser.add_argument(
        "--root", type=Path, metavar="FILE", help="root of trust: take updates"
    )
    parser.add_argument("--channel", help="of updates (default: stable)")
    parser.add_argument("--device-id", help="what shares of devices go by")
    parser.add_argument(
        "--tenant",
        action="append",
        metavar="TENANT",
        help="whose prompts to take besides everyone's, again and again for several",
    )
    parser.add_argument(
        "--task", action="append", metavar="TASK", help="only it, or them"
    )
    parser.add_argument(
        "--base", type=Path, metavar="BUNDLE", help="what the device runs"
    )
    parser.add_argument(
        "--base-name", metavar="NAME", help="the base that updates bring"
    )


def init(args: argparse.Namespace) -> dict[str, Any]:
    """Make the store where there is none, and set what was given."""
    limits = None
    if args.max_versions is not None or args.max_bytes is not None:
        default = Limits()
        limits = Limits(
            versions=default.versions
            if args.max_versions is None
            else args.max_versions,
            bytes=default.bytes if args.max_bytes is None else args.max_bytes,
        )
    made = not is_store(args.store)
    if args.root is not None:
        # First: a root that is refused leaves no store behind.
        _set_up(args, None if made else _device(args.store))
    elif any(getattr(args, name) for name in _FOLLOWING):
        raise UsageError("what updates bring, without --root", "give --root")
    make_store(args.store, limits)
    with PromptStore(args.store) as store:
        device = store.device()
        answer = {"made": made, "limits": asdict(store.limits())}
    return answer if device is None else {**answer, **_plain(device)}


_FOLLOWING = ("tenant", "channel", "device_id", "task", "base", "base_name")


def _device(path: Path) -> Device | None:
    with PromptStore(path) as store:
        return store.device()


def _set_up(args: argparse.Namespace, device: Device | None) -> None:
    """Let the store take updates: what is given is changed, the rest stays."""
    now = Following("") if device is None else device.following
    set_up_updates(
        args.store,
        _read_root(args.root),
        Following(
            args.device_id or now.device_id,
            args.channel or now.channel,
            ("", *args.tenant) if args.tenant else now.tenants,
            frozenset(args.task) if args.task else now.tasks,
            args.base_name or now.bundle,
        ),
        None if args.base is None else _base_state(args.base),
    )


def _read_root(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise FileFailed(f"{path}: {error.strerror}", "check the path") from None


def _base_state(path: Path) -> BaseState:
    base = open_bundle(path).manifest.base
    return BaseState(base.fingerprint, base.tokenizer_fingerprint)


def _plain(device: Device) -> dict[str, Any]:
    """What a store follows, as JSON has it."""
    found = asdict(device)
    tasks = device.following.tasks
    found["following"]["tasks"] = None if tasks is None else sorted(tasks)
    return found
