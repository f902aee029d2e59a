"""What an update does to a store: trials, going back, bounds, pins, few writes."""

import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("tuf", reason="the extra ota is not installed")

from update_server import serving
from update_world import BASE, OTHER_BASE, World, blob_file, state_of

from promptdial.prompts.errors import (
    BlobInvalid,
    DataInvalid,
    MarkedBad,
    OtherBase,
    StoreFull,
    UsageError,
    VersionTaken,
)
from promptdial.prompts.store import Limits, make_store, set_up_updates
from promptdial.prompts.store.receiving import CHECK_SECONDS, StoreReceiver
from promptdial.prompts.updates.publishing.publish import publish_prompts, revoke
from promptdial.prompts.updates.publishing.roles import delegate, init_repository
from promptdial.prompts.updates.publishing.settings import Signers
from promptdial.prompts.updates.receiver import Activation, Change, Following


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    folder = tmp_path / "world"
    init_repository(folder / "repository")
    with serving(folder / "repository" / "public") as server:
        made = World(folder, server)
        made.publish()
        made.set_up_device()
        yield made


def states(world: World, tenant: str = "") -> dict[int, str]:
    found = world.store.for_tenant(tenant).versions("colour")
    return {item.version: item.state for item in found}


def take(world: World, version: int) -> None:
    """Publish a version, take it, and find it good."""
    world.publish(version=version)
    world.update()
    world.pass_trials()


def fail_trials(world: World) -> None:
    store = world.store
    for _ in range(3):
        _, digest = store.serving("colour")
        assert digest is not None and store.begin_trial("colour", digest, wait=False)
        store.end_trial("colour", digest, "golden input 'x' is 'red', not 'blue'")


def test_what_comes_is_tried_before_it_is_good(world: World) -> None:
    take(world, 1)
    world.publish(version=2)
    world.update()
    assert states(world) == {1: "good", 2: "trial"}
    (task,) = world.store.tasks()
    assert (task.active, task.previous, task.floor) == (2, 1, 1)
    # Until then the good one serves.
    good, on_trial = world.store.serving("colour")
    assert good is not None and good.meta.version == 1 and on_trial is not None
    world.pass_trials()
    assert world.store.tasks()[0].floor == 2
    # One version to go back to is enough: nobody is there to tidy up.
    take(world, 3)
    assert states(world) == {2: "good", 3: "good"}
    assert len(list(world.blob_path("").iterdir())) == 2


def test_what_fails_is_not_taken_again(world: World) -> None:
    take(world, 1)
    world.publish(version=2)
    world.update()
    fail_trials(world)
    assert states(world) == {1: "good", 2: "bad"}
    before = world.server.requests[:]
    report = world.update()
    assert [item.why for item in report.held] == [
        "version 2 is revoked, or failed on this device"
    ]
    assert not any("/targets/" in path for path in world.server.requests[len(before) :])
    assert world.store.get("colour").meta.version == 1
    take(world, 3)
    assert world.store.get("colour").meta.version == 3


def test_a_revoked_version_leaves_use_pinned_or_not(world: World) -> None:
    for version in (1, 2):
        take(world, version)
    world.store.pin("colour")
    revoke(world.repository, "colour")
    world.update()
    assert states(world) == {1: "good", 2: "bad"}
    assert world.store.get("colour").meta.version == 1
    with pytest.raises(MarkedBad, match="revoked by its publisher"):
        world.store.activate("colour", 2)
    # By file it does not come back either, under whatever number it is installed.
    world.store.pin("colour", 2, pinned=False)
    world.store.remove("colour", 2)
    data = blob_file(world.folder / "blobs", version=2).read_bytes()
    assert world.store.install(data).state == "bad"


def test_a_revoked_version_with_none_before_leaves_nothing(world: World) -> None:
    take(world, 1)
    revoke(world.repository, "colour")
    world.update()
    assert world.device.prompts()["", "colour"].version == 0
    with pytest.raises(MarkedBad, match="revoked by its publisher"):
        world.store.get("colour")


