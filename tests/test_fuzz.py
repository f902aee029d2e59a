"""Fuzzing within bounds, in processes of their own (slow); see tests/fuzz.py."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("fuzz.py")
RUNS = {"blob": 400_000, "manifest": 200_000, "rows": 500_000}
SECONDS = 400


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_no_input_gets_past_the_errors(name: str, tmp_path: Path) -> None:
    if importlib.util.find_spec("atheris") is None:
        pytest.skip("atheris is not installed (extra dev, Linux)")
    options = [
        f"-runs={RUNS[name]}",
        f"-max_total_time={SECONDS}",
        "-seed=1",
        "-max_len=4096",
        "-timeout=5",
        "-rss_limit_mb=1024",
        "-print_final_stats=1",
        f"-artifact_prefix={tmp_path}/",
    ]
    run = subprocess.run(
        [sys.executable, str(SCRIPT), name, str(tmp_path / "corpus"), *options],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-3000:] + run.stdout[-2000:]
    figures = dict(re.findall(r"stat::(\w+):\s+(\d+)", run.stderr))
    print(name, figures)
    assert int(figures["number_of_executed_units"]) > RUNS[name] / 20
