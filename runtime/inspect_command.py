"""The inspect command: what a blob, a pack, a bundle or a store says about itself."""

import argparse
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from promptdial.prompts.blob import PromptBlob, read_blob
from promptdial.prompts.pack import PACK_SUFFIX, read_pack
from promptdial.prompts.store.layout import is_store
from promptdial.runtime.bundle import check_all_files, open_bundle
from promptdial.runtime.command import Command


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "path", metavar="PATH", type=Path, help="a blob, pack, bundle or store"
    )


def _run(args: argparse.Namespace) -> dict[str, Any]:
    if is_store(args.path):
        return inspect_store(args.path)
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


def inspect_store(path: Path) -> dict[str, Any]:
    """What a store holds, once every blob of every tenant was read and checked.

    Raises:
        StoreError: It cannot be opened.
    """
    from promptdial.prompts.store.prompt_store import PromptStore

    with PromptStore(path) as store:
        tenants = {name: store.for_tenant(name) for name in store.tenants()}
        found = {name: view.versions() for name, view in tenants.items()}
        return {
            "type": "store",
            "limits": asdict(store.limits()),
            "bytes": sum(item.bytes for items in found.values() for item in items),
            "damaged": store.damaged(),
            "tenants": {
                name: [asdict(item) for item in items] for name, items in found.items()
            },
        }


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
    summary="what a blob, a pack, a bundle or a store says about itself",
    configure=_configure,
    run=_run,
)
