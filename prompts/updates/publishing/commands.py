"""The repo command: init, publish, revoke, tenant, rotate, refresh, prune."""

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

from promptdial.prompts.blob import SUFFIX
from promptdial.prompts.errors import UsageError
from promptdial.prompts.updates.names import STABLE
from promptdial.prompts.updates.publishing.settings import PRUNE_DAYS
from promptdial.runtime.command import Command, command_of_parts


def _configure_init(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="DIR", type=Path)
    parser.add_argument(
        "--signers",
        nargs="+",
        default=[],
        metavar="ROLE=T/N",
        help="T of N keys sign for a role, such as root=2/3 (default: 1/1)",
    )
    parser.add_argument(
        "--days",
        nargs="+",
        default=[],
        metavar="ROLE=DAYS",
        help="lifetimes (default: root=365 targets=180 snapshot=14 timestamp=1)",
    )
    parser.add_argument("--keys", default="", help="folder of the private keys")
    parser.add_argument("--to", default="", help="folder or URL to send the files to")


def _run_init(args: argparse.Namespace) -> dict[str, Any]:
    # Imported here: tuf is an extra, and completion must work without it.
    from promptdial.prompts.updates.publishing.repository import open_repository
    from promptdial.prompts.updates.publishing.roles import init_repository
    from promptdial.prompts.updates.publishing.settings import (
        Lifetimes,
        parse_days,
        parse_signers,
    )

    done = init_repository(
        args.folder,
        parse_signers(args.signers),
        parse_days(args.days, Lifetimes()),
        str(Path(args.keys).absolute()) if args.keys else "",
        args.to if "://" in args.to or not args.to else str(Path(args.to).absolute()),
    )
    repository = open_repository(args.folder)
    return {
        "repository": str(args.folder),
        "root": str(repository.metadata / "1.root.json"),
        "keys": str(repository.keys),
        "public": str(repository.public),
        "sent": done.sent,
    }


def _configure_publish(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="DIR", type=Path)
    parser.add_argument(
        "blobs", metavar="BLOB", type=Path, nargs="*", help="blobs, or folders of them"
    )
    parser.add_argument("--tenant", default="", help="whose prompts they are")
    parser.add_argument(
        "--channel", default=STABLE, help="who gets it (default: stable, everyone)"
    )
    parser.add_argument(
        "--percent",
        type=int,
        default=0,
        help="share of the devices on stable that get it from another channel as well",
    )
    parser.add_argument("--bundle", type=Path, help="a bundle's folder")
    parser.add_argument("--name", default="", help="name of the bundle")
    parser.add_argument("--version", type=int, default=0, help="version of the bundle")


def _run_publish(args: argparse.Namespace) -> dict[str, Any]:
    from promptdial.prompts.updates.publishing.publish import (
        publish_bundle,
        publish_prompts,
    )
    from promptdial.prompts.updates.publishing.releases import Audience
    from promptdial.prompts.updates.publishing.repository import open_repository

    repository = open_repository(args.folder)
    audience = Audience(args.tenant, args.channel, args.percent)
    if args.bundle is None:
        done = publish_prompts(repository, _blobs(args.blobs), audience)
    elif args.blobs or args.tenant:
        raise UsageError("a bundle with blobs or a tenant", "publish it alone")
    else:
        name = args.name or args.bundle.name.removesuffix(".bundle")
        done = publish_bundle(repository, args.bundle, name, args.version, audience)
    return {
        "changed": list(done.changed),
        "written": list(done.written),
        "sent": done.sent,
    }


def _blobs(paths: list[Path]) -> list[Path]:
    found: list[Path] = []
    for path in paths:
        found += sorted(path.glob(f"*{SUFFIX}")) if path.is_dir() else [path]
    return found


def _configure_revoke(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="DIR", type=Path)
    parser.add_argument("task", metavar="TASK", help="a task, or a target's full name")
    parser.add_argument("--tenant", default="", help="whose prompt it is")
    parser.add_argument(
        "--base", default="", help="beginning of the base's fingerprint"
    )


def _run_revoke(args: argparse.Namespace) -> dict[str, Any]:
    from promptdial.prompts.updates.publishing.publish import revoke
    from promptdial.prompts.updates.publishing.repository import open_repository

    done = revoke(open_repository(args.folder), args.task, args.tenant, args.base)
    return {"revoked": list(done.changed), "sent": done.sent}


def _configure_role(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="DIR", type=Path)
    parser.add_argument("role", metavar="NAME", help="a role, or a tenant")
    parser.add_argument("--signers", metavar="T/N", help="T of N keys sign")


def _run_tenant(args: argparse.Namespace) -> dict[str, Any]:
    from promptdial.prompts.updates.publishing.repository import open_repository
    from promptdial.prompts.updates.publishing.roles import delegate
    from promptdial.prompts.updates.publishing.settings import Signers, parse_signers

    number = parse_signers([f"{args.role}={args.signers or '1/1'}"])
    done = delegate(
        open_repository(args.folder), args.role, number.get(args.role, Signers())
    )
    return {"tenant": args.role, "written": list(done.written), "sent": done.sent}


def _run_rotate(args: argparse.Namespace) -> dict[str, Any]:
    from promptdial.prompts.updates.publishing.repository import open_repository
    from promptdial.prompts.updates.publishing.roles import rotate
    from promptdial.prompts.updates.publishing.settings import parse_signers

    number = parse_signers([f"{args.role}={args.signers}"]) if args.signers else {}
    done = rotate(open_repository(args.folder), args.role, number.get(args.role))
    return {"rotated": args.role, "written": list(done.written), "sent": done.sent}


def _configure_refresh(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="DIR", type=Path)


def _run_refresh(args: argparse.Namespace) -> dict[str, Any]:
    from promptdial.prompts.updates.publishing.repository import open_repository
    from promptdial.prompts.updates.publishing.roles import refresh

    done = refresh(open_repository(args.folder))
    return {
        "expires": f"{done.expires:%Y-%m-%dT%H:%M:%SZ}",
        "due": {role: f"{at:%Y-%m-%dT%H:%M:%SZ}" for role, at in done.due.items()},
        "written": list(done.published.written),
        "sent": done.published.sent,
    }


def _configure_prune(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="DIR", type=Path)
    parser.add_argument(
        "--older",
        type=float,
        metavar="DAYS",
        help=f"days since it was replaced (default: {PRUNE_DAYS:g}, or a timestamp's "
        "lifetime where that is longer)",
    )


def _run_prune(args: argparse.Namespace) -> dict[str, Any]:
    from promptdial.prompts.updates.publishing.prune import prune
    from promptdial.prompts.updates.publishing.repository import open_repository

    return asdict(prune(open_repository(args.folder), args.older))


repo = command_of_parts(
    "make a repository of signed updates, and change it",
    {
        "init": Command("make an empty repository", _configure_init, _run_init),
        "publish": Command(
            "publish blobs or a bundle", _configure_publish, _run_publish
        ),
        "revoke": Command(
            "take a task's releases out; no device uses them any more",
            _configure_revoke,
            _run_revoke,
        ),
        "tenant": Command(
            "delegate prompts/<tenant>/* to keys of its own",
            _configure_role,
            _run_tenant,
        ),
        "rotate": Command(
            "replace the keys of root, targets, snapshot, timestamp or a tenant",
            _configure_role,
            _run_rotate,
        ),
        "refresh": Command(
            "sign again what is about to expire; for cron",
            _configure_refresh,
            _run_refresh,
        ),
        "prune": Command(
            "remove what was replaced, and no device reads any more",
            _configure_prune,
            _run_prune,
        ),
    },
)