def test_going_back_skips_what_is_revoked_as_well(world: World) -> None:
    take(world, 1)
    take(world, 2)
    digests = {x.version: x.digest for x in world.store.versions("colour")}
    world.store.pin("colour", 1)
    take(world, 3)
    # Versions 2 and 3 at once, of which one is what the other goes back to.
    new = world.store.versions("colour")[-1].digest
    starts = {("", digests[2][:40]), ("", new[:40])}
    world.device.commit(Change(checked=0, time_floor=0, revoked=frozenset(starts)))
    assert states(world) == {1: "good", 2: "bad", 3: "bad"}
    (task,) = world.store.tasks()
    assert (task.active, task.previous, task.floor) == (1, None, 3)


def test_a_revoked_challenger_answers_no_share(world: World) -> None:
    take(world, 1)
    take(world, 2)
    path = blob_file(world.folder / "own", "colour", 3)
    digest = world.store.install(path.read_bytes()).digest
    world.store.share("colour", 3, 20)
    beginning = ("", digest[:40])
    change = Change(checked=0, time_floor=0, revoked=frozenset([beginning]))
    world.device.commit(change)
    assert states(world) == {1: "good", 2: "good", 3: "bad"}
    assert [item.share for item in world.store.versions("colour")] == [0, 0, 0]
    assert world.store.tasks()[0].active == 2


def test_what_an_update_brings_ends_a_share(world: World) -> None:
    take(world, 1)
    take(world, 2)
    world.store.share("colour", 1, 20, allow_below_floor=True)
    take(world, 3)
    assert [item.share for item in world.store.versions("colour")] == [0, 0]
    assert world.store.tasks()[0].active == 3


def test_what_is_over_the_stores_bounds_changes_nothing(world: World) -> None:
    take(world, 1)
    make_store(world.folder / "device", Limits(versions=2))
    world.publish(version=2)
    world.publish("taste")
    before = state_of(world.folder / "device")
    with pytest.raises(StoreFull, match="has 3 versions, at most 2"):
        world.update()
    after = state_of(world.folder / "device")
    assert after["state"] == before["state"]
    # With room for one a task and one to go back to, updates go on for ever.
    make_store(world.folder / "device", Limits(versions=4))
    world.update()
    world.pass_trials()
    for version in range(3, 6):
        take(world, version)
        world.publish("taste", version)
    assert world.store.get("colour").meta.version == 5


def test_a_version_that_is_there_with_other_content(world: World) -> None:
    other = blob_file(world.folder / "own", "colour", 1, seed=9)
    world.store.install(other.read_bytes())
    before = state_of(world.folder / "device")["state"]
    with pytest.raises(VersionTaken):
        world.update()
    assert state_of(world.folder / "device")["state"] == before


def test_a_version_that_was_installed_by_hand_is_not_fetched(world: World) -> None:
    world.store.install(blob_file(world.folder / "own").read_bytes())
    report = world.update()
    assert report.needed == 0 and [x.version for x in report.prompts] == [1]
    assert states(world) == {1: "trial"}


def test_a_pinned_version_stays(world: World) -> None:
    take(world, 1)
    world.store.pin("colour")
    world.publish(version=2)
    report = world.update()
    assert [item.why for item in report.held] == ["pinned at version 1"]
    assert states(world) == {1: "good"}


def test_tenants_have_their_own(world: World) -> None:
    delegate(world.repository, "acme", Signers())
    world.publish(version=4, tenant="acme")
    world.update(following=Following("d", tenants=("", "acme")))
    assert states(world) == {1: "trial"} and states(world, "acme") == {4: "trial"}


def commits(world: World) -> int:
    """A number that changes with every commit."""
    with world.store._index.reading() as connection:
        return len((world.folder / "device/index.sqlite-wal").read_bytes()) + int(
            connection.execute("PRAGMA schema_version").fetchone()[0]
        )


def test_a_check_without_news_writes_little_or_nothing(world: World) -> None:
    world.update()
    with world.store as held, held._index.reading():
        # As long as someone has it open, the log stays and shows what was written.
        before = commits(world)
        world.update()
        assert commits(world) == before
        now = world.device.last_check()
        world.device.commit(Change(checked=now + 100, time_floor=now + 100))
        assert (world.device.last_check(), commits(world)) == (now, before)
        later = now + CHECK_SECONDS
        world.device.commit(Change(checked=later, time_floor=later))
        assert world.device.last_check() == world.device.time_floor() == later
        page = 4096 + 24
        assert 0 < commits(world) - before <= 2 * page


