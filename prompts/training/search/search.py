"""A short search on dev within a stated wall time; test rows are never looked at.

Measure what a step costs, plan what fits, successive halving over the candidates, and
hand on the winner (choosing.py) with the rows and epochs that the rest of the time
allows; outcome.py trains it.
"""

import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from promptdial.prompts.errors import UsageError
from promptdial.prompts.training.base import FrozenBase
from promptdial.prompts.training.batches import encode_rows
from promptdial.prompts.training.config import TrainConfig
from promptdial.prompts.training.heads import pooling_of
from promptdial.prompts.training.initialise import starting_head, starting_prompt
from promptdial.prompts.training.packing import require_fit
from promptdial.prompts.training.parameters import require_method
from promptdial.prompts.training.progress import say
from promptdial.prompts.training.search.budget import (
    MARGIN,
    MAX_EPOCHS,
    STOP_SHARE,
    Pace,
    Plan,
    Rung,
    dev_rows,
    most_epochs,
    most_rows,
    parse_budget,
    plan_search,
)
from promptdial.prompts.training.search.candidates import Candidate, numbers, usable
from promptdial.prompts.training.search.choosing import guess_metric, pick, ranked
from promptdial.prompts.training.search.pace import measure
from promptdial.prompts.training.search.search_log import (
    SearchLog,
    Trial,
    log_path,
    search_identity,
)
from promptdial.prompts.training.start import Start, prepare
from promptdial.prompts.training.task import Task
from promptdial.prompts.training.trainer import train

Tried = tuple[Candidate, TrainConfig]


@dataclass(frozen=True)
class Choice:
    """What a search found.

    Attributes:
        task: The task with the rows that there is time for.
        config: Options to train to the end with.
        name: The candidate's.
        reason: Why it, in words.
        trials: Everything that was tried.
    """

    task: Task
    config: TrainConfig
    name: str
    reason: str
    trials: list[Trial]

    def answer(self) -> dict[str, Any]:
        """What `train` says of it."""
        return {
            "chosen": self.name,
            "reason": self.reason,
            "rows": len(self.task.train),
            "epochs": self.config.epochs,
            "tried": [asdict(trial) for trial in self.trials],
        }


def search(
    base: FrozenBase, task: Task, config: TrainConfig, out: Path, seeds: int = 1
) -> Choice:
    """Pick options within the budget.

    Args:
        base: The frozen model.
        task: Rows and labels.
        config: Options; those that differ from their default are kept.
        out: The blob to be; the log lies beside it.
        seeds: Runs of what is chosen, which share the time that is left.

    Raises:
        UsageError: A log to resume is of another search.
        NoPrefix: The method asked for does not go with the base.
        BlobTooBig: Nothing fits in a blob.
    """
    started = time.monotonic()
    seconds = parse_budget(config.budget)
    tried = usable(base, task, config)
    if not tried:
        require_method(config.method, base)
        require_fit(base, task, config)
        raise UsageError("no candidate fits these options", "train without a budget")
    identity = search_identity(base.base.fingerprint, task, config)
    log = SearchLog(log_path(out), identity, config.resume)
    seconds -= sum(trial.seconds for trial in log.trials)
    pace, plan = _planned(base, task, config, tried, seconds, log)
    if not log.choice:
        until = started + STOP_SHARE * seconds
        index, reason = _winner(base, task, tried, plan, log, until)
        left = seconds - (time.monotonic() - started)
        final = _final(task, tried[index][1], pace, left / seeds)
        log.add_choice({"name": tried[index][0].name, "reason": reason, **final})
        say(task.name, reason)
    return _chosen(task, tried, log)


def _planned(
    base: FrozenBase,
    task: Task,
    config: TrainConfig,
    tried: list[Tried],
    seconds: float,
    log: SearchLog,
) -> tuple[Pace, Plan]:
    """Pace and plan: those in the log, or measured now."""
    if log.plan:
        rungs = tuple(Rung(**rung) for rung in log.plan["rungs"])
        return Pace(**log.plan["pace"]), Plan(log.plan["dev"], rungs)
    began = time.monotonic()
    some = _spread(task, 64 * config.batch_size, 64 * config.batch_size)
    first = tried[0][1]
    pooling = pooling_of(task.kind, first)
    labels, template = task.labels, task.template
    examples = encode_rows(some.train, base.short, labels, template, pooling)
    dev = encode_rows(some.dev, base.encoder, labels, template, pooling)
    head = None if task.kind == "embedding" else starting_head(base, task, first)
    prompt = starting_prompt(base, task, first)
    pace = measure(base, examples, dev, prompt, head, first, pooling)
    left = seconds - (time.monotonic() - began)
    counts = len(tried), len(task.train), len(task.dev)
    ways = len({option.pairs for _, option in tried})
    plan = plan_search(pace, left, *counts, config.batch_size, ways)
    planned = [asdict(rung) for rung in plan.rungs]
    log.add_plan({"pace": asdict(pace), "dev": plan.dev, "rungs": planned})
    return pace, plan


