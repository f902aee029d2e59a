"""The comparison with PEFT: every side runs, a second call adds nothing."""

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
from training_tasks import colour_rows

COMMAND = Path(__file__).parents[1] / "benchmarks" / "peft_training.py"


def test_every_side_runs_once(tiny_model: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft", reason="the extra train is not installed")
    folder = tmp_path / "colour"
    folder.mkdir()
    rows = [
        {key: value for key, value in asdict(row).items() if key in ("text", "label")}
        for row in colour_rows()
    ]
    for name in ("train", "dev", "test"):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    out = tmp_path / "lines.jsonl"
    command = [sys.executable, str(COMMAND), str(tmp_path), "colour"]
    command += ["--model", str(tiny_model), "--device", "cpu", "--out", str(out)]
    command += ["--seeds", "1", "--epochs", "2", "--limit", "24"]
    table = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    sides = [(line["setting"], line["side"]) for line in lines]
    assert sides == [
        ("same", "peft_prompt"),
        ("same", "ours_prompt"),
        ("same", "full_prompt"),
        ("defaults", "peft_prompt"),
        ("defaults", "peft_prefix"),
        ("defaults", "ours_prompt"),
        ("defaults", "ours_prefix"),
    ]
    # Ten rows of 64, or keys and values of two layers for twenty.
    numbers = [line["numbers"] for line in lines]
    assert numbers == [640, 640, 640, 640, 5120, 1280, 5120]
    assert len(table.splitlines()) == 7
    before = out.read_bytes()
    again = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert (again, out.read_bytes()) == (table, before)
