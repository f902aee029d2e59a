"""A prompt that learns what the base with all weights tuned says of its rows."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy, kl_div, log_softmax
from training_tasks import (
    colour_folder,
    colour_task,
    embedding_task,
    token_task,
)

from promptdial.prompts.blob import read_blob
from promptdial.prompts.errors import UsageError
from promptdial.prompts.training.base import FrozenBase
from promptdial.prompts.training.batches import encode_rows, target_tensor
from promptdial.prompts.training.comparison.weight_tuning import every_weight, tune
from promptdial.prompts.training.config import TEACHER_TUNING, TrainConfig, check
from promptdial.prompts.training.heads import POOLING_OF_KIND
from promptdial.prompts.training.initialise import starting_head
from promptdial.prompts.training.scoring import Reader, joined, logits_of
from promptdial.prompts.training.soft_targets import with_soft_targets
from promptdial.prompts.training.step import batch_loss
from promptdial.prompts.training.task import Task
from promptdial.prompts.training.teacher import taught
from promptdial.prompts.training.trainer import train
from promptdial.runtime.cli import main

QUICK = TrainConfig(epochs=1, batch_size=8, num_virtual_tokens=2, teacher="full")


@pytest.mark.parametrize(
    "task", [colour_task(), token_task()], ids=lambda task: str(task.kind)
)
def test_rows_have_what_a_tuned_copy_says(base: FrozenBase, task: Task) -> None:
    before = {name: x.clone() for name, x in base.model.state_dict().items()}
    rows = encode_rows(task.train, base.encoder, task.labels, {})
    found = taught(base, task, QUICK, rows)
    assert [row.text for row in found] == [row.text for row in rows]
    tuned = tune(base, task, QUICK, TEACHER_TUNING, every_weight)
    for row, wanted in zip(found, logits_of(tuned.reader, rows), strict=True):
        assert row.teacher is not None
        torch.testing.assert_close(row.teacher, wanted, rtol=1e-4, atol=1e-4)
    # The copy is another model, and the base has not moved.
    plain = logits_of(replace(tuned.reader, base=base), rows)
    told = [row.teacher for row in found if row.teacher is not None]
    assert float((joined(plain) - joined(told)).abs().max()) > 0.01
    for name, value in base.model.state_dict().items():
        assert torch.equal(value, before[name])


@pytest.mark.parametrize(
    "task", [colour_task(), token_task()], ids=lambda task: str(task.kind)
)
def test_the_loss_is_that_of_labels_and_soft_targets(
    base: FrozenBase, task: Task
) -> None:
    """Hinton et al. 2015 with T = 2: 0.3 of the labels', 0.7 of T^2 times KL."""
    rows = encode_rows(task.train[:6], base.encoder, task.labels, {})
    head = starting_head(base, task, TrainConfig())
    pooling = POOLING_OF_KIND[task.kind]
    student = logits_of(Reader(base, [], head, task.kind, pooling, task.labels), rows)
    generator = torch.Generator().manual_seed(1)
    said = [torch.randn(item.shape, generator=generator) for item in student]
    taught_rows = with_soft_targets(rows, said)
    with torch.no_grad():
        loss = batch_loss(base, TrainConfig(), [], head, taught_rows, pooling)
        plain = batch_loss(base, TrainConfig(), [], head, rows, pooling)
    own = torch.cat([item.reshape(-1, len(task.labels)) for item in student])
    soft = torch.cat([item.reshape(-1, len(task.labels)) for item in said])
    hard = cross_entropy(own, target_tensor(rows, base.device))
    torch.testing.assert_close(plain, hard, rtol=1e-4, atol=1e-4)
    distance = kl_div(
        log_softmax(own / 2, -1), (soft / 2).softmax(-1), reduction="batchmean"
    )
    torch.testing.assert_close(
        loss, 0.3 * hard + 0.7 * 4 * distance, rtol=1e-4, atol=1e-4
    )


def test_a_teacher_changes_the_prompt(base: FrozenBase) -> None:
    task = colour_task()
    alone = train(base, task, replace(QUICK, teacher=""))
    with_it = train(base, task, QUICK)
    again = train(base, task, QUICK)
    assert alone.losses != with_it.losses
    assert with_it.losses == again.losses
    for one, two in zip(
        alone.prompt.parameters(), with_it.prompt.parameters(), strict=True
    ):
        assert not torch.equal(one, two)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"teacher": "large"}, "teacher is 'large'"),
        ({"teacher": "full", "budget": "2m"}, "teacher beside budget"),
        ({"teacher": "full", "few_shot": 4}, "teacher beside few_shot"),
        ({"teacher": "full", "method": "probe"}, "teacher with method probe"),
    ],
    ids=lambda item: str(item)[:40],
)
def test_options_that_do_not_go_together(
    options: dict[str, object], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        check(replace(TrainConfig(), **options))  # type: ignore[arg-type]


def test_tasks_that_cannot_be_taught(base: FrozenBase) -> None:
    with pytest.raises(UsageError, match="no classes to teach"):
        train(base, embedding_task(), QUICK)
    with pytest.raises(UsageError, match="word_dropout beside a teacher"):
        train(base, token_task(), replace(QUICK, word_dropout=0.1))
    # Left-out words of a text leave what is said of it.
    train(base, colour_task(), replace(QUICK, word_dropout=0.1))


def test_the_command_takes_a_teacher(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = colour_folder(tmp_path / "colour"), tmp_path / "colour.safetensors"
    words = ["train", str(tiny_model), "--task", str(folder), "--out", str(out)]
    quick = ["--epochs", "1", "--batch-size", "4", "--num-virtual-tokens", "2"]
    assert main([*words, *quick, "--teacher", "full", "--json"]) == 0
    told = capsys.readouterr()
    assert "the teacher, all weights tuned, has" in told.err
    assert json.loads(told.out)["blob"] == str(out)
    recipe = read_blob(out).meta.training["recipe"]
    assert isinstance(recipe, dict) and recipe["teacher"] == "full"
    assert main([*words, *quick, "--teacher", "half"]) == 2
    assert "choose from full" in capsys.readouterr().err
