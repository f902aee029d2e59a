"""The update command: one check of a device for new prompts."""

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from promptdial.prompts.errors import UsageError
from promptdial.prompts.store.receiving import StoreReceiver
from promptdial.prompts.updates.names import PromptName, check_channel
from promptdial.prompts.updates.receiver import Following
from promptdial.runtime.command import Command

if TYPE_CHECKING:
    from promptdial.prompts.updates.device.update import Report


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("store", metavar="STORE", type=Path)
    parser.add_argument("--url", required=True, help="of the repository")
    parser.add_argument("--channel", help="the channel to be on")
    parser.add_argument("--device-id", help="what shares of devices go by")
    parser.add_argument("--ca", type=Path, help="certificates to trust (PEM)")
    parser.add_argument(
        "--header",
        action="append",
        default=[],
        metavar="NAME: VALUE",
        help="sent with every request, such as 'Authorization: Bearer ...'",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="say what would be done, and do nothing"
    )


def _run(args: argparse.Namespace) -> dict[str, Any]:
    # Imported here: tuf is an extra, and completion must work without it.
    from promptdial.prompts.updates.device.fetcher import Source
    from promptdial.prompts.updates.device.progress import Progress
    from promptdial.prompts.updates.device.update import update as run_update

    with StoreReceiver(args.store) as receiver:
        report = run_update(
            receiver,
            Source(args.url, args.ca, tuple(_header(text) for text in args.header)),
            _following(args, receiver.following()),
            progress=Progress(sys.stderr),
            dry_run=args.dry_run,
        )
    return _answer(report)


def _following(args: argparse.Namespace, found: Following) -> Following:
    if args.channel is not None:
        check_channel(args.channel)
        found = replace(found, channel=args.channel)
    if args.device_id is not None:
        found = replace(found, device_id=args.device_id)
    return found


def _header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    plain = name.strip().isascii() and text.isprintable()
    if not colon or not name.strip() or not plain:
        raise UsageError("a header that is not NAME: VALUE", "see --help")
    return name.strip(), value.strip()


def _answer(report: "Report") -> dict[str, Any]:
    from promptdial.prompts.updates.device.trusted import when

    changed = [
        {
            "task": offer.name.task,
            "tenant": offer.name.tenant,
            "version": offer.version,
            "channel": offer.name.channel,
            "bytes": offer.length,
        }
        for offer in report.prompts
        if isinstance(offer.name, PromptName)
    ]
    bundle = report.bundle
    return {
        "checked": when(report.checked),
        "changed": changed,
        "bundle": bundle.version if bundle else None,
        "held": {item.name: item.why for item in report.held},
        "revoked": sorted(start for _, start in report.revoked),
        "received": report.received,
        "needed": report.needed,
        "seconds": round(report.seconds, 3),
        "dry_run": report.dry_run,
    }


def _show(answer: dict[str, Any]) -> str:
    verb = "would take" if answer["dry_run"] else "took"
    lines = [
        f"{verb} {'/'.join(filter(None, (item['tenant'], item['task'])))} "
        f"{item['version']} ({item['bytes']:,} bytes)"
        for item in answer["changed"]
    ]
    if answer["bundle"]:
        lines.append(f"{verb} base {answer['bundle']}")
    lines += [f"not taken: {name}: {why}" for name, why in answer["held"].items()]
    lines += [f"revoked: {start}" for start in answer["revoked"]]
    lines.append(
        f"checked {answer['checked']}: {answer['received']:,} bytes received in "
        f"{answer['seconds']:.1f} s"
    )
    return "\n".join(lines)


update = Command(
    summary="check a repository, and take what is new, wholly or not at all",
    configure=_configure,
    run=_run,
    show=_show,
)
