"""A store as an update sees it: implements `Receiver` over blobs, bases and index."""

import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Self

from promptdial.prompts.atomic import disk_failure, sync_folder, write_atomic
from promptdial.prompts.blob import PromptBlob
from promptdial.prompts.errors import FileFailed, PromptError, UsageError
from promptdial.prompts.store.base_folders import BaseFolders
from promptdial.prompts.store.blobs import BlobFiles, read_blob_file
from promptdial.prompts.store.collecting import collect
from promptdial.prompts.store.device_rows import (
    Device,
    base_files_of,
    device_of,
    revoked_of,
)
from promptdial.prompts.store.digests import file_has
from promptdial.prompts.store.index import Index
from promptdial.prompts.store.layout import mapped_errors, require_store
from promptdial.prompts.store.making import limits_of
from promptdial.prompts.store.taking import take
from promptdial.prompts.updates.receiver import (
    BaseState,
    Change,
    Following,
    PromptState,
)

CHECK_SECONDS = 600
"""A check that finds nothing new is noted when the last one noted is so long ago: a
device may ask every minute, and its flash is not written to each time. By as much the
time floor may lag behind; the lists that are signed live for a day."""


class StoreReceiver:
    """Takes updates into a store that was set up for them.

    Versions go on trial as after `PromptStore.activate`: what serves until a self-test
    was passed, and what comes after failures, is the store's usual way.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Open a store.

        Raises:
            UsageError: It was not set up for updates.
            StoreError, FileFailed: There is none, or it cannot be opened.
        """
        self._layout = require_store(Path(path))
        self._index = Index(self._layout)
        self._blobs = BlobFiles(self._layout)
        self._bases = BaseFolders(self._layout)
        try:
            self._device()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the index; a later call opens it again."""
        self._index.close()

    @property
    def lock_path(self) -> Path:
        """See `Receiver`."""
        return self._layout.update / "lock"

    @property
    def metadata_folder(self) -> Path:
        """See `Receiver`."""
        return self._layout.update / "metadata"

    @property
    def staging_folder(self) -> Path:
        """See `Receiver`."""
        return self._layout.update / "staging"

    def root(self) -> bytes:
        """See `Receiver`."""
        path = self._layout.root_of_trust
        try:
            return path.read_bytes()
        except OSError as error:
            raise disk_failure(path, error) from None

    def following(self) -> Following:
        """See `Receiver`."""
        return self._device().following

    def base(self) -> BaseState | None:
        """See `Receiver`."""
        return self._device().base

    def prompts(self) -> Mapping[tuple[str, str], PromptState]:
        """See `Receiver`."""
        with self._index.reading() as connection:
            rows = connection.execute(
                "SELECT t.tenant, t.task, coalesce(v.version, 0), "
                "coalesce(v.digest, ''), t.floor, coalesce(v.pinned, 0) "
                "FROM tasks t LEFT JOIN versions v "
                "ON v.tenant = t.tenant AND v.task = t.task AND v.version = t.active"
            ).fetchall()
        return {
            (tenant, task): PromptState(version, digest, floor, bool(pinned))
            for tenant, task, version, digest, floor, pinned in rows
        }

    def time_floor(self) -> int:
        """See `Receiver`."""
        return self._device().time_floor

    def last_check(self) -> int:
        """See `Receiver`."""
        return self._device().last_check

    def refused(self) -> frozenset[tuple[str, str]]:
        """See `Receiver`."""
        with self._index.reading() as connection:
            failed = connection.execute("SELECT tenant, digest FROM bad").fetchall()
            return revoked_of(connection) | frozenset(failed)

    def has(self, digest: str) -> bool:
        """See `Receiver`."""
        return any(file_has(path, digest) for path in self._places(digest))

    def stage(self, digest: str, data: bytes) -> None:
        """See `Receiver`."""
        with mapped_errors(self._ready):
            self._ready.mkdir(parents=True, exist_ok=True)
        write_atomic(self._staged(digest), data)

    def stage_file(self, digest: str, path: Path) -> None:
        """See `Receiver`."""
        with mapped_errors(path):
            self._ready.mkdir(parents=True, exist_ok=True)
            path.replace(self._staged(digest))
            sync_folder(self._ready)

    def commit(self, change: Change) -> None:
        """See `Receiver`."""
        device = self._device()
        if not change.is_empty or _is_due(device, change):
            kept = [device.base.digest] if device.base is not None else []
            # The base before the present one was left to those who were opening it.
            self._bases.sweep(kept)
            if change.bundle is not None:
                self._make_base(change.bundle.base.digest, change.bundle.files)
            self._change(change)
        if not change.is_empty:
            # The change is made: what cannot be tidied up now, the next one tidies.
            with suppress(PromptError):
                collect(self._index, self._blobs)
        for folder in (self._ready, self.staging_folder):
            shutil.rmtree(folder, ignore_errors=True)

    def _change(self, change: Change) -> None:
        digests = {item.digest for item in change.prompts}
        with self._index.writing() as connection:
            device = device_of(connection)
            assert device is not None
            blobs = {digest: self._read(digest) for digest in digests}
            take(connection, device, change, blobs, limits_of(connection))
            staged = {digest: self._staged(digest) for digest in digests}
            self._blobs.place({k: path for k, path in staged.items() if path.exists()})

    def _make_base(self, digest: str, files: Mapping[str, str]) -> None:
        def find(content: str) -> Path:
            for path in self._places(content):
                if file_has(path, content):
                    return path
            raise _gone(content)

        self._bases.make(digest, files, find, self._ready)

    def _read(self, digest: str) -> PromptBlob:
        """A blob that goes into use, whole and right."""
        try:
            path = self._staged(digest)
            if path.exists():
                return read_blob_file(path, digest)
            return self._blobs.read(digest)
        except FileNotFoundError:
            raise _gone(digest) from None

    @property
    def _ready(self) -> Path:
        """What came, verified, for the commit to take."""
        return self._layout.update / "ready"

    def _staged(self, digest: str) -> Path:
        return self._ready / digest.removeprefix("sha256:")

    def _places(self, digest: str) -> list[Path]:
        """Where the content of a digest may lie."""
        with self._index.reading() as connection:
            device, files = device_of(connection), base_files_of(connection)
        found = [self._staged(digest), self._layout.blob(digest)]
        if device is not None and device.base is not None and device.base.digest:
            folder = self._layout.base(device.base.digest)
            found += [folder / name for name, it in files.items() if it == digest]
        return found

    def _device(self) -> Device:
        with self._index.reading() as connection:
            found = device_of(connection)
        if found is None:
            raise UsageError(
                f"{self._layout.root} is not set up for updates",
                f"run: promptdial store init {self._layout.root} --root ROOT.json",
            )
        return found


def _gone(digest: str) -> FileFailed:
    return FileFailed(f"the store has no content {digest}", "update again")


def _is_due(device: Device, change: Change) -> bool:
    """Whether a check that found nothing new is worth a write."""
    return (
        abs(change.checked - device.last_check) >= CHECK_SECONDS
        or change.time_floor - device.time_floor >= CHECK_SECONDS
    )
