"""Training checkpoints of prompts that write: a stopped run ends in the same blob."""

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
from decoders import DECODERS, make_decoder
from torch.optim.optimizer import register_optimizer_step_pre_hook

from promptdial.export.model import load_base, resolve
from promptdial.prompts.errors import UsageError
from promptdial.prompts.training.config import TrainConfig
from promptdial.prompts.training.decoders.decoder_base import DecoderBase, decoder_base
from promptdial.prompts.training.decoders.generation import (
    pack_generation,
    train_generation,
)
from promptdial.prompts.training.task import Task
from promptdial.runtime.cli import main
from promptdial.runtime.rows import Row

CPU = torch.device("cpu")
PAIRS = [
    ("turn on the light", "light on", "light"),
    ("play the news", "news", "radio"),
    ("wake me at seven", "alarm 7", "alarm"),
    ("the film was good", "film", "film"),
]
WRITTEN = [Row(text, target=target) for text, target, _ in PAIRS]
LABELLED = [Row(text, label=label) for text, _, label in PAIRS]
TASKS = (
    Task("words", "generation", (), WRITTEN, WRITTEN),
    Task("which", "classification", tuple(x[2] for x in PAIRS), LABELLED, LABELLED),
)
CONFIG = TrainConfig(
    init="vocab", num_virtual_tokens=4, epochs=5, batch_size=2, resume=True
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    kind = next(kind for kind in DECODERS if kind.name == "llama")
    return make_decoder(kind, tmp_path_factory.mktemp("resumed") / "model")


@pytest.fixture(scope="module")
def base(model: Path) -> DecoderBase:
    return decoder_base(load_base(resolve(str(model)), CPU), CPU)


class Stopped(BaseException):
    """Stands for Ctrl-C in the middle of a run."""


def stopped_run(
    base: DecoderBase, task: Task, config: TrainConfig, file: Path, steps: int
) -> None:
    """Begin a run and stop it in the step after `steps`."""
    left = steps

    def hook(*_: object) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise Stopped

    handle = register_optimizer_step_pre_hook(hook)
    try:
        with pytest.raises(Stopped):
            train_generation(base, task, config, file)
    finally:
        handle.remove()


@pytest.mark.parametrize("method", ["prompt", "prefix"])
@pytest.mark.parametrize("task", TASKS, ids=lambda task: str(task.kind))
def test_a_resumed_run_ends_as_if_it_had_not_stopped(
    base: DecoderBase,
    task: Task,
    method: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Stopped within the third epoch of two steps each, after five steps."""
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "0")
    config = replace(CONFIG, method=method)
    result = train_generation(base, task, config, tmp_path / "whole")
    whole = pack_generation(base, task, config, result)
    file = tmp_path / "run"
    stopped_run(base, task, config, file, steps=5)
    # What was done is not done again: two epochs are left out.
    resumed = train_generation(base, task, config, file)
    assert resumed.losses == result.losses
    assert resumed.epochs == 5
    assert pack_generation(base, task, config, resumed).digest == whole.digest


def test_a_checkpoint_is_of_its_own_run_alone(
    base: DecoderBase, tmp_path: Path
) -> None:
    task, file = TASKS[0], tmp_path / "run"
    train_generation(base, task, CONFIG, file)
    for other, config, named in (
        (task, replace(CONFIG, learning_rate=0.1), "learning_rate 0.0, this run 0.1"),
        (task, replace(CONFIG, method="prefix"), "method 'prompt', this run 'prefix'"),
        (replace(task, train=WRITTEN[1:]), CONFIG, "train rows 'sha256:"),
        (replace(task, dev=WRITTEN[1:]), CONFIG, "dev rows 'sha256:"),
        (replace(task, template={"before": "say "}), CONFIG, "template {}"),
    ):
        with pytest.raises(UsageError, match=f"checkpoint has {named}"):
            train_generation(base, other, config, file)
    foreign = replace(base.base, fingerprint="ckpt1:" + "0" * 64)
    with pytest.raises(UsageError, match="checkpoint has base 'ckpt1:"):
        train_generation(replace(base, base=foreign), task, CONFIG, file)
    # Without resume, a run begins anew and takes the file's place.
    again = train_generation(base, task, replace(CONFIG, resume=False), file)
    assert again.epochs == 5


def test_a_killed_command_goes_on_with_gradient_checkpointing(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGKILL after the first epochs; the other way to compute is the same run."""
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "0")
    folder = tmp_path / "words"
    folder.mkdir()
    lines = [json.dumps({"text": row.text, "target": row.target}) for row in WRITTEN]
    for part in ("train", "dev"):
        (folder / f"{part}.jsonl").write_text("\n".join(lines))
    options = ["train", str(model), "--task", str(folder), "--method", "prefix"]
    options += ["--init", "vocab", "--num-virtual-tokens", "4", "--epochs", "120"]
    options += ["--patience", "120", "--resume", "--out"]
    whole, stopped = (tmp_path / x / "words.safetensors" for x in ("whole", "stopped"))
    file = stopped.with_name(stopped.name + ".checkpoint")
    command = [sys.executable, "-m", "promptdial.runtime", *options, str(stopped)]
    run = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not file.exists() and run.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    os.kill(run.pid, signal.SIGKILL)
    assert run.wait() == -signal.SIGKILL
    assert file.exists()
    assert not stopped.exists()
    assert main([*options, str(whole)]) == 0
    assert main([*options, str(stopped), "--gradient-checkpointing"]) == 0
    assert stopped.read_bytes() == whole.read_bytes()
    assert not file.exists()


def test_max_seconds_ends_the_epochs(base: DecoderBase) -> None:
    config = replace(CONFIG, epochs=5000, patience=5000, max_seconds=0.5, resume=False)
    result = train_generation(base, TASKS[0], config)
    assert 1 <= result.epochs < 5000
