"""What updates do to a store, step by step; under the shim, all of it is recorded.

As a script: `crash_update_scenario.py ROOT OUT WORLD [FLAW]` follows a repository in
WORLD, which it makes and changes, with a store at ROOT/store. OUT: as crash_scenario.py
writes it.
"""

import hashlib
import json
import pickle
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from crash_scenario import Held, held_by, leave_out_files, listed
from crash_shim import loaded, recorded
from update_server import serving
from update_world import BASE, OTHER_BASE, World, blob_file

from promptdial.prompts.store import (
    PromptStore,
    base_folders,
    make_store,
    set_up_updates,
)
from promptdial.prompts.store.device_rows import (
    base_files_of,
    key_in_use,
    revoked_of,
)
from promptdial.prompts.store.digests import file_has
from promptdial.prompts.store.receiving import CHECK_SECONDS, StoreReceiver
from promptdial.prompts.updates.device.fetcher import Source
from promptdial.prompts.updates.device.update import update
from promptdial.prompts.updates.publishing.publish import (
    publish_bundle,
    publish_prompts,
    revoke,
)
from promptdial.prompts.updates.publishing.roles import init_repository
from promptdial.prompts.updates.receiver import BaseState, Change, Following

FOLLOWING = Following("device", bundle="tiny")
TASKS = ("colour", "taste")


def held(folder: Path) -> Held:
    """What a store holds; blobs and base are whole, and made for each other.

    Raises:
        PromptdialError, AssertionError: They are not.
    """
    return held_by(folder, listed_with_device)


def listed_with_device(store: PromptStore) -> Held:
    """What the index says of versions, the device and its base."""
    device = store.device()
    if device is None:
        return listed(store)
    assert json.loads((store.path / "root.json").read_bytes())["signed"]
    with store._index.reading() as connection:
        base, files = key_in_use(connection), base_files_of(connection)
        revoked = sorted(revoked_of(connection))
    if files:
        folder = store.base_folder()
        assert {path.name for path in folder.iterdir()} == set(files)
        assert all(file_has(folder / name, digest) for name, digest in files.items())
    for version in store.versions():
        # A base is never in use with prompts of another.
        assert not version.active or version.base == base, version
    return (*listed(store), device, tuple(files.items()), *revoked)


class Follower:
    """The steps: each changes the store once, or not at all."""

    def __init__(self, folder: Path, world: World) -> None:
        self._folder = folder
        self._world = world

    @property
    def root(self) -> bytes:
        return (self._world.metadata / "1.root.json").read_bytes()

    def publish(self, base: BaseState, version: int, *tasks: str) -> None:
        folder = self._world.folder / "blobs" / base.fingerprint[-4:]
        paths = [blob_file(folder, task, version, base=base) for task in tasks]
        publish_prompts(self._world.repository, paths)

    def publish_base(self, base: BaseState, version: int) -> None:
        folder = make_bundle(self._world.folder / f"tiny{version}.bundle", base)
        publish_bundle(self._world.repository, folder, "tiny", version)

    def update(self) -> None:
        with StoreReceiver(self._folder) as receiver:
            update(receiver, Source(self._world.server.url))

    def check_later(self) -> None:
        with StoreReceiver(self._folder) as receiver:
            later = receiver.last_check() + CHECK_SECONDS
            receiver.commit(Change(checked=later, time_floor=later))

    def begins(self, task: str) -> None:
        with PromptStore(self._folder) as store:
            _, digest = store.serving(task)
            assert digest is not None and store.begin_trial(task, digest, wait=False)

    def ends(self, task: str, failure: str = "") -> None:
        with PromptStore(self._folder) as store:
            _, digest = store.serving(task)
            assert digest is not None
            store.end_trial(task, digest, failure)

    def steps(self) -> list[Callable[[], object]]:
        def first() -> None:
            self.publish(BASE, 1, *TASKS)
            self.publish_base(BASE, 1)
            self.update()

        def one_of_two() -> None:
            self.publish(BASE, 2, "colour")
            self.update()

        def revoked() -> None:
            revoke(self._world.repository, "colour")
            self.update()

        def both() -> None:
            self.publish(BASE, 3, *TASKS)
            self.update()

        def other_base() -> None:
            self.publish_base(OTHER_BASE, 2)
            self.publish(OTHER_BASE, 4, *TASKS)
            self.update()

        def trial(task: str) -> list[Callable[[], object]]:
            return [lambda: self.begins(task), lambda: self.ends(task)]

        return [
            lambda: make_store(self._folder),
            lambda: set_up_updates(self._folder, self.root, FOLLOWING),
            first,
            *trial("colour"),
            *trial("taste"),
            self.update,
            one_of_two,
            *trial("colour"),
            revoked,
            both,
            *trial("taste"),
            other_base,
            *trial("colour"),
            self.check_later,
        ]


def make_bundle(folder: Path, base: BaseState) -> Path:
    """A bundle's folder, as far as updates look at it; two of three files differ."""
    files = {
        "model_int8.onnx": base.fingerprint.encode() * 20,
        "embed_tokens.safetensors": b"table" * 400,
        "tokenizer.json": b"{}",
    }
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    body = {
        "base": {
            "fingerprint": base.fingerprint,
            "tokenizer_fingerprint": base.tokenizer_fingerprint,
        },
        "files": {
            name: {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
            for name, data in files.items()
        },
    }
    (folder / "manifest.json").write_text(json.dumps(body))
    return folder


def leave_out_bases() -> None:
    """New names of bases are not synced."""
    vars(base_folders)["sync_folder"] = lambda folder: None


FLAWS = {"files": leave_out_files, "bases": leave_out_bases}


def main(root: Path, out: Path, folder: Path, flaw: str = "") -> None:
    if flaw:
        FLAWS[flaw]()
    shim = loaded()
    init_repository(folder / "repository")
    after: list[Held] = []
    with serving(folder / "repository" / "public") as server:
        follower = Follower(root / "store", World(folder, server))
        shim.shim_start(str(root).encode())
        for number, step in enumerate(follower.steps()):
            step()
            shim.shim_mark(f"done {number}".encode())
            with PromptStore(root / "store") as store:
                after.append(listed_with_device(store))
        shim.shim_stop()
    out.write_bytes(pickle.dumps((recorded(shim), after)))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), *sys.argv[4:])
