"""The inspect command: what a blob, a pack or a bundle says about itself."""

import argparse
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from promptdial.prompts.blob import PromptBlob, read_blob
from promptdial.prompts.pack import PACK_SUFFIX, read_pack
from promptdial.runtime.bundle import check_all_files, open_bundle
from promptdial.runtime.command import Command


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "path", metavar="PATH", type=Path, help="a blob, pack or bundle"
    )


def _run(args: argparse.Namespace) -> dict[str, Any]:
    if args.path.is_dir():
        return inspect_bundle(args.path)
    if args.path.name.endswith(PACK_SUFFIX):
        return inspect_pack(args.path)
    return inspect_blob(args.path)


def inspect_blob(path: Path) -> dict[str, Any]:
    """Everything in a blob but its numbers.

    Raises:
        PromptError: It cannot be read.
    """
    return {"type": "blob", **_shown(read_blob(path))}


def inspect_pack(path: Path) -> dict[str, Any]:
    """What a pack holds, and each of its blobs.

    Raises:
        PromptError: It cannot be read.
    """
    pack = read_pack(path)
    return {
        "type": "pack",
        "bytes": pack.size,
        "digest": pack.digest,
        "tensors": _tensors(pack.tensors),
        "tasks": {blob.meta.task: _shown(blob) for blob in pack.blobs},
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


def _shown(blob: PromptBlob) -> dict[str, Any]:
    return {
        "bytes": blob.size,
        "digest": blob.digest,
        "num_virtual_tokens": blob.num_virtual_tokens,
        "tensors": _tensors(blob.tensors),
        **asdict(blob.meta),
    }


def _tensors(tensors: Mapping[str, NDArray[Any]]) -> dict[str, str]:
    """Type and shape of each tensor."""
    return {
        name: f"{array.dtype} {list(array.shape)}" for name, array in tensors.items()
    }


inspect = Command(
    summary="what a blob, a pack or a bundle says about itself",
    configure=_configure,
    run=_run,
)
