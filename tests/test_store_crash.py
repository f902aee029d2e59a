"""Power cuts at every moment of a store's life: nothing broken, no promise lost."""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from crash_scenario import FLAWS, held
from crash_sweep import PromiseBroken, Scenario, sweep
from stores import make_good, served

from promptdial.prompts.store import PromptStore

WANTED = 10_000
SCRIPT = Path(__file__).with_name("crash_scenario.py")


@pytest.fixture
def memory() -> Iterator[Path]:
    """A folder in memory where there is one: thousands of stores are opened."""
    fast = Path("/dev/shm")
    with TemporaryDirectory(dir=fast if fast.is_dir() else None) as name:
        yield Path(name)


def use(store: Path) -> None:
    """Go on with a store after a crash."""
    with PromptStore(store) as opened:
        view = opened.for_tenant("next")
        make_good(view, "d", 1)
        assert served(view, "d") == 1
        view.count("d", 1, 0.5, 7, 1.0, False)
        opened._counters.flush()
        assert view.figures.counted()["d", 1].answers == 1
        assert not opened._counters._pending
        view.remove("d")
        opened.gc()


def test_a_power_cut_at_any_moment_loses_nothing(memory: Path) -> None:
    found = sweep(memory, Scenario(SCRIPT, held, use, 50))
    print(found.summary)
    assert found.distinct >= WANTED


@pytest.mark.parametrize("flaw", FLAWS)
def test_the_sweep_sees_what_a_missing_sync_does(memory: Path, flaw: str) -> None:
    """Else it might find nothing because it sees nothing."""
    with pytest.raises(PromiseBroken) as caught:
        sweep(memory, Scenario(SCRIPT, held, use, 50, (flaw,)))
    print(caught.value)
