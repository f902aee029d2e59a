"""Baselines on a tiny random model: they learn, and leave the frozen base alone."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from training_tasks import colour_task, embedding_task, pair_task, token_task

from promptdial.prompts.errors import DataInvalid, UsageError
from promptdial.prompts.training.base import FrozenBase
from promptdial.prompts.training.batches import collate, encode_rows
from promptdial.prompts.training.comparison.baselines import (
    BASELINES,
    WEIGHTS,
    run_baseline,
)
from promptdial.prompts.training.comparison.weight_tuning import (
    every_weight,
    lora,
    tune,
)
from promptdial.prompts.training.config import (
    FULL_TUNING,
    LORA_TUNING,
    TrainConfig,
    WeightConfig,
)
from promptdial.prompts.training.task import Task

CPU = torch.device("cpu")
CONFIG = TrainConfig(batch_size=24)
ADAPT = {"lora": lora, "full": every_weight}
RECIPE = {"lora": LORA_TUNING, "full": FULL_TUNING}


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: x.detach().clone() for name, x in model.state_dict().items()}


def quick(name: str, epochs: int = 2) -> WeightConfig:
    return replace(
        RECIPE[name],
        learning_rates=RECIPE[name].learning_rates[-1:],
        epochs=epochs,
        least_steps=1,
    )


def never_starts_well() -> Task:
    """Labels whose names do not help: what is right on dev was learned."""
    task = colour_task()
    swap = {"red": "blue", "blue": "light", "light": "red"}
    rows = [replace(row, label=swap[row.label or ""]) for row in task.train]
    return replace(task, train=rows, dev=rows, test=rows[:6])


@pytest.mark.parametrize("name", BASELINES)
def test_baselines_give_dev_and_test_and_leave_the_base_alone(
    base: FrozenBase, name: str
) -> None:
    before = weights(base.model)
    found = run_baseline(name, base, never_starts_well(), CONFIG)
    after = weights(base.model)
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    assert not any(item.requires_grad for item in base.model.parameters())
    assert not base.model.training
    assert found.test is not None
    if name == "zero_shot":
        assert (found.dev < 50.0, found.parameters) == (True, 0)
    else:
        assert found.dev > 60.0
        assert found.parameters > 0


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_are_what_changes_the_answer(base: FrozenBase, name: str) -> None:
    tuned = tune(base, colour_task(), CONFIG, quick(name), ADAPT[name])
    rows = encode_rows(colour_task().train, base.encoder, ("red",), {})
    batch = collate([row.text for row in rows], CPU)
    with torch.no_grad():
        plain, changed = base.hidden(batch, []), tuned.reader.base.hidden(batch, [])
    assert float((plain - changed).abs().max()) > 1e-2


def test_lora_trains_the_two_small_matrices_of_query_and_value(
    base: FrozenBase,
) -> None:
    tuned = tune(base, colour_task(), CONFIG, quick("lora", 1), lora)
    # Of two layers, query and value: [8, H] and [H, 8]; class vectors and biases.
    assert tuned.parameters == 2 * 2 * 2 * 8 * 64 + 3 * 64 + 3
    names = [
        n for n, x in tuned.reader.base.model.named_parameters() if x.requires_grad
    ]
    assert all(".query.lora_" in name or ".value.lora_" in name for name in names)


def test_full_tuning_trains_every_weight_with_dropout(base: FrozenBase) -> None:
    seen = []

    def adapt(model: nn.Module) -> nn.Module:
        model.register_forward_pre_hook(
            lambda module, _: seen.append((module.training, torch.is_grad_enabled()))
        )
        return every_weight(model)

    tuned = tune(base, colour_task(), CONFIG, quick("full", 1), adapt)
    assert set(seen) == {(True, True), (False, False)}
    assert not tuned.reader.base.model.training
    total = sum(item.numel() for item in base.model.parameters())
    assert tuned.parameters == total + 3 * 64 + 3


@pytest.mark.parametrize(
    "task", [pair_task(), token_task(), embedding_task()], ids=lambda task: task.kind
)
@pytest.mark.parametrize("name", WEIGHTS)
def test_every_kind_has_baselines(base: FrozenBase, task: Task, name: str) -> None:
    assert tune(base, task, CONFIG, quick(name), ADAPT[name]).dev >= 0.0


def test_a_seed_gives_the_same_run(base: FrozenBase) -> None:
    runs = [
        tune(
            base, colour_task(), replace(CONFIG, seed=seed), quick("full"), every_weight
        )
        for seed in (1, 1, 2)
    ]
    heads = [run.reader.head for run in runs]
    assert all(head is not None for head in heads)
    one, two, other = (head.weight for head in heads if head is not None)
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


def test_the_rate_is_chosen_on_dev(base: FrozenBase) -> None:
    recipe = replace(FULL_TUNING, learning_rates=(1e-9, 1e-3), epochs=40)
    config = replace(CONFIG, head_learning_rate=1e-8)
    found = tune(base, never_starts_well(), config, recipe, every_weight)
    assert (found.learning_rate, found.dev > 0.0) == (1e-3, True)


def test_a_rate_that_ends_in_infinity_is_passed_over(base: FrozenBase) -> None:
    recipe = replace(FULL_TUNING, learning_rates=(1e30, 1e-4), least_steps=2)
    assert tune(base, colour_task(), CONFIG, recipe, every_weight).learning_rate == 1e-4
    with pytest.raises(DataInvalid, match="the loss is nan; lower"):
        hopeless = replace(recipe, learning_rates=(1e30,))
        tune(base, colour_task(), CONFIG, hopeless, every_weight)


def test_what_does_not_exist_is_refused(base: FrozenBase) -> None:
    with pytest.raises(UsageError, match="choose from zero_shot, probe, lora, full"):
        run_baseline("bitfit", base, colour_task(), CONFIG)
    with pytest.raises(UsageError, match="has no classes"):
        run_baseline("probe", base, embedding_task(), CONFIG)
    with pytest.raises(UsageError, match="built for encoders"):
        run_baseline("full", base, replace(colour_task(), kind="generation"), CONFIG)
