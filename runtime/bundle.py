"""Opening a bundle folder: every file is checked before anything is loaded."""

import errno
import hashlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from promptdial.runtime.errors import BundleInvalid, BundleTooNew
from promptdial.runtime.graph_rules import (
    GraphInvalid,
    check_file_names,
    check_graph,
)
from promptdial.runtime.manifest import (
    CONFIG_NAMES,
    MANIFEST_NAME,
    TOKEN_TABLE_NAME,
    TOKENIZER_NAME,
    GraphVariant,
    Manifest,
    ManifestInvalid,
    ManifestTooNew,
    from_json,
)

DEFAULT_VARIANT = "int8"
_MAX_MANIFEST = 1_000_000
_CHUNK = 1 << 20

# A named pipe must not hold the opening up, nor a link lead out of the folder. Systems
# that lack a flag lack what it guards against; O_BINARY is Windows'.
_OPEN_FLAGS = (
    os.O_RDONLY
    | getattr(os, "O_NOFOLLOW", 0)
    | getattr(os, "O_NONBLOCK", 0)
    | getattr(os, "O_CLOEXEC", 0)
    | getattr(os, "O_BINARY", 0)
)


@dataclass(frozen=True)
class Bundle:
    """A checked bundle.

    Attributes:
        path: The folder.
        manifest: What manifest.json says.
        variant_name: The graph variant in use.
    """

    path: Path
    manifest: Manifest
    variant_name: str

    @property
    def variant(self) -> GraphVariant:
        """The graph variant in use."""
        return self.manifest.graphs[self.variant_name]

    @property
    def graph_path(self) -> Path:
        """Its .onnx file."""
        return self.path / self.variant.files[0]

    @property
    def graph_digest(self) -> str:
        """Digests of the graph's files: no other graph's prefixes are its own."""
        files = self.manifest.files
        return "+".join(files[name].sha256 for name in self.variant.files)

    def tokenizer_json(self) -> str:
        """The text of tokenizer.json.

        Raises:
            BundleInvalid: It is no text.
        """
        try:
            return (self.path / TOKENIZER_NAME).read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise _invalid(f"{TOKENIZER_NAME}: {error}") from None


def open_bundle(path: str | os.PathLike[str], variant: str | None = None) -> Bundle:
    """Open a bundle and check the files that the variant needs, by SHA-256.

    Hashing the INT8 MiniLM bundle takes some 20 ms of an opening; a changed graph is
    refused before onnxruntime parses it.

    Args:
        path: The folder.
        variant: Graph variant; None for int8, or the first there is.

    Raises:
        BundleInvalid: A file is missing, linked, or differs from the manifest, or the
            graph holds what no bundle may (graph_rules.py).
        BundleTooNew: The manifest is of a newer format.
    """
    folder = Path(path)
    manifest = read_manifest(folder)
    if not manifest.graphs:
        raise _invalid("the manifest names no graph")
    if variant is None:
        names = sorted(manifest.graphs)
        variant = DEFAULT_VARIANT if DEFAULT_VARIANT in names else names[0]
    if variant not in manifest.graphs:
        raise BundleInvalid(
            f"no variant {variant!r}, there is {', '.join(sorted(manifest.graphs))}",
            "export that variant into the bundle",
        )
    _check_unlisted(folder, manifest)
    files = {TOKEN_TABLE_NAME, TOKENIZER_NAME, *manifest.graphs[variant].files}
    files.update(name for name in CONFIG_NAMES if name in manifest.files)
    for name in sorted(files):
        _check_file(folder, name, manifest)
    _check_graph(folder, manifest.graphs[variant], manifest)
    return Bundle(folder, manifest, variant)


def check_all_files(bundle: Bundle) -> None:
    """Check every file of the manifest, those of other variants too.

    Raises:
        BundleInvalid: One is missing, changed or linked.
    """
    for name in sorted(bundle.manifest.files):
        _check_file(bundle.path, name, bundle.manifest)


def _check_unlisted(folder: Path, manifest: Manifest) -> None:
    listed = {*manifest.files, MANIFEST_NAME}
    for entry in folder.iterdir():
        if entry.name not in listed:
            raise _invalid(
                f"{entry.name} is not in the manifest, allowed: the "
                f"{len(manifest.files)} files that it lists"
            )


def read_manifest(path: str | os.PathLike[str]) -> Manifest:
    """What a bundle has, before any of its other files is looked at.

    Raises:
        BundleInvalid: There is no sound manifest.
        BundleTooNew: It is of a newer format.
    """
    folder = Path(path)
    try:
        with _open_plain(folder / MANIFEST_NAME) as file:
            data = file.read(_MAX_MANIFEST + 1)
        if len(data) > _MAX_MANIFEST:
            raise _invalid(f"manifest.json is over {_MAX_MANIFEST} bytes")
        return from_json(data.decode("utf-8"))
    except ManifestTooNew as error:
        raise BundleTooNew(str(error), "upgrade promptdial on this device") from None
    except ManifestInvalid as error:
        raise _invalid(f"manifest.json: {error}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise BundleInvalid(
            f"{folder / MANIFEST_NAME}: {error}",
            "give a folder made by promptdial export",
        ) from None


def _open_plain(path: Path) -> BinaryIO:
    """Open a regular file that is no link: a bundle holds its own files only.

    Raises:
        BundleInvalid: It is a link, or no regular file.
        OSError: It cannot be opened.
    """
    file = os.fdopen(os.open(path, _OPEN_FLAGS), "rb")
    found = os.fstat(file.fileno())
    if stat.S_ISREG(found.st_mode) and found.st_nlink == 1:
        return file
    file.close()
    raise _invalid(
        f"{path.name} is a link or no regular file ({found.st_nlink} names on the "
        "disk), allowed: a file of its own, 1 name"
    )


def _check_file(folder: Path, name: str, manifest: Manifest) -> None:
    entry = manifest.files.get(name)
    if entry is None:
        raise _invalid(f"{name} is not in the manifest")
    if name != Path(name).name or name.startswith("."):
        raise _invalid(f"{name!r} is no plain file name")
    try:
        with _open_plain(folder / name) as file:
            size = os.fstat(file.fileno()).st_size
            if size != entry.bytes:
                raise _invalid(f"{name} has {size} bytes, not {entry.bytes}")
            digest = hashlib.sha256()
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
    except OSError as error:
        # Not followed: some systems answer with ELOOP, "too many levels".
        what = "is a link" if error.errno == errno.ELOOP else error.strerror or error
        raise _invalid(f"{name}: {what}, allowed: a file of its own") from None
    if digest.hexdigest() != entry.sha256:
        raise _invalid(f"{name} has SHA-256 {digest.hexdigest()}, not {entry.sha256}")


def _check_graph(folder: Path, variant: GraphVariant, manifest: Manifest) -> None:
    """Digests are right by now; a manifest's writer may still mean harm."""
    sizes = {name: entry.bytes for name, entry in manifest.files.items()}
    data = {n: sizes[n] for n in variant.files if n not in variant.graphs}
    for graph in variant.graphs:
        try:
            check_file_names(sizes, graph)
            check_graph(folder / graph, data)
        except (GraphInvalid, OSError) as error:
            raise _invalid(f"{graph}: {error}") from None


def _invalid(what: str) -> BundleInvalid:
    return BundleInvalid(what)
