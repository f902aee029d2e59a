"""What runs have in common: one pass over dev gives what separate passes would."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from training_tasks import colour_task, embedding_task, pair_task, token_task

from promptdial.prompts.training.base import FrozenBase
from promptdial.prompts.training.config import ATTENTION, TrainConfig
from promptdial.prompts.training.packing import golden_inputs
from promptdial.prompts.training.scoring import features_of, logits_of, score
from promptdial.prompts.training.seeds import train_seeds
from promptdial.prompts.training.start import prepare, probe_over
from promptdial.prompts.training.task import Task
from promptdial.prompts.training.trainer import train
from promptdial.prompts.training.units import found_units

QUICK = TrainConfig(epochs=1, batch_size=8, num_virtual_tokens=4)


@pytest.mark.parametrize(
    "task",
    [colour_task(), pair_task(), token_task(), embedding_task()],
    ids=lambda task: task.kind,
)
def test_figures_are_those_of_a_pass_of_their_own(base: FrozenBase, task: Task) -> None:
    start = prepare(base, task, QUICK)
    assert start.zero_shot == score(start.reader, task.dev, start.dev)
    assert start.probe_metric == score(start.probe, task.dev, start.dev)
    if task.kind == "embedding":
        assert not start.probe_answers
        return
    assert start.probe_answers == found_units(start.probe, start.dev)
    # A probe that were the label names again would make all of this true.
    assert start.probe_answers != found_units(start.reader, start.dev)


def test_a_probe_keeps_what_its_head_reads(base: FrozenBase) -> None:
    start = prepare(base, colour_task(), QUICK)
    assert start.reader.head is not None
    again = probe_over(start, start.reader, seed=0)
    assert score(again, colour_task().dev, start.dev) == start.probe_metric
    config = replace(
        QUICK, method="probe", head_levels=2, head_pooling=ATTENTION, epochs=0
    )
    head = train(base, colour_task(), config, start=start).reader.head
    assert head is not None
    assert head.mix is not None
    assert head.query is not None
    assert head.query.shape == (2, base.dims.hidden)


def test_golden_inputs_are_read_off_the_logits_that_are_there(
    base: FrozenBase,
) -> None:
    task = colour_task()
    start = prepare(base, task, QUICK)
    dev, scores = start.dev, replace(start.probe.scores, temperature=0.05)
    sure = replace(start.probe, scores=scores)
    logits = logits_of(sure, dev)
    found = golden_inputs(task, sure, dev, logits)
    assert found
    texts = {row.text: row.label for row in task.dev}
    assert all(texts[item.text] == item.label for item in found)
    # Where other logits answer wrongly, none of those rows is golden.
    turned = golden_inputs(task, sure, dev, [item.roll(1) for item in logits])
    assert not {item.text for item in found} & {item.text for item in turned}


def test_seeds_share_the_start_and_differ_in_their_order(
    base: FrozenBase, tmp_path: Path
) -> None:
    task = colour_task()
    config = replace(QUICK, init="random")
    runs = train_seeds(base, task, config, 2, tmp_path / "run.checkpoint")
    assert set(runs.dev_metrics) == {0, 1}
    alone = train(base, task, runs.config)
    dev = prepare(base, task, config).dev
    shared = features_of(runs.result.reader, dev)
    own = features_of(alone.reader, dev)
    torch.testing.assert_close(torch.stack(shared), torch.stack(own))
    other = train(base, task, replace(config, seed=1 - runs.config.seed))
    differs = features_of(other.reader, dev)
    assert float((torch.stack(differs) - torch.stack(own)).abs().max()) > 1e-4
