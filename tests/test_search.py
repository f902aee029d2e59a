"""A search within a budget: real runs on a tiny random model, and its arithmetic."""

import json
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from training_tasks import embedding_task, pair_task, token_task

from promptdial.export.forward import PromptState
from promptdial.prompts.blob import read_blob, write_blob
from promptdial.prompts.errors import BlobTooBig, UsageError
from promptdial.prompts.training.base import FrozenBase
from promptdial.prompts.training.batches import encode_rows
from promptdial.prompts.training.config import TrainConfig, check
from promptdial.prompts.training.fitting import fitting
from promptdial.prompts.training.initialise import starting_head, starting_prompt
from promptdial.prompts.training.packing import pack, require_fit
from promptdial.prompts.training.search.budget import (
    MAX_EPOCHS,
    Pace,
    Rung,
    most_epochs,
    most_rows,
    parse_budget,
    plan_search,
)
from promptdial.prompts.training.search.candidates import (
    CANDIDATES,
    OF_PAIRS,
    numbers,
    usable,
)
from promptdial.prompts.training.search.choosing import (
    guess_metric,
    pick,
    ranked,
    standard_error,
)
from promptdial.prompts.training.search.outcome import train_choice
from promptdial.prompts.training.search.pace import measure
from promptdial.prompts.training.search.search import Choice, search
from promptdial.prompts.training.search.search_log import (
    SearchLog,
    Trial,
    log_path,
    search_identity,
)
from promptdial.prompts.training.task import Task
from promptdial.prompts.training.trainer import train
from promptdial.runtime.cli import main
from promptdial.runtime.rows import Row

COLOURS = ("red", "blue", "light")
NOUNS = ("film", "music", "book", "station", "four", "five", "three", "seven")
QUICK = TrainConfig(batch_size=8, budget="1h", resume=True)
PACE = Pace(step=0.01, forward=0.003, probe=0.0005)


class NeverRead(list[Row]):
    """Rows that nobody may look at."""

    def __iter__(self) -> Iterator[Row]:
        raise AssertionError("test rows were read")

    def __getitem__(self, place: Any) -> Any:
        raise AssertionError("test rows were read")


def colour_task() -> Task:
    rows = [
        Row(text=f"the {colour} {noun}", label=colour)
        for noun in NOUNS
        for colour in COLOURS
    ]
    return Task("colour", "classification", COLOURS, rows, rows[:9], NeverRead(rows))


def planned_log(base: FrozenBase, task: Task, config: TrainConfig, out: Path) -> None:
    """A log with a plan and nothing tried, so that no test hangs on this machine."""
    identity = search_identity(base.base.fingerprint, task, config)
    rungs = [Rung(4, 12, 1), Rung(2, 24, 2)]
    plan = {"pace": asdict(PACE), "dev": 9, "rungs": [asdict(rung) for rung in rungs]}
    SearchLog(log_path(out), identity, resume=False).add_plan(plan)


def test_pairs_try_heads_of_several_levels_last(base: FrozenBase) -> None:
    """Their features compare two texts; single ones still begin with several levels."""
    named = [
        [c.name for c, _ in usable(base, task(), TrainConfig())]
        for task in (pair_task, colour_task)
    ]
    pairs, texts = named
    levels = {item.name for item in CANDIDATES if "head_levels" in item.changes}
    assert [name in levels for name in pairs] == sorted(
        name in levels for name in pairs
    )
    own = {item.name for item in OF_PAIRS}
    assert texts[0] in levels and set(pairs) == set(texts) | own


