"""Base bundles that updates bring: a folder each, whole before the index names it.

A bundle's folder holds files of its own, no links (the runtime refuses them). So what a
new base has in common with the one before is copied; what came is moved.
"""

import os
import shutil
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from promptdial.prompts.atomic import sync_folder
from promptdial.prompts.errors import FileFailed
from promptdial.prompts.store.layout import Layout, mapped_errors

_NEW = ".new"
_CHUNK = 1 << 20


class BaseFolders:
    """The bases of a store. One update at a time uses them."""

    def __init__(self, layout: Layout) -> None:
        """Take a store's folder; nothing is read yet."""
        self._layout = layout

    def make(
        self,
        digest: str,
        files: Mapping[str, str],
        find: Callable[[str], Path],
        movable: Path,
    ) -> None:
        """Make the folder of a base that is not in use, durably.

        Args:
            digest: The manifest's.
            files: Name to digest of every file, the manifest among them.
            find: Where the content of a digest lies now.
            movable: Folder whose files may be moved; others are copied.

        Raises:
            NoSpace, StoreReadOnly, FileFailed: It cannot be made; nothing is left.
        """
        folder = self._layout.base(digest)
        new = folder.with_name(f"{_NEW}-{folder.name}")
        with mapped_errors(folder):
            try:
                # What an update that broke off left there.
                for old in (new, folder):
                    shutil.rmtree(old, ignore_errors=True)
                new.mkdir(parents=True)
                made: dict[str, Path] = {}
                for name, content in files.items():
                    _require_plain(name)
                    source = made.get(content) or find(content)
                    if source.parent == movable:
                        source.replace(new / name)
                    else:
                        _copy(source, new / name)
                    made[content] = new / name
                sync_folder(new)
                new.replace(folder)
                sync_folder(self._layout.bases)
                sync_folder(self._layout.root)
            except BaseException:
                shutil.rmtree(new, ignore_errors=True)
                raise

    def sweep(self, kept: Collection[str]) -> None:
        """Take away the bases that are not among these digests."""
        names = {self._layout.base(digest).name for digest in kept}
        if not self._layout.bases.is_dir():
            return
        with mapped_errors(self._layout.bases):
            for path in self._layout.bases.iterdir():
                if path.name not in names:
                    # What cannot be taken away now, the next update takes.
                    shutil.rmtree(path, ignore_errors=True)


def _copy(source: Path, target: Path) -> None:
    with source.open("rb") as old, target.open("xb") as new:
        shutil.copyfileobj(old, new, _CHUNK)
        new.flush()
        os.fsync(new.fileno())


def _require_plain(name: str) -> None:
    """Names are signed; one that leads elsewhere is not followed all the same.

    Raises:
        FileFailed: It is no plain file name.
    """
    if name != Path(name).name or name.startswith("."):
        raise FileFailed(f"{name[:128]!r} is no plain file name", "tell the publisher")
