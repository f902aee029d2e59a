"""The pack and unpack commands: other formats to a blob and back, packs to blobs."""

import argparse
import json
import time
from pathlib import Path
from typing import Any

from promptdial.prompts.atomic import write_atomic
from promptdial.prompts.blob import SUFFIX, encode, make_blob, read_blob, write_blob
from promptdial.prompts.errors import DataInvalid, UsageError
from promptdial.prompts.interchange import OWN_META, read_foreign, write_peft
from promptdial.prompts.metadata import (
    KINDS,
    POOLINGS,
    PromptMeta,
    from_strings,
    to_strings,
)
from promptdial.prompts.pack import PACK_SUFFIX, read_pack
from promptdial.runtime.command import Command

_BASE_KEYS = ("model", "fingerprint", "tokenizer_fingerprint")


def _configure_pack(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SOURCE", type=Path, help="folder or .npy")
    parser.add_argument("out", metavar="OUT", type=Path, help="<task>.safetensors")
    parser.add_argument("--bundle", type=Path, help="the bundle the prompt is for")
    parser.add_argument("--kind", choices=KINDS, help="kind of the task")
    parser.add_argument("--labels", nargs="+", default=[], help="in the head's order")
    parser.add_argument(
        "--precision", choices=("int8", "f16", "f32"), help="(default: int8)"
    )


def _run_pack(args: argparse.Namespace) -> dict[str, Any]:
    found = read_foreign(args.source)
    own = args.source / OWN_META
    if args.source.is_dir() and own.exists():
        meta, precision = _own_meta(own)
    else:
        meta, precision = _new_meta(args, found.origin), "int8"
    blob = make_blob(
        meta,
        embeddings=found.embeddings,
        past=found.past or None,
        head_weight=found.head_weight,
        head_bias=found.head_bias,
        precision=args.precision or precision,
    )
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_blob(args.out, blob)
    return {"blob": str(args.out), "bytes": blob.size, "digest": blob.digest}


def _configure_unpack(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "blob", metavar="FILE", type=Path, help=f"a blob, or a pack (*{PACK_SUFFIX})"
    )
    parser.add_argument("out", metavar="FOLDER", type=Path)


def _run_unpack(args: argparse.Namespace) -> dict[str, Any]:
    if args.blob.name.endswith(PACK_SUFFIX):
        return unpack_pack(args.blob, args.out)
    blob = read_blob(args.blob)
    write_peft(blob, args.out)
    dtypes = {array.dtype.name for array in blob.tensors.values()}
    precision = "int8" if "int8" in dtypes else "f16"
    rows = blob.tensors.get("prompt_embeddings")
    if rows is not None and rows.dtype.name == "float32":
        precision = "f32"
    own = {"precision": precision, "metadata": to_strings(blob.meta)}
    text = json.dumps(own, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    write_atomic(args.out / OWN_META, text.encode("utf-8"))
    return {"folder": str(args.out), "task": blob.meta.task, "digest": blob.digest}


def unpack_pack(path: Path, folder: Path) -> dict[str, Any]:
    """Write every blob of a pack to a folder.

    Raises:
        UsageError: A blob of another content is there; nothing is written then.
        PromptError: The pack cannot be read, or a blob not be written.
    """
    blobs = read_pack(path).blobs
    for blob in blobs:
        there = folder / f"{blob.meta.task}{SUFFIX}"
        if there.exists() and there.read_bytes() != encode(blob.meta, blob.tensors):
            raise UsageError(f"{there} exists", "give an empty folder")
    folder.mkdir(parents=True, exist_ok=True)
    for blob in blobs:
        write_blob(folder / f"{blob.meta.task}{SUFFIX}", blob)
    return {
        "folder": str(folder),
        "tasks": {blob.meta.task: blob.digest for blob in blobs},
    }


def _own_meta(path: Path) -> tuple[PromptMeta, str]:
    """Metadata and precision that `unpack` left beside the adapter."""
    try:
        own = json.loads(path.read_text("utf-8"))
        strings, precision = own["metadata"], own["precision"]
        valid = all(isinstance(value, str) for value in strings.values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataInvalid(f"{path}: {error}", f"delete {path.name}") from None
    if not valid or precision not in ("int8", "f16", "f32"):
        raise DataInvalid(f"{path} has values of the wrong type", "unpack again")
    return from_strings(strings), precision


def _new_meta(args: argparse.Namespace, origin: dict[str, Any]) -> PromptMeta:
    if args.bundle is None or args.kind is None:
        raise UsageError(
            "a foreign prompt does not say its base or kind", "give --bundle and --kind"
        )
    manifest = _manifest(args.bundle)
    return PromptMeta(
        task=args.out.name.removesuffix(SUFFIX),
        version=1,
        kind=args.kind,
        attention=manifest["attention"],
        base_model=manifest["base"]["model"],
        base_fingerprint=manifest["base"]["fingerprint"],
        tokenizer_fingerprint=manifest["base"]["tokenizer_fingerprint"],
        labels=tuple(args.labels),
        pooling=POOLINGS[args.kind][0],
        training=origin,
        created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    )


def _manifest(bundle: Path) -> dict[str, Any]:
    """The keys of manifest.json that a blob repeats."""
    path = bundle / "manifest.json"
    try:
        manifest = json.loads(path.read_text("utf-8"))
        texts = [manifest["attention"], *(manifest["base"][k] for k in _BASE_KEYS)]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataInvalid(f"{path}: {error}", "give a bundle folder") from None
    if not isinstance(manifest, dict) or not all(isinstance(t, str) for t in texts):
        raise DataInvalid(f"{path} is no manifest", "give a bundle folder")
    return manifest


pack = Command(
    summary="make a blob from a PEFT adapter folder or a T5X .npy file",
    configure=_configure_pack,
    run=_run_pack,
)
unpack = Command(
    summary="write a blob as a folder that PEFT loads, or the blobs of a pack",
    configure=_configure_unpack,
    run=_run_unpack,
)