def test_a_search_halves_and_reads_no_test_row(
    base: FrozenBase, tmp_path: Path
) -> None:
    task, out = colour_task(), tmp_path / "colour.safetensors"
    planned_log(base, task, QUICK, out)
    choice = search(base, task, QUICK, out)
    assert [trial.rung for trial in choice.trials] == [0] * 4 + [1] * 2
    first, last = choice.trials[:4], choice.trials[4:]
    assert [trial.name for trial in first] == [item.name for item in CANDIDATES[:4]]
    # Those that were best go on.
    cut = sorted((trial.metric for trial in first), reverse=True)[1]
    assert all(
        trial.metric >= cut
        for trial in first
        if trial.name in {other.name for other in last}
    )
    assert all(trial.seconds > 0 and trial.rows * trial.epochs >= 12 for trial in first)
    assert "standard error" in choice.reason
    assert choice.config.epochs == MAX_EPOCHS and choice.config.budget == QUICK.budget
    # The answers depend on what was chosen: another method, another prompt.
    config = replace(choice.config, epochs=1)
    blob = pack(choice.task, config, train(base, choice.task, config))
    chosen = next(item for item in CANDIDATES if item.name == choice.name)
    assert (blob.prompt_embeddings is None) == (chosen.changes["method"] == "prefix")


def test_a_stopped_search_goes_on_with_what_was_tried(
    base: FrozenBase, tmp_path: Path
) -> None:
    task, out = colour_task(), tmp_path / "colour.safetensors"
    planned_log(base, task, QUICK, out)
    whole = search(base, task, QUICK, out)
    log = log_path(out)
    lines = log.read_text("utf-8").splitlines()
    # Stopped in the middle of the line of the last trial.
    log.write_text("\n".join(lines[:-2]) + "\n" + lines[-2][:20], "utf-8")
    again = search(base, task, QUICK, out)
    assert again.trials[:-1] == whole.trials[:-1]
    assert again.trials[-1].metric == whole.trials[-1].metric
    assert (again.name, again.reason) == (whole.name, whole.reason)
    # With the whole log nothing is run, and the choice is the one in it.
    log.write_text("\n".join(lines) + "\n", "utf-8")
    once_more = search(base, task, QUICK, out)
    assert (once_more.trials, once_more.config) == (whole.trials, whole.config)
    with pytest.raises(UsageError, match="another search: train rows differs"):
        search(base, replace(task, train=task.train[1:]), QUICK, out)
    fresh = SearchLog(log, {}, resume=False)
    assert (fresh.trials, fresh.choice) == ([], {})


def test_a_search_stays_in_time(base: FrozenBase, tmp_path: Path) -> None:
    config = TrainConfig(batch_size=8, budget="5s")
    started = time.monotonic()
    choice = search(base, colour_task(), config, tmp_path / "colour.safetensors")
    result = train(base, choice.task, choice.config)
    spent = time.monotonic() - started
    # A tenth, or the one epoch that is always run; and a busy machine's hiccup.
    assert spent < 1.1 * 5.0 + spent / result.epochs + 2.0


def test_a_log_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "log"
    file.write_text('{"run": {}}\n{"trial": {"name": "x"}}\n')
    with pytest.raises(UsageError, match="line of another version"):
        SearchLog(file, {}, resume=True)


def test_what_the_user_set_is_kept(base: FrozenBase) -> None:
    held = replace(QUICK, method="prefix", num_virtual_tokens=3)
    configs = [config for _, config in usable(base, colour_task(), held)]
    assert len(configs) >= 3
    assert {config.method for config in configs} == {"prefix"}
    assert {config.num_virtual_tokens for config in configs} == {3}
    assert len(configs) == len(set(configs))


def test_a_start_from_a_blob_gives_length_and_kind(
    base: FrozenBase, tmp_path: Path
) -> None:
    """No candidate is tried that could not begin there."""
    for method in ("prompt", "prefix"):
        made = TrainConfig(method=method, num_virtual_tokens=5, epochs=0)
        blob = pack(colour_task(), made, train(base, colour_task(), made))
        path = tmp_path / method / "colour.safetensors"
        path.parent.mkdir()
        write_blob(path, blob)
        asked = TrainConfig(budget="1m", init=f"from:{path}")
        configs = [config for _, config in usable(base, colour_task(), asked)]
        assert configs and {config.method for config in configs} == {method}
        assert {config.num_virtual_tokens for config in configs} == {5}
        starting_prompt(base, colour_task(), configs[0])
        longer = replace(asked, num_virtual_tokens=7)
        with pytest.raises(UsageError, match="has 5 virtual tokens, num_virt"):
            usable(base, colour_task(), longer)
        if method == "prompt":
            asked = replace(asked, method="prefix")
            with pytest.raises(UsageError, match="5 soft virtual tokens: of another"):
                usable(base, colour_task(), asked)


