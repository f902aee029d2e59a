"""Any order of changes and crashes: the store is what a few lines of Python say."""

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from stores import new_store, small_blob

from promptdial.prompts.errors import (
    BelowFloor,
    MarkedBad,
    NothingBefore,
    PromptdialError,
    TaskNotFound,
    UsageError,
    VersionInUse,
    VersionTaken,
    VersionUnknown,
)
from promptdial.prompts.store import PromptStore

VERSIONS = (1, 2, 3, 4)
TENANTS = st.sampled_from(["", "t"])
TASKS = st.sampled_from(["a", "b"])
NUMBERS = st.sampled_from(VERSIONS)
Refusal = type[PromptdialError] | None


@dataclass
class Known:
    """One version as it should be."""

    state: str
    tries: int = 0
    pinned: bool = False


@dataclass
class Wanted:
    """One task of a tenant as it should be."""

    versions: dict[int, Known] = field(default_factory=dict)
    active: int | None = None
    previous: int | None = None
    floor: int = 0
    sharing: int | None = None
    bad: set[int] = field(default_factory=set)

    def good_before(self, version: int) -> int | None:
        good = [v for v, k in self.versions.items() if k.state == "good"]
        return max((v for v in good if v < version), default=None)

    def used(self, version: int) -> bool:
        pinned = self.versions[version].pinned
        return pinned or version in (self.active, self.previous, self.sharing)

    def share_refusal(self, version: int, allow: bool) -> Refusal:
        """Why a version cannot answer a share."""
        if not self.versions:
            return TaskNotFound
        if version not in self.versions:
            return VersionUnknown
        if self.versions[version].state == "bad":
            return MarkedBad
        if version == self.active:
            return VersionInUse
        if self.active is None or self.versions[self.active].state != "good":
            return NothingBefore
        return BelowFloor if version < self.floor and not allow else None

    def refusal(self, version: int, allow: bool) -> Refusal:
        """Why a version cannot become active."""
        if not self.versions:
            return TaskNotFound
        if version not in self.versions:
            return VersionUnknown
        if self.versions[version].state == "bad":
            return MarkedBad
        if version == self.active:
            return None
        if self.active is not None and self.versions[self.active].pinned:
            return VersionInUse
        return BelowFloor if version < self.floor and not allow else None

    def switch(self, version: int, previous: int | None) -> None:
        self.sharing = None
        if version != self.active:
            self.active, self.previous = version, previous
            known = self.versions[version]
            if known.state == "good":
                self.floor = max(self.floor, version)
            known.state = "trial" if known.state == "staged" else known.state

    def activate(self, version: int) -> None:
        before = self.previous
        if self.active is not None and self.versions[self.active].state == "good":
            before = self.active
        self.switch(version, self.good_before(version) if before == version else before)

    def mark_bad(self, version: int) -> None:
        self.versions[version].state = "bad"
        self.bad.add(version)
        if version == self.sharing:
            self.sharing = None
            return
        self.active = self.previous
        if self.previous is not None:
            self.previous = self.good_before(self.previous)


