"""Two versions that share a task: the store's rules, and who gets which one."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
from blobs import META, normal
from store_process import StoreProcess
from stores import end_trial, install, make_good, new_store, served, small_blob, states

from promptdial.prompts.blob import encode, make_blob
from promptdial.prompts.errors import (
    BelowFloor,
    MarkedBad,
    NothingBefore,
    UsageError,
    VersionInUse,
    VersionUnknown,
)
from promptdial.prompts.store import PromptStore
from promptdial.prompts.store.edits import Edits
from promptdial.prompts.store.rows import BAD


@pytest.fixture
def store(tmp_path: Path) -> PromptStore:
    return new_store(tmp_path / "store")


def shared(store: PromptStore, percent: int = 30) -> None:
    """Version 1 of `a` is active; version 2 answers a share, and passed its trial."""
    make_good(store, "a", 1)
    install(store, "a", 2)
    store.share("a", 2, percent)
    pass_trial(store, "a", 2)


def pass_trial(store: PromptStore, task: str, version: int, failure: str = "") -> None:
    digest = small_blob(task, version).digest
    assert store.begin_trial(task, digest, wait=False)
    store.end_trial(task, digest, failure)


def drawn(store: PromptStore, unit: str | None = None) -> int:
    """The version that answers one request."""
    blob, on_trial = store.serving("a", unit)
    assert blob is not None and on_trial is None
    return blob.meta.version


def shares(store: PromptStore) -> dict[int, int]:
    return {item.version: item.share for item in store.versions("a")}


def test_a_share_of_the_requests_by_chance(store: PromptStore) -> None:
    shared(store, 30)
    asked = 2000
    found = sum(drawn(store) == 2 for _ in range(asked))
    # Five standard deviations: once in a million runs.
    assert abs(found - 0.3 * asked) < 5 * math.sqrt(asked * 0.3 * 0.7)
    # Who asks for the active version alone, as `eval` does, is not drawn.
    assert {served(store, "a") for _ in range(100)} == {1}


def test_a_unit_keeps_its_version(tmp_path: Path, store: PromptStore) -> None:
    shared(store, 30)
    units = [f"user {number}" for number in range(2000)]
    first = [drawn(store, unit) for unit in units]
    assert abs(first.count(2) - 600) < 5 * math.sqrt(2000 * 0.3 * 0.7)
    assert [drawn(store, unit) for unit in units] == first
    # On another device too.
    other = new_store(tmp_path / "other")
    shared(other, 30)
    assert [drawn(other, unit) for unit in units] == first
    # With a larger share nobody who had the challenger loses it.
    store.share("a", 2, 60)
    more = [drawn(store, unit) for unit in units]
    assert all(now == 2 for before, now in zip(first, more, strict=True) if before == 2)
    assert more.count(2) > first.count(2) + 400
    # Another challenger is given to others.
    make_good(store, "b", 1)
    install(store, "a", 3)
    store.share("a", 3, 30)
    pass_trial(store, "a", 3)
    third = [drawn(store, unit) for unit in units]
    both = sum(a == 2 and b == 3 for a, b in zip(first, third, strict=True))
    assert abs(both - 180) < 5 * math.sqrt(2000 * 0.09 * 0.91)
    assert drawn(store, "lone \ud800 surrogate") in (1, 3)


def test_a_challenger_is_tried_before_it_answers(store: PromptStore) -> None:
    make_good(store, "a", 1)
    install(store, "a", 2)
    assert store.share("a", 2, 50).share == 50
    assert states(store, "a") == {1: "good", 2: "trial"}
    digest = small_blob("a", 2).digest
    found = {store.serving("a", f"user {number}")[1] for number in range(50)}
    assert found == {None, digest}
    answers = [store.serving("a")[0] for _ in range(50)]
    assert {blob.meta.version for blob in answers if blob} == {1}
    assert store.begin_trial("a", digest, wait=False)
    store.end_trial("a", digest, "")
    assert states(store, "a") == {1: "good", 2: "good"}
    assert {drawn(store) for _ in range(100)} == {1, 2}
    # It answered a share: the incumbent may still be what the device goes on with.
    assert store.tasks()[0].floor == 1
    store.activate("a", 1)
    assert {drawn(store) for _ in range(100)} == {1}


def test_a_challenger_that_goes_bad_leaves_the_incumbent_alone(
    store: PromptStore,
) -> None:
    make_good(store, "a", 1)
    install(store, "a", 2)
    store.share("a", 2, 50)
    for _ in range(3):
        pass_trial(store, "a", 2, "golden input 'x' is 'red', not 'blue'")
    assert states(store, "a") == {1: "good", 2: "bad"}
    assert {drawn(store) for _ in range(100)} == {1}
    assert shares(store) == {1: 0, 2: 0}
    task = store.tasks()[0]
    assert (task.active, task.previous, task.floor) == (1, None, 1)
    with pytest.raises(MarkedBad):
        store.share("a", 2, 50)


@pytest.mark.parametrize("winner", [1, 2])
def test_activating_either_ends_it(store: PromptStore, winner: int) -> None:
    shared(store)
    store.activate("a", winner)
    assert {drawn(store) for _ in range(100)} == {winner}
    assert shares(store) == {1: 0, 2: 0}
    task = store.tasks()[0]
    # The challenger is good already; its floor rises now.
    assert (task.active, task.floor) == (winner, winner)
    assert task.previous == (1 if winner == 2 else None)
    events = [(item.event, item.version) for item in store.events()]
    assert ("shared", 2) in events and ("unshared", 2) in events


def test_zero_percent_ends_it(store: PromptStore) -> None:
    shared(store)
    assert store.share("a", 2, 0).share == 0
    assert {drawn(store) for _ in range(100)} == {1}
    with pytest.raises(UsageError, match="version 2 of task 'a' answers no share"):
        store.share("a", 2, 0)


def test_what_changes_the_active_version_ends_it(store: PromptStore) -> None:
    shared(store)
    install(store, "a", 3)
    store.activate("a", 3)
    assert shares(store) == {1: 0, 2: 0, 3: 0}
    end_trial(store, "a")
    store.share("a", 2, 10, allow_below_floor=True)
    assert shares(store)[2] == 10
    store.rollback("a", allow_below_floor=True)
    assert shares(store) == {1: 0, 2: 0, 3: 0}
    store.share("a", 2, 10, allow_below_floor=True)
    store.remove("a")
    install(store, "a", 1, 2, 3)
    assert shares(store) == {1: 0, 2: 0, 3: 0}


def test_a_version_that_shares_is_not_taken_away(store: PromptStore) -> None:
    shared(store)
    install(store, "a", 3, 4)
    with pytest.raises(VersionInUse, match="version 2 of task 'a' is sharing"):
        store.remove("a", 2)
    gone = store.gc(keep=1)
    assert [item.version for item in gone.versions] == [3]
    assert {drawn(store) for _ in range(100)} == {1, 2}
    store.share("a", 2, 0)
    store.remove("a", 2)
    assert store.gc().blobs == 1


def test_what_cannot_share(store: PromptStore) -> None:
    install(store, "a", 1, 2)
    with pytest.raises(NothingBefore, match="no good active version"):
        store.share("a", 2, 50)
    store.activate("a", 1)
    with pytest.raises(NothingBefore, match="no good active version"):
        store.share("a", 2, 50)
    end_trial(store, "a")
    with pytest.raises(VersionInUse, match="version 1 of task 'a' is active"):
        store.share("a", 1, 50)
    for percent in (-1, 100):
        with pytest.raises(UsageError, match=f"{percent} percent, allowed: 0 to 99"):
            store.share("a", 2, percent)
    with pytest.raises(VersionUnknown):
        store.share("a", 7, 50)
    make_good(store, "a", 3)
    with pytest.raises(BelowFloor):
        store.share("a", 2, 50)
    store.share("a", 2, 50, allow_below_floor=True)
    assert "below_floor" in [item.event for item in store.events()]
    # Refused, nothing changed.
    assert states(store, "a") == {1: "good", 2: "trial", 3: "good"}


def test_versions_of_other_kinds_do_not_share(store: PromptStore) -> None:
    make_good(store, "a", 1)
    meta = replace(META, task="a", version=2, kind="embedding", labels=())
    store.install(make_blob(meta, embeddings=normal(0, 2, 8)))
    with pytest.raises(UsageError, match="version 2 of task 'a' is embedding, 1 is"):
        store.share("a", 2, 50)
    for version in (1, 2):
        meta = replace(meta, task="find", version=version)
        store.install(make_blob(meta, embeddings=normal(version, 2, 8)))
    store.activate("find", 1)
    end_trial(store, "find")
    with pytest.raises(UsageError, match="vectors of two versions cannot be compared"):
        store.share("find", 2, 50)
    assert states(store, "find") == {1: "good", 2: "staged"}


def test_a_challenger_whose_blob_is_damaged_is_left_out(store: PromptStore) -> None:
    shared(store)
    digest = small_blob("a", 2).digest.removeprefix("sha256:")
    path = store.path / "blobs" / "sha256" / digest
    path.write_bytes(b"damaged")
    fresh = PromptStore(store.path)
    assert {drawn(fresh) for _ in range(100)} == {1}
    store.install(encode(small_blob("a", 2).meta, small_blob("a", 2).tensors))
    assert {drawn(PromptStore(store.path)) for _ in range(100)} == {1, 2}


def test_a_challenger_that_others_mark_bad_answers_no_more(store: PromptStore) -> None:
    """Whoever refuses a version needs to know nothing of shares."""
    shared(store)
    with store._index.writing() as connection:
        edits = Edits(connection, "")
        edits.set_state(edits.version("a", 2), BAD, "revoked")
    assert {drawn(store) for _ in range(100)} == {1}


def test_another_process_sees_it_at_once(store: PromptStore) -> None:
    shared(store, 50)
    assert {drawn(store) for _ in range(100)} == {1, 2}
    with StoreProcess(store.path) as other:
        assert other.do("share", "a", 2, 0) == "done"
        assert {drawn(store) for _ in range(100)} == {1}
        assert other.do("share", "a", 2, 99) == "done"
        assert 2 in {drawn(store) for _ in range(100)}


def test_tenants_share_apart(store: PromptStore) -> None:
    other = store.for_tenant("t")
    make_good(other, "a", 1, 2)
    shared(store, 50)
    assert shares(other) == {1: 0, 2: 0}
    assert {drawn(other) for _ in range(100)} == {2}
