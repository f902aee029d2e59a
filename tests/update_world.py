"""A repository, a server and a device, for tests of updates."""

import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata
from tuf.api.serialization.json import JSONSerializer
from update_server import StaticServer

from promptdial.prompts.blob import PromptMeta, make_blob, write_blob
from promptdial.prompts.store import PromptStore, set_up_updates
from promptdial.prompts.store.receiving import StoreReceiver
from promptdial.prompts.updates.device.fetcher import Source
from promptdial.prompts.updates.device.limits import DEFAULT_LIMITS, Limits
from promptdial.prompts.updates.device.update import Report, update
from promptdial.prompts.updates.publishing import draft, repository
from promptdial.prompts.updates.publishing.keys import load_signers
from promptdial.prompts.updates.publishing.publish import publish_prompts
from promptdial.prompts.updates.publishing.releases import Audience
from promptdial.prompts.updates.publishing.repository import (
    Repository,
    open_repository,
)
from promptdial.prompts.updates.receiver import BaseState, Following

META = PromptMeta(
    task="colour",
    version=1,
    kind="classification",
    attention="one_way",
    base_model="tiny",
    base_fingerprint="ckpt1:" + "a" * 64,
    tokenizer_fingerprint="tok1:" + "b" * 64,
    labels=("red", "green", "blue"),
    pooling="mean_l2",
    license="Apache-2.0",
    created="2026-11-24T00:00:00Z",
)
"""As in blobs.py, which imports the runtime; updates need none."""

BASE = BaseState(META.base_fingerprint, META.tokenizer_fingerprint)
OTHER_BASE = BaseState("ckpt1:" + "c" * 64, META.tokenizer_fingerprint)

HASTE = Limits(
    wait_seconds=1.0, metadata_seconds=2.0, file_seconds=2.0, least_rate=1_000_000
)
"""Limits that a test of slow servers can wait for."""


@dataclass(frozen=True)
class World:
    """One repository, its server, one device."""

    folder: Path
    server: StaticServer

    @property
    def repository(self) -> Repository:
        return open_repository(self.folder / "repository")

    @property
    def metadata(self) -> Path:
        return self.folder / "repository" / "public" / "metadata"

    @property
    def targets(self) -> Path:
        return self.folder / "repository" / "public" / "targets"

    @property
    def device(self) -> StoreReceiver:
        return StoreReceiver(self.folder / "device")

    @property
    def store(self) -> PromptStore:
        return PromptStore(self.folder / "device")

    def blob_path(self, digest: str) -> Path:
        return self.folder / "device/blobs/sha256" / digest.removeprefix("sha256:")

    def pass_trials(self) -> None:
        """As an engine does with the first requests: what is on trial is good."""
        for (tenant, task), state in self.device.prompts().items():
            view = self.store.for_tenant(tenant)
            if state.version and view.begin_trial(task, state.digest, wait=False):
                view.end_trial(task, state.digest, "")

    def publish(
        self, task: str = "colour", version: int = 1, **audience: Any
    ) -> tuple[str, ...]:
        path = blob_file(self.folder / "blobs", task, version)
        found = Audience(**audience)
        return publish_prompts(self.repository, [path], found).written

    def update(self, limits: Limits = DEFAULT_LIMITS, **more: Any) -> Report:
        return update(self.device, Source(self.server.url), limits=limits, **more)

    def set_up_device(
        self, following: Following | None = None, base: BaseState | None = BASE
    ) -> StoreReceiver:
        root = (self.metadata / "1.root.json").read_bytes()
        shutil.rmtree(self.folder / "device", ignore_errors=True)
        set_up_updates(self.folder / "device", root, following, base)
        return self.device

    def signers(self) -> list[CryptoSigner]:
        """All keys of the publisher: those that an attacker stole."""
        return list(load_signers(self.repository.keys).values())

    def edit(
        self,
        file: str,
        change: Callable[[Any], None],
        stolen: str = "",
        to: str = "",
    ) -> None:
        """Change a metadata file, with the keys of a role or none to sign with.

        Args:
            file: Its name.
            change: Edits the `signed` part.
            stolen: Role whose keys sign; "" keeps the signatures that are there.
            to: Name to write it under; "" for the same.
        """
        found: Metadata[Any] = Metadata.from_bytes((self.metadata / file).read_bytes())
        change(found.signed)
        if stolen:
            keys = self.repository.keys.glob(f"{stolen}-*.pem")
            ids = {path.stem.rpartition("-")[2] for path in keys}
            found.signatures.clear()
            for signer in self.signers():
                if signer.public_key.keyid[:8] in ids:
                    found.sign(signer, append=True)
        data = found.to_bytes(JSONSerializer(compact=True, validate=False))
        (self.metadata / (to or file)).write_bytes(data)

    def current(self, role: str) -> str:
        """Name of the file of a role's newest version."""
        if role == "timestamp":
            return "timestamp.json"
        names = [path.name for path in self.metadata.glob(f"*.{role}.json")]
        return max(names, key=lambda name: int(name.partition(".")[0]))


def days_ago(days: float) -> Any:
    """Publish as if it were that long ago."""
    past = draft.utc_now() - timedelta(days=days)
    return mock.patch.object(repository, "utc_now", lambda: past)


def blob_file(
    folder: Path,
    task: str = "colour",
    version: int = 1,
    seed: int | None = None,
    base: BaseState = BASE,
    rows_of_prompt: int = 4,
    width: int = 64,
) -> Path:
    """A blob in a folder of its own: 1.3 KB, or 40 KB for 97 rows of 384."""
    path = folder / f"{task}-{version}" / f"{task}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    meta = replace(
        META,
        task=task,
        version=version,
        base_fingerprint=base.fingerprint,
        tokenizer_fingerprint=base.tokenizer_fingerprint,
    )
    rng = np.random.default_rng(version if seed is None else seed)
    rows = rng.standard_normal((rows_of_prompt, width)).astype(np.float32)
    head = rng.standard_normal((3, width)).astype(np.float32)
    write_blob(path, make_blob(meta, embeddings=rows, head_weight=head))
    return path


def state_of(device: Path) -> dict[str, Any]:
    """Everything that an update may change of a device: index, blobs and bases.

    Metadata and what is half downloaded may change when nothing else does.
    """
    with closing(sqlite3.connect(device / "index.sqlite")) as connection:
        tables = connection.execute(
            "SELECT name FROM sqlite_master WHERE type = 'table'"
        ).fetchall()
        state = {
            name: connection.execute(f"SELECT * FROM {name}").fetchall()
            for (name,) in tables
        }
    files = {
        folder: sorted(str(path) for path in (device / folder).rglob("*"))
        for folder in ("blobs", "bases", "staging")
    }
    return {"state": state, **files}
