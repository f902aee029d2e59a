"""Many tasks in one go: real worker processes on a tiny random model."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from promptdial.prompts.blob import read_blob, write_blob
from promptdial.prompts.errors import DataInvalid, UsageError
from promptdial.prompts.training.base import FrozenBase
from promptdial.prompts.training.commands import train
from promptdial.prompts.training.config import TrainConfig, check, with_values
from promptdial.prompts.training.many.many import (
    Job,
    arguments_of,
    is_there,
    make_plan,
    read_recipes,
    task_folders,
)
from promptdial.prompts.training.many.workers import environments
from promptdial.prompts.training.option_flags import typed_options
from promptdial.prompts.training.packing import pack
from promptdial.prompts.training.search.search_log import (
    SearchLog,
    log_path,
    note_blob,
    search_identity,
)
from promptdial.prompts.training.task import read_task
from promptdial.prompts.training.trainer import train as train_prompt
from promptdial.runtime.cli import command_parser, main

COLOURS = ("red", "blue", "light")
NOUNS = ("film", "music", "book", "station")
SHORT = TrainConfig(epochs=0, num_virtual_tokens=2)


def write_task(folder: Path, rows: int = 12) -> None:
    folder.mkdir(parents=True)
    lines = [
        json.dumps({"text": f"the {colour} {noun}", "label": colour})
        for noun in NOUNS
        for colour in COLOURS
    ]
    for part in ("train", "dev"):
        (folder / f"{part}.jsonl").write_text("\n".join(lines[:rows]) + "\n")


def arguments(model: Path, tasks: Path, out: Path, *more: str) -> list[str]:
    found = ["train-all", str(model), "--tasks", str(tasks), "--out", str(out)]
    return [*found, "--json", *more]


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "promptdial.runtime", *words]


def report_of(out: Path) -> dict[str, dict[str, object]]:
    report = json.loads((out / "report.json").read_text("utf-8"))
    return {entry["task"]: entry for entry in report["tasks"]}


def test_a_folder_is_trained_kept_and_trained_again_where_it_changed(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tasks, out = tmp_path / "tasks", tmp_path / "out"
    write_task(tasks / "colour")
    write_task(tasks / "short", rows=9)
    (tasks / "broken").mkdir()
    (tasks / "broken" / "train.jsonl").write_text("nothing\n")
    options = ("--epochs", "1", "--num-virtual-tokens", "2", "--workers", "2")
    assert main(arguments(tiny_model, tasks, out, *options)) == 3
    said = capsys.readouterr()
    assert said.out == ""
    last = said.err.strip().splitlines()[-1]
    assert last.startswith("promptdial: TASKS_FAILED: 1 of 3 tasks failed: broken; see")
    found = report_of(out)
    assert {name: entry["status"] for name, entry in found.items()} == {
        "broken": "failed",
        "colour": "trained",
        "short": "trained",
    }
    assert found["broken"]["error"]["code"] == "DATA_INVALID"  # type: ignore[index]
    blob = read_blob(out / "colour.safetensors")
    assert blob.num_virtual_tokens == 2
    assert (out / "logs" / "colour.log").exists()

    # Without the broken one, and with other rows in one of the two that are there.
    recipes = tmp_path / "recipes.yaml"
    recipes.write_text("colour: {}\nshort: {}\n")
    for part in ("train", "dev"):
        file = tasks / "short" / f"{part}.jsonl"
        file.write_text(file.read_text() + '{"text": "good", "label": "red"}\n')
    again = (*options, "--recipes", str(recipes))
    assert main(arguments(tiny_model, tasks, out, *again)) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["trained"], answer["kept"], answer["failed"]) == (1, 1, 0)
    statuses = {entry["task"]: entry["status"] for entry in answer["tasks"]}
    assert statuses == {"colour": "kept", "short": "trained"}
    assert read_blob(out / "colour.safetensors").digest == blob.digest


def job_of(base: FrozenBase, folder: Path, out: Path, config: TrainConfig) -> Job:
    """A job whose blob is there."""
    task = read_task(folder)
    out.parent.mkdir(exist_ok=True)
    write_blob(out, pack(task, config, train_prompt(base, task, config)))
    return Job(task.name, folder, out, config)


@pytest.mark.parametrize(
    "about", ["template: {before: 'say '}", "out_of_scope: light", "license: MIT"]
)
def test_a_task_that_is_told_otherwise_is_trained_again(
    base: FrozenBase, tmp_path: Path, about: str
) -> None:
    folder, out = tmp_path / "colour", tmp_path / "out" / "colour.safetensors"
    write_task(folder)
    fingerprint = base.base.fingerprint
    job = job_of(base, folder, out, TrainConfig(epochs=0))
    assert is_there(job, read_task(folder), fingerprint)
    (folder / "task.yaml").write_text(f"{about}\n")
    assert not is_there(job, read_task(folder), fingerprint)
    again = job_of(base, folder, out, TrainConfig(epochs=0))
    task = read_task(folder)
    assert is_there(again, task, fingerprint)
    # Of a search too, whose log knows nothing of what its blob says besides.
    searched = replace(again, config=TrainConfig(budget="1m"))
    identity = search_identity(fingerprint, task, searched.config)
    SearchLog(log_path(out), identity, resume=False)
    note_blob(out, read_blob(out))
    assert is_there(searched, task, fingerprint)
    assert not is_there(searched, replace(task, license="other"), fingerprint)
    assert not is_there(searched, replace(task, out_of_scope="red"), fingerprint)
    assert not is_there(searched, replace(task, metric="macro_f1"), fingerprint)


def test_other_dev_rows_are_another_task(base: FrozenBase, tmp_path: Path) -> None:
    folder, out = tmp_path / "colour", tmp_path / "out" / "colour.safetensors"
    write_task(folder)
    job = job_of(base, folder, out, TrainConfig(epochs=0))
    with (folder / "dev.jsonl").open("a") as file:
        file.write('{"text": "good", "label": "red"}\n')
    assert not is_there(job, read_task(folder), base.base.fingerprint)


def test_a_search_that_was_stopped_in_its_last_run_is_not_done(
    base: FrozenBase, tmp_path: Path
) -> None:
    """The log has the choice, and the blob beside it is of an earlier run."""
    folder, out = tmp_path / "colour", tmp_path / "out" / "colour.safetensors"
    write_task(folder)
    plain = job_of(base, folder, out, TrainConfig(epochs=0))
    job = replace(plain, config=TrainConfig(budget="1m"))
    task, fingerprint = read_task(folder), base.base.fingerprint
    identity = search_identity(fingerprint, task, job.config)
    SearchLog(log_path(out), identity, resume=False).add_choice({"name": "deep 16"})
    assert not is_there(job, task, fingerprint)
    note_blob(out, read_blob(out))
    assert is_there(job, task, fingerprint)
    write_blob(out, pack(task, SHORT, train_prompt(base, task, SHORT)))
    assert not is_there(job, task, fingerprint)


def test_an_interrupt_ends_the_workers(tiny_model: Path, tmp_path: Path) -> None:
    tasks, out = tmp_path / "tasks", tmp_path / "out"
    write_task(tasks / "one")
    write_task(tasks / "two")
    # Enough to be interrupted, and an end for workers that nobody interrupts.
    options = ("--epochs", "3000", "--patience", "3000", "--workers", "2")
    process = subprocess.Popen(
        command(*arguments(tiny_model, tasks, out, *options)),
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A shell's background job ignores SIGINT, and so would what it starts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        stopped_when_both_are_at_work(process, out)
    finally:
        process.kill()
        process.communicate()


def stopped_when_both_are_at_work(process: "subprocess.Popen[str]", out: Path) -> None:
    checkpoints = [out / f"{name}.safetensors.checkpoint" for name in ("one", "two")]
    until = time.monotonic() + 120
    while not all(path.exists() for path in checkpoints):
        assert time.monotonic() < until, "the workers did not begin"
        time.sleep(0.05)
    workers = children(process.pid)
    assert len(workers) == 2
    process.send_signal(signal.SIGINT)
    _, text = process.communicate(timeout=180)
    assert process.returncode == 7
    assert text.strip().splitlines()[-1].startswith("promptdial: INTERRUPTED: ")
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)
    assert not list(out.glob("*.safetensors"))
    assert not list(out.glob(".*"))


def children(parent: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == parent:
            found.append(int(stat.parent.name))
    return found


def test_ray_trains_the_same_blob(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray", reason="the extra ray is not installed")
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "0")
    tasks, out = tmp_path / "tasks", tmp_path / "out"
    write_task(tasks / "colour")
    words = arguments(tiny_model, tasks, out, "--epochs", "1", "--workers", "ray")
    run = subprocess.run(command(*words), capture_output=True, text=True, timeout=240)
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout)["trained"] == 1

    here = tmp_path / "colour.safetensors"
    words = ["train", str(tiny_model), "--task", str(tasks / "colour"), "--epochs", "1"]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as a task of Ray has: sums are in the same order then
    try:
        assert main([*words, "--out", str(here)]) == 0
    finally:
        torch.set_num_threads(threads)
    assert read_blob(out / here.name).digest == read_blob(here).digest


def test_ray_that_is_not_there_is_named(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_task(tmp_path / "tasks" / "colour")
    monkeypatch.setitem(sys.modules, "ray", None)
    words = arguments(tiny_model, tmp_path / "tasks", tmp_path / "out")
    assert main([*words, "--workers", "ray"]) == 7
    assert main([*words, "--workers", "many"]) == 2


def test_workers_share_cores_and_have_a_gpu_each() -> None:
    two = environments(2, ["4", "7"], threads=3)
    assert [slot["CUDA_VISIBLE_DEVICES"] for slot in two] == ["4", "7"]
    assert {slot["OMP_NUM_THREADS"] for slot in two} == {"3"}
    assert len(environments(0, ["0", "1", "2"])) == 3
    cores = len(os.sched_getaffinity(0))
    alone = environments(1, [])
    assert alone[0]["OMP_NUM_THREADS"] == str(cores)
    assert "CUDA_VISIBLE_DEVICES" not in alone[0]


def test_flags_give_the_configuration_back() -> None:
    config = check(
        with_values(
            TrainConfig(),
            {
                "method": "prefix",
                "init": "text",
                "init_text": "-- the words",
                "bf16": True,
                "learning_rate": 0.07,
            },
            "test",
        )
    )
    parser = command_parser("train", train)
    words = ["m", "--task", "t", "--out", "o", *arguments_of(config)]
    typed = typed_options(parser.parse_intermixed_args(words))
    assert with_values(TrainConfig(), typed, "test") == config


def test_what_cannot_be_meant_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataInvalid, match="holds no task folder"):
        task_folders(tmp_path)
    write_task(tmp_path / "colour")
    with pytest.raises(DataInvalid, match="is one task"):
        task_folders(tmp_path / "colour")
    folders = task_folders(tmp_path)
    with pytest.raises(UsageError, match="a recipe is for 'color'"):
        make_plan(folders, tmp_path, {"color": {}}, {}, "ckpt1:")
    with pytest.raises(UsageError, match="colour: unknown option 'epoch'"):
        make_plan(folders, tmp_path, {"colour": {"epoch": 1}}, {}, "ckpt1:")
    write_task(tmp_path / "twin")
    (tmp_path / "twin" / "task.yaml").write_text("name: colour\n")
    with pytest.raises(UsageError, match="two tasks are named 'colour'"):
        make_plan(task_folders(tmp_path), tmp_path, None, {}, "ckpt1:")
    recipes = tmp_path / "recipes.yaml"
    recipes.write_text("colour: 3\n")
    with pytest.raises(UsageError, match="colour is 3"):
        read_recipes(recipes)


def test_typed_options_win_over_recipes(tmp_path: Path) -> None:
    write_task(tmp_path / "colour")
    recipes = {"colour": {"epochs": 3, "seed": 4}}
    plan = make_plan(task_folders(tmp_path), tmp_path, recipes, {"seed": 5}, "ckpt1:")
    assert [(job.config.epochs, job.config.seed) for job in plan.jobs] == [(3, 5)]