def test_a_length_that_was_set_is_not_cut(base: FrozenBase) -> None:
    task = replace(colour_task(), labels=tuple(str(i) for i in range(1100)))
    free = usable(base, task, TrainConfig(budget="6s", method="prefix"))
    assert free and all(it.num_virtual_tokens < 200 for _, it in free)
    asked = TrainConfig(budget="6s", method="prefix", num_virtual_tokens=200)
    assert not usable(base, task, asked)


def test_levels_give_way_to_a_length_that_was_set(base: FrozenBase) -> None:
    """As many levels as leave room for it, where a free length would give way first."""
    wanted = TrainConfig(method="prefix", num_virtual_tokens=16, head_levels=2)
    for count in range(200, 1000, 10):
        task = replace(colour_task(), labels=tuple(str(i) for i in range(count)))
        free = fitting(base, task, wanted)
        if free.num_virtual_tokens < 16:
            break
    held = fitting(base, task, wanted, least=16)
    assert (free.head_levels, held.num_virtual_tokens) == (2, 16)
    assert held.head_levels < 2


class Widths:
    """A base's own passes, which note how long the texts are."""

    def __init__(self, base: FrozenBase) -> None:
        self._passes = base.frozen
        self.state_of, self.levels = self._passes.state_of, self._passes.levels
        self.seen: list[tuple[bool, int]] = []

    def hidden(
        self,
        embeds: torch.Tensor,
        mask: torch.Tensor,
        type_ids: torch.Tensor,
        state: PromptState,
    ) -> torch.Tensor:
        self.seen.append((torch.is_grad_enabled(), embeds.shape[1]))
        return self._passes.hidden(embeds, mask, type_ids, state)


def test_a_step_is_timed_on_rows_as_cut_and_a_pass_on_whole_ones(
    base: FrozenBase,
) -> None:
    """Dev of long texts costs what it costs, however short training rows are cut."""
    widths, task = Widths(base), colour_task()
    long = replace(task, train=[Row(text="the film " * 9, label=COLOURS[0])] * 9)
    short, whole = (
        encode_rows(item.train, base.encoder, COLOURS, {}) for item in (task, long)
    )
    config = replace(QUICK, num_virtual_tokens=2)
    prompt = starting_prompt(base, task, config)
    watched = replace(base, graph=widths)
    measure(
        watched, short, whole, prompt, starting_head(base, task, config), config, "mean"
    )
    assert set(widths.seen) == {(True, 5), (False, 20)}


def test_every_method_of_rows_costs_its_rows(base: FrozenBase) -> None:
    for method in ("prompt", "residual", "p-tuning"):
        config = TrainConfig(method=method, num_virtual_tokens=3)
        assert numbers(base, config) == 3 * base.dims.embedding


def test_seeds_share_the_time_and_max_seconds_holds(
    base: FrozenBase, tmp_path: Path
) -> None:
    config, task = replace(QUICK, budget="10m"), colour_task()
    planned_log(base, task, config, tmp_path / "one")
    one = search(base, task, config, tmp_path / "one").config
    planned_log(base, task, config, tmp_path / "four")
    four = search(base, task, config, tmp_path / "four", seeds=4).config
    assert one.max_seconds > 500
    assert one.max_seconds / 5 < four.max_seconds < one.max_seconds / 3
    held = replace(config, max_seconds=20.0)
    planned_log(base, task, held, tmp_path / "held")
    assert search(base, task, held, tmp_path / "held").config.max_seconds == 20


def test_prompts_that_do_not_fit_are_shortened(base: FrozenBase) -> None:
    wanted = TrainConfig(method="prefix", num_virtual_tokens=16)
    for count in range(900, 1400, 10):
        task = replace(colour_task(), labels=tuple(str(i) for i in range(count)))
        try:
            require_fit(base, task, wanted)
        except BlobTooBig:
            break
    found = usable(base, task, TrainConfig(budget="6s"))
    deep = [config for _, config in found if config.method == "prefix"]
    assert deep and all(config.num_virtual_tokens < 16 for config in deep)


