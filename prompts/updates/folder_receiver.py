"""A store in its simplest form: blobs by digest and one state file, replaced whole."""

import hashlib
import json
import secrets
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from promptdial.prompts.atomic import disk_failure, sync_folder, write_atomic
from promptdial.prompts.errors import FileFailed, UsageError
from promptdial.prompts.updates.receiver import (
    BaseState,
    Change,
    Following,
    PromptState,
    is_refused,
)

_STATE = "state.json"
_ROOT = "root.json"


@dataclass(frozen=True)
class _State:
    """Everything that changes, in one file."""

    device_id: str
    channel: str
    tenants: tuple[str, ...]
    tasks: tuple[str, ...] | None
    bundle: str
    base: BaseState | None
    bundle_files: Mapping[str, str] = field(default_factory=dict)
    prompts: Mapping[tuple[str, str], PromptState] = field(default_factory=dict)
    history: Mapping[tuple[str, str], tuple[tuple[int, str], ...]] = field(
        default_factory=dict
    )
    revoked: frozenset[tuple[str, str]] = frozenset()
    time_floor: int = 0
    last_check: int = 0


class FolderReceiver:
    """Keeps what updates bring in a folder; implements `Receiver`.

    A version counts as good when it is committed: there is no self-test here.
    """

    def __init__(self, folder: Path) -> None:
        """Take a folder that `create` made.

        Raises:
            FileFailed: It is none.
        """
        self.folder = folder
        self._state = self._read()

    @classmethod
    def create(
        cls,
        folder: Path,
        root: bytes,
        following: Following | None = None,
        base: BaseState | None = None,
    ) -> "FolderReceiver":
        """Set a device up.

        Args:
            folder: Made where it is missing.
            root: The repository's root.json, from a source that is trusted.
            following: What the device wants; its id is drawn where there is none.
            base: The base that it has.

        Raises:
            UsageError: The folder was set up before.
            FileFailed: It cannot be written.
        """
        if (folder / _STATE).exists():
            raise UsageError(f"{folder} was set up before", "give another folder")
        found = following or Following(device_id="")
        (folder / "blobs").mkdir(parents=True, exist_ok=True)
        state = _State(
            device_id=found.device_id or secrets.token_hex(16),
            channel=found.channel,
            tenants=found.tenants,
            tasks=None if found.tasks is None else tuple(sorted(found.tasks)),
            bundle=found.bundle,
            base=base,
        )
        write_atomic(folder / _ROOT, root)
        write_atomic(folder / _STATE, _to_json(state))
        return cls(folder)

    @property
    def lock_path(self) -> Path:
        """See `Receiver`."""
        return self.folder / "update.lock"

    @property
    def metadata_folder(self) -> Path:
        """See `Receiver`."""
        return self.folder / "metadata"

    @property
    def staging_folder(self) -> Path:
        """See `Receiver`."""
        return self.folder / "staging"

    def root(self) -> bytes:
        """See `Receiver`."""
        return _read_bytes(self.folder / _ROOT)

    def following(self) -> Following:
        """See `Receiver`."""
        state = self._state
        return Following(
            state.device_id,
            state.channel,
            state.tenants,
            None if state.tasks is None else frozenset(state.tasks),
            state.bundle,
        )

    def base(self) -> BaseState | None:
        """See `Receiver`."""
        return self._state.base

    def prompts(self) -> Mapping[tuple[str, str], PromptState]:
        """See `Receiver`."""
        return self._state.prompts

    def time_floor(self) -> int:
        """See `Receiver`."""
        return self._state.time_floor

    def last_check(self) -> int:
        """See `Receiver`."""
        return self._state.last_check

    def refused(self) -> frozenset[tuple[str, str]]:
        """See `Receiver`."""
        return self._state.revoked

    def has(self, digest: str) -> bool:
        """See `Receiver`."""
        path = self.blob_path(digest)
        if not path.is_file():
            return False
        try:
            with path.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise disk_failure(path, error) from None
        return f"sha256:{found}" == digest

    def blob_path(self, digest: str) -> Path:
        """Where the content of a digest lies, or would."""
        return self.folder / "blobs" / digest.removeprefix("sha256:")

    def bundle_files(self) -> Mapping[str, str]:
        """Name to digest of the files of the base in use, as updates brought them."""
        return self._state.bundle_files

    def stage(self, digest: str, data: bytes) -> None:
        """See `Receiver`."""
        write_atomic(self.blob_path(digest), data)

    def stage_file(self, digest: str, path: Path) -> None:
        """See `Receiver`."""
        try:
            path.replace(self.blob_path(digest))
            sync_folder(self.folder / "blobs")
        except OSError as error:
            raise disk_failure(path, error) from None

    def commit(self, change: Change) -> None:
        """See `Receiver`."""
        state = _changed(self._state, change)
        write_atomic(self.folder / _STATE, _to_json(state))
        self._state = state
        self._remove_unused()

    def _remove_unused(self) -> None:
        state = self._state
        used = {item.digest for item in state.prompts.values()}
        used |= {digest for past in state.history.values() for _, digest in past}
        used |= set(state.bundle_files.values())
        for path in (self.folder / "blobs").iterdir():
            if f"sha256:{path.name}" not in used:
                # What a power cut brings back is removed by the next update.
                with suppress(OSError):
                    path.unlink()
        shutil.rmtree(self.staging_folder, ignore_errors=True)

    def _read(self) -> _State:
        try:
            return _from_json(json.loads(_read_bytes(self.folder / _STATE)))
        except (ValueError, KeyError, TypeError) as error:
            raise FileFailed(f"{self.folder / _STATE}: {error}", "set it up") from None


