"""Pruning a repository: what goes, what devices of every age still find."""

import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("tuf", reason="the extra ota is not installed")

from test_update_publishing import fill, tree
from update_server import Reply, serving
from update_world import World, blob_file

from promptdial.prompts.errors import FileFailed, Offline, Untrusted, UsageError
from promptdial.prompts.updates.publishing.prune import prune
from promptdial.prompts.updates.publishing.publish import publish_prompts, revoke
from promptdial.prompts.updates.publishing.repository import open_repository
from promptdial.prompts.updates.publishing.roles import (
    delegate,
    init_repository,
    refresh,
    rotate,
)
from promptdial.prompts.updates.publishing.settings import Lifetimes, Signers
from promptdial.prompts.updates.receiver import Following

DAY = 86_400
ROLES = ("snapshot", "targets")


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    folder = tmp_path / "world"
    init_repository(folder / "repository")
    with serving(folder / "repository" / "public") as server:
        yield World(folder, server)


def age(folder: Path, days: float) -> None:
    """Let files be as old as if they had been written so many days earlier."""
    for path in folder.rglob("*.*"):
        then = path.stat().st_mtime - days * DAY
        os.utime(path, (then, then))


def names(folder: Path) -> set[str]:
    return set(tree(folder))


def contents(world: World) -> int:
    return len(list(world.targets.rglob("*.safetensors")))


def test_what_was_replaced_long_ago_goes(world: World) -> None:
    for version in (1, 2, 3):
        world.publish(version=version)
    rotate(world.repository, "root")
    age(world.metadata, 8)
    before = names(world.repository.public)
    done = prune(world.repository)
    gone = before - names(world.repository.public)
    assert {name for name in gone if name.startswith("metadata/")} == {
        f"metadata/{n}.{role}.json" for n in (1, 2, 3) for role in ROLES
    }
    assert done.removed == len(gone) == 2 + 6
    assert done.bytes > 2_600 and done.generations == 1
    assert contents(world) == 1
    # Roots stay: a device that knows the first one goes on from it.
    assert {"metadata/1.root.json", "metadata/2.root.json"} <= names(
        world.repository.public
    )
    world.set_up_device()
    assert [offer.version for offer in world.update().prompts] == [3]
    assert prune(world.repository).removed == 0


def test_what_was_replaced_lately_stays(world: World) -> None:
    world.publish(version=1)
    world.publish(version=2)
    age(world.metadata, 8)
    # Version 2 was written 8 days ago, and replaced just now.
    world.publish(version=3)
    done = prune(world.repository)
    assert done.generations == 2 and contents(world) == 2
    age(world.metadata, 2)
    assert prune(world.repository, older=1).generations == 1
    assert contents(world) == 1


def test_a_device_in_the_middle_of_an_update_goes_on(world: World) -> None:
    """It has read the timestamp; then a release is replaced and all is pruned."""
    world.publish(version=1)
    world.publish(version=2)
    age(world.metadata, 8)
    world.set_up_device()
    snapshot = f"/metadata/{world.current('snapshot')}"

    def meanwhile(path: str, headers: Mapping[str, str]) -> Reply | None:
        del headers
        if path == snapshot and world.current("targets").startswith("3."):
            world.publish(version=3)
            assert prune(world.repository).removed == 2 + 2 + 1
        return None

    world.server.lie = meanwhile
    assert [offer.version for offer in world.update().prompts] == [2]
    world.server.lie = None
    assert [offer.version for offer in world.update().prompts] == [3]


def test_a_device_with_metadata_of_before(world: World) -> None:
    """It knows a generation that is gone, or the half of one, and takes the newest."""
    world.publish(version=1)
    world.publish("taste", version=1)
    world.set_up_device()
    world.update()
    for version in (2, 3):
        world.publish(version=version)
    # Half of an update that was cut short: the timestamp of a generation, no more.
    shutil.copy(world.metadata / "timestamp.json", world.folder / "device" / "metadata")
    world.publish(version=4)
    age(world.metadata, 8)
    assert prune(world.repository).removed > 0
    assert [offer.version for offer in world.update().prompts] == [4]


def test_all_layouts_keep_what_is_current(world: World) -> None:
    """Bins, tenants, channels, revoked releases; old bins hold no content back."""
    following = Following("d", "beta", ("", "acme"), frozenset({"colour"}))
    delegate(world.repository, "acme", Signers())
    world.publish(version=1)
    world.publish("taste", version=1)
    world.publish(version=2, channel="beta")
    world.publish(version=3, tenant="acme")
    fill(world, 230)
    # So many more that all targets move to other bins.
    fill(world, 2_600, start=230)
    world.publish(version=4)
    world.publish(version=5, channel="beta")
    revoke(world.repository, "taste")
    age(world.metadata, 8)
    prune(world.repository)
    # Version 4 on stable, 5 on beta, the tenant's.
    assert contents(world) == 3
    world.set_up_device(following)
    assert sorted(offer.version for offer in world.update().prompts) == [3, 5]
    world.publish("taste", version=2)
    assert world.update().prompts == ()


