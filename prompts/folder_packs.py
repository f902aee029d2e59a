"""The packs of a folder of prompts: found once, and again when the folder changes."""

import os
from pathlib import Path

from promptdial.prompts.blob import PromptBlob
from promptdial.prompts.errors import BlobInvalid, FileFailed, PromptError
from promptdial.prompts.kept_files import KeptFiles, Stamp, settled, stamp_of
from promptdial.prompts.pack import MAX_PACK_BYTES, PACK_SUFFIX, Pack, decode_pack

_KEPT = 64
"""Packs kept between calls."""


class FolderPacks:
    """Serves the tasks of all `<name>.pack.safetensors`. Safe to share among threads.

    A pack that breaks the format keeps no other from being used.
    """

    def __init__(self, path: Path) -> None:
        """Take a folder; nothing is read yet."""
        self._path = path
        self._files: KeptFiles[Pack | PromptError] = KeptFiles(_KEPT, MAX_PACK_BYTES)
        self._names: tuple[Stamp, tuple[str, ...]] | None = None

    def get(self, task: str) -> PromptBlob | None:
        """The blob of a task; None where no pack has it.

        Raises:
            BlobInvalid: Two packs have it.
            PromptError: No pack has it, and one of them breaks the format.
        """
        found: list[tuple[str, PromptBlob]] = []
        broken: PromptError | None = None
        for name, pack in self._packs():
            if isinstance(pack, PromptError):
                broken = broken or pack
                continue
            blob = pack.get(task)
            if blob is not None:
                found.append((name, blob))
        if len(found) > 1:
            raise BlobInvalid(
                f"task {task!r} is in {found[0][0]} and in {found[1][0]}, allowed: one "
                "pack",
                "take one of the two away",
            )
        if found:
            return found[0][1]
        if broken is not None:
            raise broken
        return None

    def tasks(self) -> set[str]:
        """Names of the tasks of all packs that can be read.

        Raises:
            FileFailed: The folder cannot be read.
        """
        return {
            task
            for _, pack in self._packs()
            if isinstance(pack, Pack)
            for task in pack.tasks
        }

    def _packs(self) -> list[tuple[str, Pack | PromptError]]:
        found: list[tuple[str, Pack | PromptError]] = []
        for name in self._listed():
            path = os.path.join(self._path, name)  # noqa: PTH118 (a request's path)
            try:
                pack = self._files.get(name, path, _decoded)
            except OSError:  # taken away since the folder was listed
                continue
            except PromptError as error:
                pack = error
            found.append((name, pack))
        return found

    def _listed(self) -> tuple[str, ...]:
        """File names of the packs: a stat of the folder where nothing changed."""
        known = self._names
        try:
            folder = os.stat(self._path)  # noqa: PTH116 (a request's path)
            if known is not None and known[0] == stamp_of(folder):
                return known[1]
            fixed = settled(folder)
            with os.scandir(self._path) as entries:
                found = sorted(
                    entry.name for entry in entries if entry.name.endswith(PACK_SUFFIX)
                )
        except OSError as error:
            raise FileFailed(f"{self._path}: {error.strerror}", "check it") from None
        names = tuple(found)
        if fixed:
            self._names = (stamp_of(folder), names)
        return names


def _decoded(data: bytes, name: str) -> Pack | PromptError:
    """A pack, or why it is none: kept as well, so that it is read once."""
    try:
        return decode_pack(data)
    except PromptError as error:
        return type(error)(f"{name}: {error.message}", error.hint)
