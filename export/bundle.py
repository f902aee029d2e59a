"""The bundle's folder: read what is there, and put a new one in its place at once.

A new bundle is written beside OUT and takes its place with a rename; manifest.json is
written last. Whatever stops an export, OUT holds the old bundle or the new one.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from promptdial.export.errors import BundleBroken, file_errors
from promptdial.export.fingerprint import file_sha256
from promptdial.runtime.manifest import (
    MANIFEST_NAME,
    FileEntry,
    Manifest,
    ManifestInvalid,
    from_json,
    to_json,
)

PARITY_NAME = "parity.json"


@dataclass(frozen=True)
class ExistingBundle:
    """A bundle on disk, with its manifest."""

    folder: Path
    manifest: Manifest

    @property
    def size(self) -> int:
        """Bytes of all files, the manifest included."""
        own = (self.folder / MANIFEST_NAME).stat().st_size
        return own + sum(entry.bytes for entry in self.manifest.files.values())


def open_bundle(folder: Path) -> ExistingBundle:
    """Open a bundle and check every file's digest.

    Raises:
        BundleBroken: No bundle, or one whose files are not what its manifest says.
        FileFailed: A file cannot be read.
    """
    manifest_path = folder / MANIFEST_NAME
    if not manifest_path.is_file():
        raise BundleBroken(
            f"{folder} has no {MANIFEST_NAME}", "give a folder that export wrote"
        )
    try:
        with file_errors(manifest_path):
            manifest = from_json(manifest_path.read_text(encoding="utf-8"))
    except (ManifestInvalid, UnicodeDecodeError) as error:
        raise BundleBroken(f"{manifest_path}: {error}", "export it again") from None
    for name, entry in manifest.files.items():
        path = folder / name
        if Path(name).name != name or path.is_symlink() or not path.is_file():
            raise BundleBroken(f"{folder} has no file {name!r}", "export it again")
        digest = file_sha256(path)
        if digest != entry.sha256:
            raise BundleBroken(
                f"{path} has SHA-256 {digest}, not {entry.sha256}", "export it again"
            )
    return ExistingBundle(folder, manifest)


def bundle_at(out: Path) -> ExistingBundle | None:
    """The bundle that an export to `out` would extend; None where there is none.

    Raises:
        BundleBroken: `out` holds something that an export would destroy.
    """
    if not out.exists():
        return None
    if not out.is_dir() or out.is_symlink():
        raise BundleBroken(f"{out} is not a folder", "give another OUT")
    names = {path.name for path in out.iterdir()}
    if not names:
        return None
    existing = open_bundle(out)
    foreign = sorted(names - {MANIFEST_NAME} - set(existing.manifest.files))
    if foreign:
        raise BundleBroken(
            f"{out} holds {foreign[0]!r}, which is not part of the bundle",
            "move it away, or give another OUT",
        )
    return existing


@contextmanager
def staging(out: Path) -> Iterator[Path]:
    """A folder beside `out` to write the new bundle into; gone afterwards.

    Raises:
        FileFailed: It cannot be made.
    """
    out = out.absolute()
    folder = out.with_name(f".{out.name}.partial")
    with file_errors(folder):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    try:
        with file_errors(folder):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def file_entries(folder: Path) -> dict[str, FileEntry]:
    """Digest and size of every file in a staging folder."""
    return {
        path.name: FileEntry(sha256=file_sha256(path), bytes=path.stat().st_size)
        for path in sorted(folder.iterdir())
        if path.name != MANIFEST_NAME
    }


def put_in_place(folder: Path, manifest: Manifest, out: Path) -> None:
    """Finish the staged bundle with its manifest and make it `out`.

    Raises:
        NoSpace, FileFailed: The operating system refused; `out` is as it was.
    """
    out = out.absolute()
    with file_errors(out):
        (folder / MANIFEST_NAME).write_text(to_json(manifest), encoding="utf-8")
        for path in folder.iterdir():
            _sync(path)
        _sync(folder)
        replaced = out.with_name(f".{out.name}.replaced")
        shutil.rmtree(replaced, ignore_errors=True)
        if out.exists():
            out.rename(replaced)
        try:
            folder.rename(out)
        except OSError:
            if replaced.exists():
                replaced.rename(out)
            raise
        _sync(out.parent)
        shutil.rmtree(replaced, ignore_errors=True)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
