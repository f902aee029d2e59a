"""A base bundle over the air: by file, with all its prompts, in one commit."""

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("tuf", reason="the extra ota is not installed")

from tuf.api.metadata import TargetFile
from update_attacks import targets_like
from update_server import serving
from update_world import BASE, OTHER_BASE, World, blob_file, state_of

from promptdial.prompts.errors import (
    BlobInvalid,
    PromptdialError,
    Untrusted,
    UsageError,
    VersionPublished,
)
from promptdial.prompts.updates.publishing.publish import (
    publish_bundle,
    publish_prompts,
)
from promptdial.prompts.updates.publishing.releases import Audience
from promptdial.prompts.updates.publishing.roles import init_repository
from promptdial.prompts.updates.receiver import BaseState, Following

FILES = {
    "model_int8.onnx": b"graph of one" * 4000,
    "embed_tokens.safetensors": b"table" * 9000,
    "tokenizer.json": b"{}",
}


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    folder = tmp_path / "world"
    init_repository(folder / "repository")
    with serving(folder / "repository" / "public") as server:
        made = World(folder, server)
        made.publish()
        publish_bundle(made.repository, bundle(made), "tiny", 1)
        made.set_up_device(Following("d", bundle="tiny"), base=None)
        yield made


def bundle(world: World, base: BaseState = BASE, **changed: bytes) -> Path:
    """A bundle's folder, as far as publishing looks at it."""
    folder = world.folder / "tiny.bundle"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    files = {**FILES, **{k.replace("__", "."): v for k, v in changed.items()}}
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


def publish_for(world: World, base: BaseState, version: int, task: str) -> None:
    folder = world.folder / "blobs" / base.fingerprint[-4:]
    path = blob_file(folder, task, version, base=base)
    publish_prompts(world.repository, [path])


def asked_targets(world: World) -> list[str]:
    """Names of the files that were asked for, without digests."""
    found = [path for path in world.server.requests if "/targets/bases/" in path]
    world.server.requests.clear()
    return [path.rpartition("/")[2].partition(".")[2] for path in found]


def test_a_device_without_a_base_gets_one_and_its_prompts(world: World) -> None:
    report = world.update()
    assert report.bundle is not None and report.bundle.version == 1
    assert sorted(asked_targets(world)) == sorted([*FILES, "manifest.json"])
    device = world.device
    base = device.base()
    assert base is not None and base.fingerprint == BASE.fingerprint
    assert device.prompts()["", "colour"].version == 1
    for name, data in FILES.items():
        assert (world.store.base_folder() / name).read_bytes() == data
    assert world.update().bundle is None
    assert asked_targets(world) == []


def test_unchanged_files_are_not_sent_again(world: World) -> None:
    world.update()
    asked_targets(world)
    new = bundle(world, model_int8__onnx=b"graph of two" * 4000)
    publish_bundle(world.repository, new, "tiny", 2)
    report = world.update()
    assert asked_targets(world) == ["manifest.json", "model_int8.onnx"]
    assert report.needed < len(FILES["model_int8.onnx"]) + 2_000
    # The same weights in another graph: prompts stay in use as they are.
    assert world.device.prompts()["", "colour"].version == 1
    folder = world.store.base_folder()
    assert (folder / "model_int8.onnx").read_bytes().startswith(b"graph of two")
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        [*FILES, "manifest.json"]
    )


def test_a_new_base_waits_until_all_prompts_are_there(world: World) -> None:
    world.publish("taste")
    world.update()
    publish_bundle(world.repository, bundle(world, OTHER_BASE), "tiny", 2)
    publish_for(world, OTHER_BASE, 2, "colour")
    before = world.device.base()
    report = world.update()
    assert report.bundle is None
    held = {item.name: item.why for item in report.held}
    assert held == {"tiny": "no prompt for it: taste"}
    assert world.device.base() == before
    publish_for(world, OTHER_BASE, 2, "taste")
    report = world.update()
    assert report.bundle is not None and report.bundle.version == 2
    assert {x.name.target for x in report.prompts} == {
        f"prompts/{task}~{'c' * 8}.safetensors" for task in ("colour", "taste")
    }
    base = world.device.base()
    assert base is not None and base.fingerprint == OTHER_BASE.fingerprint
    assert {s.version for s in world.device.prompts().values()} == {2}


