"""Calls that fail, and processes that are killed: one line, and nothing broken."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from crash_shim import compiled, run_under

HERE = Path(__file__).parent


@pytest.fixture
def memory() -> Iterator[Path]:
    """A folder in memory where there is one: hundreds of stores are made."""
    fast = Path("/dev/shm")
    with TemporaryDirectory(dir=fast if fast.is_dir() else None) as name:
        yield Path(name)


def test_every_call_may_fail(memory: Path) -> None:
    out = run_under(compiled(memory), HERE / "crash_faults.py", memory)
    found = json.loads(out)
    tried = found["failed"] + found["absorbed"] + len(found["wrong"])
    print(
        f"{found['calls']} calls, {tried} faults: {found['failed']} reported in a "
        f"line, {found['absorbed']} without effect, {len(found['wrong'])} wrong"
    )
    assert found["wrong"] == []
    assert found["calls"] > 40
    assert found["failed"] > tried / 4


def killed(folder: Path, rounds: int, seed: int) -> None:
    arguments = [str(folder / "store"), str(rounds), str(seed)]
    run = subprocess.run(
        [sys.executable, str(HERE / "kill_rounds.py"), *arguments],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert run.returncode == 0, run.stderr[-4000:]
    found = json.loads(run.stdout)
    print(f"killed {rounds} times, {found['steps']} acknowledged steps, none lost")
    assert found["rounds"] == rounds
    assert found["steps"] > 0


def test_killed_at_random_moments(tmp_path: Path) -> None:
    killed(tmp_path, rounds=50, seed=1)


@pytest.mark.slow
def test_killed_at_random_moments_for_long(tmp_path: Path) -> None:
    killed(tmp_path, rounds=200, seed=2)
