"""The inspect command: what a blob or a bundle says about itself."""

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

from promptdial.prompts.blob import read_blob
from promptdial.runtime.bundle import check_all_files, open_bundle
from promptdial.runtime.command import Command


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", metavar="PATH", type=Path, help="a blob or a bundle")


def _run(args: argparse.Namespace) -> dict[str, Any]:
    return inspect_bundle(args.path) if args.path.is_dir() else inspect_blob(args.path)


def inspect_blob(path: Path) -> dict[str, Any]:
    """Everything in a blob but its numbers.

    Raises:
        PromptError: It cannot be read.
    """
    blob = read_blob(path)
    tensors = {
        name: f"{array.dtype} {list(array.shape)}"
        for name, array in blob.tensors.items()
    }
    return {
        "type": "blob",
        "bytes": blob.size,
        "digest": blob.digest,
        "num_virtual_tokens": blob.num_virtual_tokens,
        "tensors": tensors,
        **asdict(blob.meta),
    }


def inspect_bundle(path: Path) -> dict[str, Any]:
    """What a bundle's manifest says, once every file was checked.

    Raises:
        BundleInvalid: A file is missing, changed or unlisted.
    """
    bundle = open_bundle(path)
    check_all_files(bundle)
    total = sum(entry.bytes for entry in bundle.manifest.files.values())
    return {"type": "bundle", "bytes": total, **asdict(bundle.manifest)}


inspect = Command(
    summary="what a blob or a bundle says about itself",
    configure=_configure,
    run=_run,
)