def trial(name: str, metric: float) -> Trial:
    return Trial(name, 0, 100, 100, 1, metric, 1.0)


def test_a_smaller_prompt_may_cost_a_point_of_noise() -> None:
    sizes = {"small": 10, "big": 100, "huge": 1000}
    assert standard_error(80.0, 100) == pytest.approx(4.0, abs=0.1)
    assert standard_error(100.0, 9) > 5
    close = [trial("big", 80.9), trial("small", 80.0)]
    chosen, reason = pick(close, sizes, 50.0)
    assert chosen.name == "small" and "big was best" in reason
    # Within the standard error of 100 rows, and more than bytes are worth.
    wide = [trial("big", 82.0), trial("small", 80.0)]
    assert pick(wide, sizes, 50.0)[0].name == "big"
    # Many rows: the standard error is less than that.
    many = [replace(item, dev_rows=10_000) for item in close]
    assert pick(many, sizes, 50.0)[0].name == "big"
    far = [trial("big", 91.5), trial("small", 80.0), trial("huge", 92.0)]
    chosen, reason = pick(far, sizes, 50.0)
    assert chosen.name == "big" and "huge was best" in reason
    chosen, reason = pick([trial("big", 99.0), trial("small", 80.0)], sizes, 50.0)
    assert chosen.name == "big" and "none came within" in reason


def test_trials_no_better_than_a_guess_leave_the_table_to_choose() -> None:
    sizes = {"first": 100, "small": 10}
    trials = [trial("first", 61.0), trial("small", 62.0)]
    chosen, reason = pick(trials, sizes, 60.0)
    assert chosen.name == "first" and "guess of the commonest label (60.00)" in reason
    assert pick(trials, sizes, 40.0)[0].name == "small"


def test_rounds_that_tell_nothing_keep_the_order_of_the_table() -> None:
    trials = [trial("first", 61.0), trial("second", 60.0), trial("third", 62.0)]
    assert ranked(trials, 60.0) == trials
    assert [item.name for item in ranked(trials, 40.0)] == ["third", "first", "second"]


def test_a_guess_is_the_commonest_label_of_dev() -> None:
    task = colour_task()
    assert guess_metric(task) == pytest.approx(100 / 3)
    assert guess_metric(replace(task, dev=task.dev[:4])) == 50.0
    assert guess_metric(replace(task, kind="token")) == 0.0


def poor_choice(task: Task) -> Choice:
    """A prompt that moves nothing, and class vectors that stay label names."""
    config = TrainConfig(
        method="prefix", epochs=1, learning_rate=1e-9, head_learning_rate=1e-9
    )
    return Choice(task, config, "deep", "for want of others", [])


def test_a_prompt_worse_than_the_probe_is_left_out(base: FrozenBase) -> None:
    task = colour_task()
    choice = poor_choice(task)
    outcome = train_choice(base, choice, QUICK)
    config, result = outcome.runs.config, outcome.runs.result
    assert config.method == "probe" and config.seed == choice.config.seed
    assert outcome.without_prompt and "does not pay" in outcome.without_prompt
    assert outcome.runs.dev_metrics == {0: result.dev_metric}
    # Nothing of the prompt that was tried stays in what the blob says of itself.
    assert config == replace(QUICK, method="probe")
    blob = pack(task, config, result)
    assert blob.num_virtual_tokens == 0
    assert blob.meta.metrics["dev_accuracy"] == round(result.dev_metric, 3)


def test_the_probe_of_a_token_task_may_be_better_as_well(base: FrozenBase) -> None:
    task = token_task()
    outcome = train_choice(base, poor_choice(task), QUICK)
    assert outcome.without_prompt and outcome.runs.config.method == "probe"
    blob = pack(task, outcome.runs.config, outcome.runs.result)
    assert (blob.num_virtual_tokens, blob.meta.kind) == (0, "token")
    assert blob.meta.metrics["dev_entity_f1"] == round(
        outcome.runs.result.dev_metric, 3
    )