def _changed(state: _State, change: Change) -> _State:
    prompts, history = dict(state.prompts), dict(state.history)
    revoked = state.revoked | change.revoked
    bundle, base = state.bundle_files, state.base
    if change.bundle is not None:
        new = change.bundle.base
        kept = base is not None and (new.fingerprint, new.tokenizer_fingerprint) == (
            base.fingerprint,
            base.tokenizer_fingerprint,
        )
        if not kept:
            # Prompts of another base leave use; their floors stay.
            prompts = {
                key: replace(x, version=0, digest="") for key, x in prompts.items()
            }
            history = {}
        bundle, base = change.bundle.files, new
    for key, item in prompts.items():
        if item.digest and is_refused(revoked, key[0], item.digest):
            past = [
                old
                for old in history.get(key, ())
                if not is_refused(revoked, key[0], old[1])
            ]
            version, digest = past[-1] if past else (0, "")
            history[key] = tuple(past[:-1])
            prompts[key] = replace(item, version=version, digest=digest)
    for taken in change.prompts:
        key = taken.tenant, taken.task
        old = prompts.get(key, PromptState())
        if old.digest and old.digest != taken.digest:
            # One version to go back to is enough.
            history[key] = ((old.version, old.digest),)
        floor = max(old.floor, taken.version)
        prompts[key] = PromptState(taken.version, taken.digest, floor)
    return replace(
        state,
        base=base,
        bundle_files=bundle,
        prompts=prompts,
        history=history,
        revoked=revoked,
        time_floor=max(state.time_floor, change.time_floor),
        last_check=change.checked,
    )


def _to_json(state: _State) -> bytes:
    body: dict[str, Any] = {
        **asdict(state),
        "prompts": [[*key, asdict(x)] for key, x in sorted(state.prompts.items())],
        "history": [[*key, x] for key, x in sorted(state.history.items())],
        "revoked": sorted(state.revoked),
    }
    return json.dumps(body, indent=1, sort_keys=True).encode()


def _from_json(body: dict[str, Any]) -> _State:
    tasks, base = body["tasks"], body["base"]
    return _State(
        **{
            **body,
            "tenants": tuple(body["tenants"]),
            "tasks": None if tasks is None else tuple(tasks),
            "base": None if base is None else BaseState(**base),
            "prompts": {(a, b): PromptState(**x) for a, b, x in body["prompts"]},
            "history": {
                (a, b): tuple((v, d) for v, d in x) for a, b, x in body["history"]
            },
            "revoked": frozenset((a, b) for a, b in body["revoked"]),
        }
    )


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise disk_failure(path, error) from None
