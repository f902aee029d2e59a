"""The fuzz targets, for a bounded time: no crash, and a share of inputs is taken."""

import importlib.util
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fuzz.seeds import blobs, manifests, packs, write_seeds

from promptdial.prompts.blob import decode
from promptdial.prompts.pack import decode_pack
from promptdial.runtime.manifest import from_json
from promptdial.runtime.rows import read_rows

FUZZ = Path(__file__).parent / "fuzz"
RUNS = {"blob": 350_000, "manifest": 350_000, "pack": 100_000, "rows": 350_000}
"""Executions of each target; over a million in all."""

MAX_SECONDS = 240
MAX_RSS_MB = 512
LEAST_TAKEN = 0.01
HAS_ATHERIS = importlib.util.find_spec("atheris") is not None


def fuzz(target: str, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Run a target on its seeds."""
    write_seeds(folder)
    script, corpus = str(FUZZ / f"fuzz_{target}.py"), str(folder / target)
    return subprocess.run(
        # A process begins with its parent's peak memory: the shell's is small.
        ["sh", "-c", '"$@"; exit $?', "sh", sys.executable, script, corpus, *options],
        cwd=folder,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=MAX_SECONDS + 120,
    )


def figure(text: str, pattern: str) -> int:
    """The last number that a pattern finds."""
    found = re.findall(pattern, text)
    assert found, text[-2000:]
    return int(found[-1])


def test_every_target_is_run() -> None:
    assert {path.stem for path in FUZZ.glob("fuzz_*.py")} == {f"fuzz_{t}" for t in RUNS}


def test_every_seed_is_valid(tmp_path: Path) -> None:
    """From invalid ones all damage would end at the same check."""
    for blob in blobs().values():
        decode(blob)
    for pack in packs().values():
        decode_pack(pack)
    for manifest in manifests().values():
        from_json(manifest.decode())
    write_seeds(tmp_path)
    files = list((tmp_path / "rows").iterdir())
    assert files
    for file in files:
        read_rows(file)


@pytest.mark.skipif(not HAS_ATHERIS, reason="atheris is not installed")
def test_a_crash_would_be_seen(tmp_path: Path) -> None:
    """The same harness around a reader that lets a foreign error out."""
    script = tmp_path / "fuzz_broken.py"
    script.write_text(
        f"import sys\nsys.path.insert(0, {str(FUZZ.parent)!r})\n"
        "from fuzz.harness import run\n"
        "def one_input(data):\n"
        "    if data.startswith(b'bad'):\n"
        "        raise IndexError('out of it')\n"
        "    return False\n"
        "run(one_input, lambda data, random: b'bad' + data, [b'good'])\n"
    )
    run = subprocess.run(
        [sys.executable, str(script), "-runs=1000"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=60,
    )
    assert run.returncode != 0
    assert "IndexError: out of it" in run.stdout + run.stderr


@pytest.mark.slow
@pytest.mark.skipif(not HAS_ATHERIS, reason="atheris is not installed")
@pytest.mark.parametrize("target", RUNS)
def test_no_input_crashes_a_reader(
    target: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    started = time.perf_counter()
    run = fuzz(
        target, tmp_path, f"-runs={RUNS[target]}", f"-max_total_time={MAX_SECONDS}"
    )
    seconds = time.perf_counter() - started
    text = run.stdout + run.stderr
    assert run.returncode == 0, text[-3000:]
    executions = figure(text, r"number_of_executed_units: (\d+)")
    peak = figure(text, r"peak_rss_mb: +(\d+)")
    taken, seen = figure(text, r"taken: (\d+) of"), figure(text, r"taken: \d+ of (\d+)")
    with capsys.disabled():
        print(
            f"\n{target}: {executions} executions, {seconds:.0f} s, peak {peak} MB, "
            f"{100 * taken / seen:.0f} % taken, 0 crashes"
        )
    assert peak < MAX_RSS_MB
    # Blind bytes would all end at the first check.
    assert taken > LEAST_TAKEN * seen
    # A slow machine stops at the time instead; it must still have done some work.
    assert executions == RUNS[target] or seconds >= MAX_SECONDS