def _winner(
    base: FrozenBase,
    task: Task,
    tried: list[Tried],
    plan: Plan,
    log: SearchLog,
    until: float,
) -> tuple[int, str]:
    """Index of the winner of the last whole round, and why it."""
    unknown = f"no time to compare: {tried[0][0].name}, the first of the table"
    if not plan.rungs:
        return 0, unknown
    sizes = {candidate.name: numbers(base, config) for candidate, config in tried}
    table = [candidate.name for candidate, _ in tried]
    pool = _spread(task, plan.rungs[-1].rows, plan.dev)
    rounds, guess = _Rounds(base, pool, log, until), guess_metric(pool)
    alive, done = tried, list[Trial]()
    for number, rung in enumerate(plan.rungs):
        alive = alive[: rung.candidates]
        trials = rounds.run(number, rung, alive)
        if len(trials) < len(alive):
            break
        done = trials
        order = ranked(trials, guess)
        alive = [tried[table.index(trial.name)] for trial in order]
    if not done:
        return 0, unknown
    done.sort(key=lambda trial: table.index(trial.name))
    chosen, reason = pick(done, sizes, guess)
    return table.index(chosen.name), reason


class _Rounds:
    """Runs the trials of each round that are not in the log yet."""

    def __init__(
        self, base: FrozenBase, pool: Task, log: SearchLog, until: float
    ) -> None:
        self._base, self._pool, self._log, self._until = base, pool, log, until
        self._starts: dict[str, Start] = {}

    def run(self, number: int, rung: Rung, alive: list[Tried]) -> list[Trial]:
        """Trials of a round; fewer than asked for where the time is up."""
        found: list[Trial] = []
        for candidate, config in alive:
            size = len(self._pool.dev)
            key = (candidate.name, number, rung.rows, size, rung.epochs)
            trial = self._log.found(key)
            if trial is None:
                if time.monotonic() > self._until:
                    return found
                began = time.monotonic()
                metric = self._metric(rung, config)
                trial = Trial(*key, metric, round(time.monotonic() - began, 3))
                self._log.add_trial(trial)
                line = f"{trial.name}: dev {metric:.2f} after {rung.rows} rows"
                say(self._pool.name, f"{line} x {rung.epochs} epochs")
            found.append(trial)
        return found

    def _metric(self, rung: Rung, config: TrainConfig) -> float:
        # Features and the probe are those of all rows, made once for all trials that
        # read pairs alike.
        if config.pairs not in self._starts:
            self._starts[config.pairs] = prepare(self._base, self._pool, config)
        made = self._starts[config.pairs]
        task = _spread(self._pool, rung.rows, len(self._pool.dev))
        places = _evenly(len(self._pool.train), rung.rows)
        examples = [made.train[index] for index in places]
        start = replace(made, train=examples)
        whole = replace(config, epochs=rung.epochs, patience=rung.epochs, max_seconds=0)
        return round(train(self._base, task, whole, None, start).dev_metric, 3)


def _final(task: Task, config: TrainConfig, pace: Pace, left: float) -> dict[str, Any]:
    """Rows, epochs and seconds of the winner's own run."""
    if config.max_seconds:
        around = pace.run(len(task.train), len(task.dev), 0)
        left = min(left, config.max_seconds + around)
    dev = dev_rows(pace, left, len(task.dev))
    rows = most_rows(pace, MARGIN * left, len(task.train), dev)
    limit = MAX_EPOCHS if config.epochs == TrainConfig().epochs else config.epochs
    epochs = 1
    if rows == len(task.train):
        epochs = most_epochs(pace, MARGIN * left, rows, dev, limit)
    loop = max(0.1, left - pace.run(rows, dev, 0))
    if config.max_seconds:
        loop = min(loop, config.max_seconds)
    return {"rows": rows, "dev": dev, "epochs": epochs, "max_seconds": round(loop, 1)}


def _chosen(task: Task, tried: list[Tried], log: SearchLog) -> Choice:
    """The choice as the log has it, whether it was made now or before."""
    choice = log.choice
    config = next(
        config for candidate, config in tried if candidate.name == choice["name"]
    )
    return Choice(
        task=_spread(task, choice["rows"], choice["dev"]),
        config=replace(
            config, epochs=choice["epochs"], max_seconds=choice["max_seconds"]
        ),
        name=choice["name"],
        reason=choice["reason"],
        trials=log.trials,
    )


def _spread(task: Task, rows: int, dev: int) -> Task:
    """The task with at most so many rows, evenly from the whole.

    Not the first ones: a file may be sorted by label.
    """
    return replace(
        task,
        train=[task.train[index] for index in _evenly(len(task.train), rows)],
        dev=[task.dev[index] for index in _evenly(len(task.dev), dev)],
    )


def _evenly(count: int, wanted: int) -> list[int]:
    if count <= wanted:
        return list(range(count))
    return [index * count // wanted for index in range(wanted)]