def test_no_keys_are_needed_and_nothing_else_is_touched(world: World) -> None:
    world.publish(version=1)
    world.publish(version=2)
    age(world.metadata, 8)
    shutil.rmtree(world.repository.keys)
    others = [
        world.repository.public / "index.html",
        world.metadata / "notes.json",
        world.targets / "prompts" / "README.md",
        world.repository.public / ".well-known" / "security.txt",
    ]
    for path in others:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"somebody else's")
    assert prune(world.repository).removed == 5
    assert all(path.exists() for path in others)


def test_nothing_goes_while_what_is_current_is_not_right(world: World) -> None:
    world.publish(version=1)
    world.publish(version=2)
    age(world.metadata, 8)
    world.edit(world.current("targets"), lambda targets: targets.targets.clear())
    before = tree(world.repository.public)
    with pytest.raises(Untrusted):
        prune(world.repository)
    assert tree(world.repository.public) == before
    (world.metadata / world.current("snapshot")).unlink()
    with pytest.raises(FileFailed):
        prune(world.repository)
    assert contents(world) == 2


@pytest.mark.parametrize("older", [-1.0, 0.0, 0.9, float("nan"), 1e9])
def test_ages_that_cannot_be(world: World, older: float) -> None:
    with pytest.raises(UsageError, match="allowed: 1, which a timestamp lives"):
        prune(world.repository, older)


def test_a_timestamp_that_lives_long_keeps_what_it_names(tmp_path: Path) -> None:
    init_repository(tmp_path / "repository", lifetimes=Lifetimes(timestamp=30))
    repository = open_repository(tmp_path / "repository")
    for version in (1, 2):
        publish_prompts(repository, [blob_file(tmp_path / "blobs", version=version)])
    age(repository.metadata, 29)
    assert prune(repository).removed == 0
    age(repository.metadata, 2)
    assert prune(repository).removed == 5


def test_cut_short_at_any_moment(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk fails at the first removal, then at the second, ..."""
    for version in (1, 2, 3):
        world.publish(version=version)
    age(world.metadata, 8)
    public, fresh = world.repository.public, world.folder / "fresh"
    shutil.copytree(public, fresh)
    prune(world.repository)
    pruned, failures = tree(public), 0
    for nth in range(20):
        shutil.rmtree(public)
        shutil.copytree(fresh, public)
        with monkeypatch.context() as patch:
            fail_removal(patch, nth)
            try:
                prune(world.repository)
            except FileFailed:
                failures += 1
            else:
                break
        world.set_up_device()
        assert [offer.version for offer in world.update().prompts] == [3]
        prune(world.repository)
        assert tree(public) == pruned
    assert failures == len(tree(fresh)) - len(pruned) == 8


def fail_removal(patch: pytest.MonkeyPatch, nth: int) -> None:
    real, calls = Path.unlink, 0

    def unlink(path: Path, missing_ok: bool = False) -> None:
        nonlocal calls
        calls += 1
        if calls == nth + 1:
            raise OSError(5, "Input/output error", str(path))
        real(path, missing_ok=missing_ok)

    patch.setattr(Path, "unlink", unlink)


@pytest.mark.parametrize("kind", ["folder", "url"])
def test_the_destination_is_pruned_as_well(tmp_path: Path, kind: str) -> None:
    fsspec: Any = pytest.importorskip("fsspec")
    to = str(tmp_path / "www") if kind == "folder" else f"memory://{tmp_path.name}/a"
    init_repository(tmp_path / "repository", to=to)
    repository = open_repository(tmp_path / "repository")
    for version in (1, 2, 3):
        publish_prompts(repository, [blob_file(tmp_path / "blobs", version=version)])
    files = fsspec.filesystem("memory" if kind == "url" else "file")
    where = f"/{tmp_path.name}/a" if kind == "url" else to
    files.pipe_file(f"{where}/index.html", b"somebody else's")
    age(repository.metadata, 8)
    done = prune(repository)
    assert done.removed == done.removed_there == 8
    found = {
        name.removeprefix(f"{where}/"): files.cat(name) for name in files.find(where)
    }
    assert found.pop("index.html") == b"somebody else's"
    assert found == tree(repository.public)
    # Later changes find their way there.
    publish_prompts(repository, [blob_file(tmp_path / "blobs", version=4)])
    refresh(repository)
    assert len(files.find(where)) == len(tree(repository.public)) + 1


def test_a_destination_that_is_behind_shows_what_is_current_first(
    tmp_path: Path,
) -> None:
    """What it shows is never taken away from under it."""
    init_repository(tmp_path / "repository", to=str(tmp_path / "www"))
    repository = open_repository(tmp_path / "repository")
    publish_prompts(repository, [blob_file(tmp_path / "blobs", version=1)])
    (tmp_path / "www").rename(tmp_path / "away")
    (tmp_path / "www").write_bytes(b"in the way")
    with pytest.raises(FileFailed):
        publish_prompts(repository, [blob_file(tmp_path / "blobs", version=2)])
    age(repository.metadata, 8)
    before = tree(repository.public)
    with pytest.raises((FileFailed, Offline)):
        prune(repository)
    assert tree(repository.public) == before
    (tmp_path / "www").unlink()
    (tmp_path / "away").rename(tmp_path / "www")
    assert prune(repository).removed_there == 5
    assert tree(tmp_path / "www") == tree(repository.public)