class Stores(RuleBasedStateMachine):
    """A store beside what it should be."""

    def __init__(self) -> None:
        super().__init__()
        fast = Path("/dev/shm")
        self.folder = Path(tempfile.mkdtemp(dir=fast if fast.is_dir() else None))
        self.place = self.folder / "0"
        self.store = new_store(self.place)
        self.wanted: dict[tuple[str, str], Wanted] = {}

    def teardown(self) -> None:
        self.store.close()
        shutil.rmtree(self.folder)

    def view(self, tenant: str) -> PromptStore:
        return self.store.for_tenant(tenant)

    def task(self, tenant: str, task: str) -> Wanted:
        return self.wanted.setdefault((tenant, task), Wanted())

    @rule(tenant=TENANTS, task=TASKS, version=NUMBERS)
    def install(self, tenant: str, task: str, version: int) -> None:
        wanted = self.task(tenant, task)
        found = self.view(tenant).install(small_blob(task, version))
        if version not in wanted.versions:
            state = "bad" if version in wanted.bad else "staged"
            wanted.versions[version] = Known(state)
        assert found.state == wanted.versions[version].state

    @rule(tenant=TENANTS, task=TASKS, version=NUMBERS)
    def install_other_content(self, tenant: str, task: str, version: int) -> None:
        wanted = self.task(tenant, task)
        if version in wanted.versions or version == wanted.floor:
            other = small_blob(task, version, seed=9)
            self.refused(VersionTaken, lambda: self.view(tenant).install(other))

    @rule(tenant=TENANTS, task=TASKS, version=NUMBERS, allow=st.booleans())
    def activate(self, tenant: str, task: str, version: int, allow: bool) -> None:
        wanted = self.task(tenant, task)
        refusal = wanted.refusal(version, allow)
        self.refused(
            refusal,
            lambda: self.view(tenant).activate(task, version, allow_below_floor=allow),
        )
        if refusal is None:
            wanted.activate(version)

    @rule(tenant=TENANTS, task=TASKS, allow=st.booleans())
    def rollback(self, tenant: str, task: str, allow: bool) -> None:
        wanted = self.task(tenant, task)
        back = wanted.previous
        if not wanted.versions:
            refusal: Refusal = TaskNotFound
        else:
            refusal = NothingBefore if back is None else wanted.refusal(back, allow)
        self.refused(
            refusal, lambda: self.view(tenant).rollback(task, allow_below_floor=allow)
        )
        if refusal is None:
            assert back is not None
            wanted.switch(back, wanted.good_before(back))

    @rule(
        tenant=TENANTS,
        task=TASKS,
        version=NUMBERS,
        percent=st.sampled_from([0, 50]),
        allow=st.booleans(),
    )
    def share(
        self, tenant: str, task: str, version: int, percent: int, allow: bool
    ) -> None:
        wanted = self.task(tenant, task)
        refusal = wanted.share_refusal(version, allow)
        if not percent:
            refusal = None if wanted.sharing == version else UsageError
            if version not in wanted.versions:
                refusal = VersionUnknown if wanted.versions else TaskNotFound
        self.refused(
            refusal,
            lambda: self.view(tenant).share(
                task, version, percent, allow_below_floor=allow
            ),
        )
        if refusal is None:
            wanted.sharing = version if percent else None
            known = wanted.versions[version]
            if percent and known.state == "staged":
                known.state = "trial"

    @rule(tenant=TENANTS, task=TASKS, version=NUMBERS, pinned=st.booleans())
    def pin(self, tenant: str, task: str, version: int, pinned: bool) -> None:
        wanted = self.task(tenant, task)
        refusal: Refusal = None
        if version not in wanted.versions:
            refusal = VersionUnknown if wanted.versions else TaskNotFound
        self.refused(
            refusal, lambda: self.view(tenant).pin(task, version, pinned=pinned)
        )
        if refusal is None:
            wanted.versions[version].pinned = pinned

    @rule(tenant=TENANTS, task=TASKS, version=st.none() | NUMBERS)
    def remove(self, tenant: str, task: str, version: int | None) -> None:
        wanted = self.task(tenant, task)
        there = wanted.versions
        refusal: Refusal = None
        if not there:
            refusal = TaskNotFound
        elif version is None:
            refusal = VersionInUse if any(k.pinned for k in there.values()) else None
        elif version not in there:
            refusal = VersionUnknown
        elif wanted.used(version):
            refusal = VersionInUse
        self.refused(refusal, lambda: self.view(tenant).remove(task, version))
        if refusal is None and version is None:
            wanted.versions = {}
            wanted.active = wanted.previous = wanted.sharing = None
        elif refusal is None:
            assert version is not None
            del there[version]

    @rule(tenant=TENANTS, keep=st.none() | st.sampled_from([1, 2]))
    def collect_garbage(self, tenant: str, keep: int | None) -> None:
        self.view(tenant).gc(keep)
        for (owner, _), wanted in self.wanted.items():
            if owner == tenant and keep is not None:
                for version in sorted(wanted.versions)[:-keep]:
                    if not wanted.used(version):
                        del wanted.versions[version]
        named = {
            item.digest.removeprefix("sha256:")
            for owner in ("", "t")
            for item in self.view(owner).versions()
        }
        there = {path.name for path in (self.place / "blobs" / "sha256").iterdir()}
        assert there == named

    @rule(
        tenant=TENANTS,
        task=TASKS,
        outcome=st.sampled_from(["passes", "fails", "fails", "is dropped", "crashes"]),
    )
    def trial(self, tenant: str, task: str, outcome: str) -> None:
        wanted, view = self.task(tenant, task), self.view(tenant)
        # A challenger is on trial beside a good version alone: never both are.
        version = wanted.active if wanted.sharing is None else wanted.sharing
        known = wanted.versions.get(version or 0)
        if version is None or known is None or known.state != "trial":
            return
        digest = small_blob(task, version).digest
        begun = view.begin_trial(task, digest, wait=False)
        assert begun == (known.tries < 3)
        if not begun:
            wanted.mark_bad(version)
            return
        known.tries += 1
        if outcome == "passes":
            view.end_trial(task, digest, "")
            known.state = "good"
            if version == wanted.active:
                wanted.floor = max(wanted.floor, version)
        elif outcome == "fails":
            view.end_trial(task, digest, "no")
            if known.tries == 3:
                wanted.mark_bad(version)
        elif outcome == "is dropped":
            view.drop_trial(task, digest)
            known.tries -= 1
        else:
            view._trials.release_all()  # as the end of a process does
            self.crash()

    @rule()
    def crash(self) -> None:
        """What is on the disk now is opened by a new process, as it were."""
        place = self.folder / str(int(self.place.name) + 1)
        shared = shutil.ignore_patterns("*-shm")
        shutil.copytree(self.place, place, ignore=shared)
        (place / "staging" / "left").write_bytes(b"half a blob")
        self.store.close()
        shutil.rmtree(self.place)
        self.place, self.store = place, PromptStore(place)

    @invariant()
    def is_what_it_should_be(self) -> None:
        for (tenant, task), wanted in self.wanted.items():
            view = self.view(tenant)
            there = [item for item in view.versions() if item.task == task]
            found = {item.version: item for item in there}
            assert found.keys() == wanted.versions.keys()
            for version, known in wanted.versions.items():
                item = found[version]
                assert (item.state, item.tries, item.pinned) == (
                    known.state,
                    known.tries,
                    known.pinned,
                )
                assert item.active == (version == wanted.active)
                assert item.previous == (version == wanted.previous)
                assert item.share == (50 if version == wanted.sharing else 0)
            floors = {item.task: item.floor for item in view.tasks()}
            assert floors.get(task, 0) == wanted.floor
            self.serves(view, task, wanted)
        assert self.store.damaged() == {}

    def serves(self, view: PromptStore, task: str, wanted: Wanted) -> None:
        """The good version answers, and none that is bad or of another tenant."""
        active = wanted.active
        if active is None:
            bad = [v for v, known in wanted.versions.items() if known.state == "bad"]
            known_task = any(item.task == task for item in view.tasks())
            refusal = MarkedBad if bad and known_task else TaskNotFound
            self.refused(refusal, lambda: view.get(task))
            return
        version = active
        if wanted.versions[active].state != "good" and wanted.previous is not None:
            version = wanted.previous
        assert view.get(task).digest == small_blob(task, version).digest
        answering = {version}
        if wanted.sharing and wanted.versions[wanted.sharing].state == "good":
            answering.add(wanted.sharing)
        drawn = [view.serving(task, f"user {number}")[0] for number in range(30)]
        assert {blob.meta.version for blob in drawn if blob} in (answering, set())

    def refused(self, refusal: Refusal, call: Callable[[], object]) -> None:
        """A call that is refused as it should be, or not at all."""
        try:
            call()
        except PromptdialError as error:
            assert type(error) is refusal, error
        else:
            assert refusal is None


Stores.TestCase.settings = settings(
    max_examples=60,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
TestStores = Stores.TestCase