def test_an_embedding_task_has_no_probe_to_fall_back_on(base: FrozenBase) -> None:
    outcome = train_choice(base, poor_choice(embedding_task()), QUICK)
    assert outcome.without_prompt is None
    assert outcome.runs.config.method == "prefix"


@pytest.mark.parametrize(
    "options",
    [{"method": "prefix"}, {"head_levels": 2}, {"num_virtual_tokens": 4}],
    ids=str,
)
def test_a_prompt_that_was_asked_for_is_kept(
    base: FrozenBase, options: dict[str, Any]
) -> None:
    asked = replace(QUICK, **options)
    outcome = train_choice(base, poor_choice(colour_task()), asked)
    assert outcome.without_prompt is None
    assert outcome.runs.config.method == "prefix"


def test_the_probe_of_several_seeds_is_one(base: FrozenBase) -> None:
    began = time.monotonic()
    outcome = train_choice(base, poor_choice(colour_task()), QUICK, seeds=2)
    whole, runs = time.monotonic() - began, outcome.runs
    assert runs.dev_metrics == {runs.config.seed: runs.result.dev_metric}
    # Of all seeds and the probe, not of the last step.
    assert 0.9 * whole < runs.result.seconds <= whole


@pytest.mark.parametrize("seconds", [60.0, 120.0, 600.0, 3600.0])
def test_plans_fit_their_share(seconds: float) -> None:
    plan = plan_search(PACE, seconds, 8, 4000, 500, 32)
    cost = PACE.prepare(4000, plan.dev)
    for rung in plan.rungs:
        cost += rung.candidates * PACE.trial(rung.rows, plan.dev, rung.epochs)
    assert plan.rungs and cost <= 0.41 * seconds
    seen = [rung.rows * rung.epochs for rung in plan.rungs]
    assert seen == sorted(seen) and seen[0] >= 320
    assert plan.rungs[-1].candidates <= 2


def test_no_time_means_no_search_and_fewer_rows() -> None:
    assert plan_search(PACE, 10.0, 8, 4000, 500, 32).rungs == ()
    rows = most_rows(PACE, 20.0, 4000, 500)
    assert 1 <= rows < 4000
    assert PACE.run(rows, 500, 1) <= 20.0
    assert most_epochs(PACE, 1e6, 4000, 500, MAX_EPOCHS) == MAX_EPOCHS
    assert most_epochs(PACE, 1.0, 4000, 500, MAX_EPOCHS) == 1


def test_budgets_are_times() -> None:
    assert parse_budget("30s") == 30
    assert parse_budget("2m") == 120
    assert parse_budget("1.5h") == 5400
    for text in ("", "2", "m", "-1s", "2 minutes", "0s", "999999h"):
        with pytest.raises(UsageError, match="budget is"):
            parse_budget(text)
    with pytest.raises(UsageError, match="budget is 'long'"):
        check(TrainConfig(budget="long"))


def test_max_seconds_ends_the_epochs(base: FrozenBase) -> None:
    config = TrainConfig(batch_size=8, epochs=5000, patience=5000, max_seconds=1.0)
    started = time.monotonic()
    result = train(base, colour_task(), config)
    assert 1 <= result.epochs < 5000
    assert time.monotonic() - started < 10


def test_the_command_says_what_was_tried_and_why(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "colour"
    folder.mkdir()
    lines = [
        json.dumps({"text": row.text, "label": row.label}) for row in colour_task().dev
    ]
    for part in ("train", "dev"):
        (folder / f"{part}.jsonl").write_text("\n".join(lines) + "\n")
    out = tmp_path / "colour.safetensors"
    words = ["train", str(tiny_model), "--task", str(folder), "--out", str(out)]
    assert main([*words, "--budget", "4s", "--batch-size", "4", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["search"]["reason"]
    assert all(trial["seconds"] > 0 for trial in answer["search"]["tried"])
    recipe = read_blob(out).meta.training["recipe"]
    assert isinstance(recipe, dict)
    assert recipe["budget"] == "4s"
    without = answer["search"]["without_prompt"]
    assert (recipe["method"] == "probe") == bool(without)
    assert without or recipe["epochs"] == answer["search"]["epochs"]
    assert log_path(out).exists()
