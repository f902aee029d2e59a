"""Releases of bundles: a manifest and its files, each a target of its own."""

import json
from pathlib import Path
from typing import Any

from tuf.api.metadata import TargetFile

from promptdial.prompts.atomic import disk_failure
from promptdial.prompts.errors import DataInvalid, UsageError
from promptdial.prompts.updates.names import (
    MANIFEST,
    BundleFileName,
    check_name,
    short,
)
from promptdial.prompts.updates.offer import Offer
from promptdial.prompts.updates.publishing.draft import Draft
from promptdial.prompts.updates.publishing.files import put_bytes, put_file
from promptdial.prompts.updates.publishing.layout import find, put, remove, targets_of
from promptdial.prompts.updates.publishing.releases import Audience, release


def release_bundle(
    draft: Draft,
    public: Path,
    folder: Path,
    name: str,
    version: int,
    audience: Audience,
) -> bool:
    """Publish a bundle's folder, file by file.

    Returns:
        Whether anything is new.

    Raises:
        DataInvalid: The manifest cannot be read.
        BlobInvalid: A file is not what the manifest says.
        VersionPublished: The version has other content, or a newer one is published.
        UsageError: A name that no target can have, or a version below 1.
    """
    if version < 1:
        raise UsageError(f"version {version} of a bundle", "give 1 or more")
    manifest = BundleFileName(name, MANIFEST, audience.channel)
    check_name(manifest.target)
    data = _read_manifest(folder)
    body = _manifest_body(folder, data)
    new: set[str] = set()
    for file, entry in sorted(body["files"].items()):
        target = BundleFileName(name, file, audience.channel)
        check_name(target.target)
        sha256, length = str(entry["sha256"]), int(entry["bytes"])
        put_file(public, target.target, folder / file, sha256, length)
        found = TargetFile(length, {"sha256": sha256}, target.target)
        if find(draft, target) != found:
            put(draft, target, found)
        new.add(target.target)
    changed = release(
        draft,
        Offer(
            name=manifest,
            version=version,
            sha256=put_bytes(public, manifest.target, data),
            length=len(data),
            tokenizer=short(body["base"]["tokenizer_fingerprint"]),
            base=short(body["base"]["fingerprint"]),
            percent=audience.percent,
        ),
    )
    folder_name = manifest.target.rpartition("/")[0]
    for old in targets_of(draft, ""):
        head, _, file = old.path.rpartition("/")
        if head == folder_name and old.path not in new and file != MANIFEST:
            remove(draft, BundleFileName(name, file, audience.channel))
    return changed


def _read_manifest(folder: Path) -> bytes:
    try:
        return (folder / MANIFEST).read_bytes()
    except OSError as error:
        raise disk_failure(folder / MANIFEST, error) from None


def _manifest_body(folder: Path, data: bytes) -> dict[str, Any]:
    """The keys of manifest.json that publishing needs."""
    path = folder / MANIFEST
    try:
        body = json.loads(data)
        texts = [body["base"][key] for key in ("fingerprint", "tokenizer_fingerprint")]
        entries = [
            (entry["sha256"], entry["bytes"]) for entry in body["files"].values()
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataInvalid(f"{path}: {error}", "give a bundle folder") from None
    shaped = all(isinstance(text, str) for text in texts) and all(
        isinstance(digest, str) and type(length) is int for digest, length in entries
    )
    if not shaped:
        raise DataInvalid(f"{path} has values of the wrong type", "export it again")
    assert isinstance(body, dict)
    return body