def test_a_prompt_below_its_floor_holds_the_base_back(world: World) -> None:
    world.publish(version=5)
    world.update()
    publish_bundle(world.repository, bundle(world, OTHER_BASE), "tiny", 2)
    publish_for(world, OTHER_BASE, 4, "colour")
    report = world.update()
    assert report.bundle is None and report.prompts == ()
    assert world.device.prompts()["", "colour"].version == 5


def test_a_base_that_breaks_off_changes_nothing(world: World) -> None:
    world.update()
    publish_bundle(world.repository, bundle(world, OTHER_BASE, x=b"x" * 999), "tiny", 2)
    publish_for(world, OTHER_BASE, 2, "colour")
    before = state_of(world.folder / "device")
    for path in (world.targets / "bases" / "tiny").glob("*.x"):
        path.write_bytes(b"y" * 999)
    with pytest.raises(PromptdialError) as caught:
        world.update()
    assert caught.value.code == "UNTRUSTED"
    assert state_of(world.folder / "device") == before
    for path in (world.targets / "bases" / "tiny").glob("*.x"):
        path.write_bytes(b"x" * 999)
    assert world.update().bundle is not None


def test_36_a_climbing_name_in_a_manifest(world: World) -> None:
    """Signed with stolen keys: a base's files keep their names, so none may climb."""
    world.update()
    before = state_of(world.folder / "device")
    new = bundle(world, model_int8__onnx=b"graph of two")
    publish_bundle(world.repository, new, "tiny", 2)
    evil = json.loads((new / "manifest.json").read_text())
    evil["files"]["../../../evil"] = evil["files"].pop("tokenizer.json")
    data = json.dumps(evil).encode()

    def climb(world: World, targets: Any) -> None:
        name = "bases/tiny/manifest.json"
        target = TargetFile.from_data(name, data, ["sha256"])
        old = targets.targets[name]
        target.unrecognized_fields = dict(old.unrecognized_fields)
        targets.targets[name] = target
        climbing = "bases/tiny/../../../evil"
        targets.targets[climbing] = targets.targets["bases/tiny/tokenizer.json"]
        digest = target.hashes["sha256"]
        (world.targets / f"bases/tiny/{digest}.manifest.json").write_bytes(data)

    targets_like(climb)(world)
    with pytest.raises(Untrusted, match="no plain name"):
        world.update()
    assert state_of(world.folder / "device") == before
    assert not list(world.folder.rglob("evil"))


def test_a_base_for_a_share_of_the_devices(world: World) -> None:
    world.update()
    canary = Audience(channel="canary", percent=0)
    new = bundle(world, model_int8__onnx=b"graph of two" * 4000)
    publish_bundle(world.repository, new, "tiny", 2, canary)
    assert world.update().bundle is None
    following = Following("d", channel="canary", bundle="tiny")
    report = world.update(following=following)
    assert report.bundle is not None and report.bundle.version == 2


def test_a_version_of_a_bundle_never_changes(world: World) -> None:
    new = bundle(world, model_int8__onnx=b"other")
    with pytest.raises(VersionPublished):
        publish_bundle(world.repository, new, "tiny", 1)
    with pytest.raises(UsageError, match="version 0"):
        publish_bundle(world.repository, new, "tiny", 0)


def test_a_bundle_that_is_not_as_its_manifest_says(world: World) -> None:
    new = bundle(world)
    (new / "tokenizer.json").write_bytes(b"changed")
    with pytest.raises(BlobInvalid, match="what the manifest says"):
        publish_bundle(world.repository, new, "tiny", 2)
    assert not list((world.targets / "bases").rglob(".*"))
