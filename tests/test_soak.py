"""Requests and prompt loads by the thousand leave memory and open files as they were.

The loop, and what it measures, is `benchmarks/soak.py`; it runs in a process of its
own, so that nothing of the other tests is in the figures.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "soak.py"
SHORT = (16_000, 800)
LONG = (1_000_000, 10_000)

MOST_GROWTH_KB = 1000
"""In the second half of the short soak. Allocators still fill up by some 350; prompts
that are never evicted make 7,000 of it, and 200 bytes kept for each call 1,600."""

MOST_SLOPE_KB = 300
"""For 100,000 requests and 1,000 loads, in the second half of the long one. One kept
prompt a load would make 10,000 of it, 10 bytes kept for each request 1,000."""

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/smaps_rollup").exists(), reason="memory is read from /proc"
)


def soak(bundle: Path, requests: int, loads: int) -> dict[str, Any]:
    run = subprocess.run(
        [
            sys.executable,
            str(SCRIPT),
            str(bundle),
            f"--requests={requests}",
            f"--loads={loads}",
            "--json",
        ],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    print(run.stdout)
    found: dict[str, Any] = json.loads(run.stdout)
    assert found["requests"] == requests
    # A batch may step over the place of one.
    assert 0.9 * loads <= found["loads"] <= loads
    assert found["stale"] == 0
    before, most, after = found["files"]
    assert after == before
    # A file being read and one being written, in each of four threads.
    assert most <= before + 8
    return found


def test_a_short_soak_is_flat(tiny_bundle: Path) -> None:
    requests, loads = SHORT
    found = soak(tiny_bundle, requests, loads)
    growth = found["slope_anonymous"] * requests / 2 / 100_000
    assert growth < MOST_GROWTH_KB
    assert found["cached"] < 100, "nothing was evicted: the cache was not tried"


@pytest.mark.slow
def test_a_long_soak_is_flat(tiny_bundle: Path) -> None:
    """One million requests, ten thousand loads; with `-s` its figures are shown."""
    found = soak(tiny_bundle, *LONG)
    assert found["slope_anonymous"] < MOST_SLOPE_KB
