"""Power cuts and failing calls at every moment of updates: no mixture, nothing lost."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

pytest.importorskip("tuf", reason="the extra ota is not installed")

from crash_shim import compiled, run_under
from crash_sweep import PromiseBroken, Scenario, sweep
from crash_update_scenario import FLAWS, FOLLOWING, TASKS, held
from update_server import StaticServer, serving
from update_world import OTHER_BASE

from promptdial.prompts.store import PromptStore, set_up_updates
from promptdial.prompts.store.receiving import StoreReceiver
from promptdial.prompts.updates.device.fetcher import Source
from promptdial.prompts.updates.device.update import update

HERE = Path(__file__).parent
SCRIPT = HERE / "crash_update_scenario.py"
ALL_STATES = 15_000
SHARE = 12
"""Of the states, the quick tests open one in so many."""


@pytest.fixture
def memory() -> Iterator[Path]:
    """A folder in memory where there is one: thousands of stores are opened."""
    fast = Path("/dev/shm")
    with TemporaryDirectory(dir=fast if fast.is_dir() else None) as name:
        yield Path(name)


@pytest.fixture
def server(memory: Path) -> Iterator[StaticServer]:
    """Shows the repository that the scenario makes."""
    with serving(memory / "world" / "repository" / "public") as found:
        yield found


def scenario(memory: Path, server: StaticServer, share: int, *flaw: str) -> Scenario:
    def use(store: Path) -> None:
        """After a crash, the next update brings what the repository shows."""
        with PromptStore(store) as opened:
            known = opened.device() is not None
        if not known:
            root = server.folder / "metadata" / "1.root.json"
            set_up_updates(store, root.read_bytes(), FOLLOWING)
        with StoreReceiver(store) as receiver:
            # The scenario's last step is a check that comes later.
            update(receiver, Source(server.url), clock=lambda: time.time() + 3_600)
            base = receiver.base()
            assert base is not None and base.fingerprint == OTHER_BASE.fingerprint
            there = {key: state.version for key, state in receiver.prompts().items()}
        assert there == {("", task): 4 for task in TASKS}
        held(store)

    more = (str(memory / "world"), *flaw)
    return Scenario(SCRIPT, held, use, 100, more, share)


def test_a_power_cut_at_any_moment_of_an_update(
    memory: Path, server: StaticServer
) -> None:
    found = sweep(memory, scenario(memory, server, SHARE))
    print(found.summary)
    assert found.distinct >= ALL_STATES / SHARE


@pytest.mark.slow
def test_every_state_after_a_power_cut(memory: Path, server: StaticServer) -> None:
    found = sweep(memory, scenario(memory, server, 1))
    print(found.summary)
    assert found.distinct >= ALL_STATES


@pytest.mark.parametrize("flaw", FLAWS)
def test_the_sweep_sees_what_a_missing_sync_does(
    memory: Path, server: StaticServer, flaw: str
) -> None:
    """Else it might find nothing because it sees nothing."""
    with pytest.raises(PromiseBroken) as caught:
        sweep(memory, scenario(memory, server, SHARE, flaw))
    print(caught.value)


@pytest.mark.parametrize(
    "more", [(), pytest.param(("every",), marks=pytest.mark.slow)], ids=("one", "every")
)
def test_every_call_of_an_update_may_fail(memory: Path, more: tuple[str, ...]) -> None:
    library = compiled(memory)
    out = run_under(library, HERE / "crash_update_faults.py", memory, *more)
    found = json.loads(out)
    tried = found["failed"] + found["absorbed"] + len(found["wrong"])
    print(
        f"{found['calls']} calls, {tried} faults: {found['failed']} reported in a "
        f"line, {found['absorbed']} without effect, {len(found['wrong'])} wrong"
    )
    assert found["wrong"] == []
    assert found["calls"] > 100
    assert found["failed"] > tried / 4