def test_prompts_of_another_base_stay_out(world: World) -> None:
    take(world, 1)
    path = blob_file(world.folder / "own", "colour", 5, base=OTHER_BASE)
    world.store.install(path.read_bytes())
    with pytest.raises(
        OtherBase, match="version 5 of task 'colour' is for base ckpt1:c"
    ):
        world.store.activate("colour", 5)
    with pytest.raises(OtherBase):
        world.store.rollback("colour", 5)
    with pytest.raises(OtherBase):
        world.store.share("colour", 5, 20)
    assert world.store.activate("colour").version == 1
    # A version of the other base is nothing to go back to.
    take(world, 6)
    revoke(world.repository, "colour")
    world.update()
    assert world.store.get("colour").meta.version == 1


def test_the_root_of_trust_is_kept(world: World) -> None:
    device = world.folder / "device"
    root = (world.metadata / "1.root.json").read_bytes()
    mode = (device / "root.json").stat().st_mode
    assert not mode & (stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH)
    before = state_of(device)
    init_repository(world.folder / "other")
    other = (world.folder / "other/public/metadata/1.root.json").read_bytes()
    with pytest.raises(UsageError, match="with another root of trust"):
        set_up_updates(device, other)
    assert state_of(device) == before
    assert (device / "root.json").read_bytes() == root
    for bad in (
        b"",
        b"{}",
        b"\xff",
        b'{"signed": {"_type": "targets"}}',
        b"[" * 99_999,
    ):
        with pytest.raises(DataInvalid, match="the root of trust is none"):
            set_up_updates(world.folder / "new", bad)
    assert not (world.folder / "new").exists()


def test_a_store_that_is_set_up_again_keeps_what_it_is(world: World) -> None:
    world.update()
    device, root = world.folder / "device", world.device.root()
    before = world.device.following()
    assert len(before.device_id) == 32
    assert set_up_updates(device, root) == before
    changed = set_up_updates(device, root, Following("", channel="beta"))
    assert (changed.device_id, changed.channel) == (before.device_id, "beta")
    assert world.device.following() == changed
    assert world.device.base() == BASE
    assert world.device.prompts()["", "colour"].version == 1
    with pytest.raises(OtherBase):
        set_up_updates(device, root, base=OTHER_BASE)


@pytest.mark.parametrize(
    "following",
    [
        Following("d", channel="A B"),
        Following("d", tenants=("", "root")),
        Following("d", tenants=("../x",)),
        Following("d", tasks=frozenset({"../x"})),
        Following("d", bundle="a/b"),
    ],
)
def test_names_that_cannot_be_any(world: World, following: Following) -> None:
    root = world.device.root()
    with pytest.raises(UsageError):
        set_up_updates(world.folder / "new", root, following)
    assert not (world.folder / "new").exists()


def test_a_store_without_a_root_takes_no_updates(world: World) -> None:
    make_store(world.folder / "plain")
    with pytest.raises(UsageError, match=r"store init .*plain --root"):
        StoreReceiver(world.folder / "plain")


def test_what_an_update_left_is_taken_by_the_next(world: World) -> None:
    """The blob came and was not committed; the index knows nothing of it."""
    data = blob_file(world.folder / "blobs").read_bytes()
    world.device.stage(f"sha256:{'0' * 64}", b"wanted by nobody")
    (digest,) = [x.sha256 for x in world.update(dry_run=True).prompts]
    world.device.stage(f"sha256:{digest}", data)
    assert world.update().needed == 0
    assert states(world) == {1: "trial"}
    assert not (world.folder / "device/update/ready").exists()


def test_a_blob_that_rots_before_the_commit_changes_nothing(world: World) -> None:
    path = blob_file(world.folder / "blobs", "taste")
    publish_prompts(world.repository, [path])
    world.update()
    before = state_of(world.folder / "device")
    digest = f"sha256:{'1' * 64}"
    (world.folder / "device/update/ready").mkdir()
    (world.folder / f"device/update/ready/{'1' * 64}").write_bytes(b"rot")
    taken = (Activation("", "taste", 2, digest),)
    with pytest.raises(BlobInvalid):
        world.device.commit(Change(checked=9, time_floor=9, prompts=taken))
    assert state_of(world.folder / "device") == before
