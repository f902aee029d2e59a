"""Runs of a few-shot search: one prompt on some folds, read on the others."""

import time
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from promptdial.export.forward import PromptState
from promptdial.prompts.errors import BlobTooBig
from promptdial.prompts.metadata import feature_width
from promptdial.prompts.training.base import FrozenBase
from promptdial.prompts.training.batches import Example, batches_of, encode_rows
from promptdial.prompts.training.config import TrainConfig
from promptdial.prompts.training.heads import Head, pooling_of
from promptdial.prompts.training.initialise import starting_prompt
from promptdial.prompts.training.packing import require_fit
from promptdial.prompts.training.parameters import NoPrompt, Prompt
from promptdial.prompts.training.probe import extract, fit_head
from promptdial.prompts.training.progress import say
from promptdial.prompts.training.search.candidates import Candidate
from promptdial.prompts.training.search.class_means import (
    class_means,
    mixed,
    name_features,
    name_share,
)
from promptdial.prompts.training.search.few_shot_readings import (
    LAST,
    READINGS,
    Reading,
    computed_mix,
)
from promptdial.prompts.training.search.few_shot_rows import FOLDS, fold_of
from promptdial.prompts.training.search.search_log import SearchLog, Trial
from promptdial.prompts.training.step import batch_loss, make_optimiser, take_step
from promptdial.prompts.training.task import Task
from promptdial.prompts.training.word_dropout import without_words

PENALTIES = (1e-5, 1e-4, 1e-3, 1e-2)
"""Of the squared class vectors; with few rows, stronger ones than the probe's too."""
PROBE = "class vectors alone"


@dataclass(frozen=True)
class Way:
    """How class vectors are fitted: what they read, and how hard they are held."""

    reading: Reading
    penalty: float


@dataclass(frozen=True)
class Held:
    """Held-out rows of some folds.

    Attributes:
        ways: How class vectors were fitted, the simplest and hardest one last.
        right: [ways, rows] True where the label is right.
    """

    ways: tuple[Way, ...]
    right: Tensor

    def best(self) -> tuple[Tensor, Way]:
        """The rows of the best way, the last one of equals, and the way."""
        scores = self.right.float().mean(1)
        places = range(len(self.ways))
        index = max(places, key=lambda item: (float(scores[item]), item))
        return self.right[index], self.ways[index]

    def of_last_level(self) -> "Held":
        """The ways of a linear probe alone."""
        places = [i for i, way in enumerate(self.ways) if way.reading == LAST]
        return Held(tuple(self.ways[i] for i in places), self.right[places])


class FoldRuns:
    """Rows, folds, and features without a prompt, made once for all that is tried."""

    def __init__(
        self, base: FrozenBase, task: Task, config: TrainConfig, log: SearchLog
    ) -> None:
        self.base, self.task, self.config, self.log = base, task, config, log
        self.pooling = pooling_of(task.kind, config)
        self.examples = self._sorted(task)
        self.fold = fold_of([_target(item) for item in self.examples])
        self.plain, self.targets = self._features(self.examples, [])
        self.names, self.share = torch.zeros(0), 0.0
        if task.kind != "pair":  # whose features are products of two texts
            self.names = name_features(base, task.labels)
            last = LAST.of(self.plain)
            self.share = name_share(last, self.targets, self.fold, self.names)

    def folds(
        self,
        tried: tuple[Candidate, TrainConfig] | None,
        folds: tuple[int, ...] = tuple(range(FOLDS)),
    ) -> Held:
        """Held-out rows of folds, over one prompt a fold or none, read in all ways."""
        ways = self._ways(tried[1] if tried else replace(self.config, method="probe"))
        found = []
        for fold in folds:
            began = time.monotonic()
            inside = self.fold != fold
            features = self.plain
            if tried is not None:
                rows = [self.examples[int(i)] for i in inside.nonzero()]
                prompt = self._learn(tried[1], rows)
                with torch.no_grad():
                    state = prompt.state(self.base)
                features, _ = self._features(self.examples, state)
            right = self._right(features, inside, ways)
            found.append(right)
            best = percent(Held(ways, right).best()[0])
            epochs = tried[1].epochs if tried else 0
            self.log.add_trial(
                Trial(
                    name=tried[0].name if tried else PROBE,
                    rung=fold,
                    rows=int(inside.sum()),
                    dev_rows=int((~inside).sum()),
                    epochs=epochs,
                    metric=round(best, 3),
                    seconds=round(time.monotonic() - began, 3),
                )
            )
        return Held(ways, torch.cat(found, dim=1))

    def train(
        self, config: TrainConfig, examples: list[Example], way: Way
    ) -> tuple[Prompt, Head]:
        """Prompt and class vectors of all rows."""
        prompt: Prompt = NoPrompt()
        features, targets = self.plain, self.targets
        if config.method != "probe":
            prompt = self._learn(config, examples)
            with torch.no_grad():
                state = prompt.state(self.base)
            features, targets = self._features(examples, state)
        own = way.reading.of(features)
        fitted = fit_head(own, targets, self._classes, way.penalty, None)
        mix = way.reading.mix(self._levels)
        return prompt, Head(fitted.weight, fitted.bias, mix).to(self.base.device)

    @property
    def _classes(self) -> int:
        return len(self.task.labels)

    @property
    def _levels(self) -> int:
        return self.base.dims.layers + 1

    def _ways(self, config: TrainConfig) -> tuple[Way, ...]:
        """Those whose class vectors fit beside a prompt; `probe`, as asked, is one."""
        readings = [LAST] if self.config.method == "probe" else READINGS
        ways = []
        for reading in readings:
            sized = replace(config, head_levels=reading.head_levels)
            try:
                require_fit(self.base, self.task, sized)
            except BlobTooBig:
                if reading != LAST:
                    continue
                raise
            ways += [Way(reading, penalty) for penalty in PENALTIES]
        return tuple(ways)

    def _features(
        self, examples: list[Example], state: PromptState
    ) -> tuple[Tensor, Tensor]:
        """Features [N, 3 * H] that all readings are made from, and targets [N]."""
        mix = computed_mix(self._levels)
        width = len(mix) * feature_width(self.pooling, self.base.dims.hidden)
        reader = Head(torch.zeros(1, width), mix=mix).to(self.base.device)
        return extract(self.base, examples, self.pooling, state, reader)

    def _sorted(self, task: Task) -> list[Example]:
        """Encoded rows in the order in which `extract` gives their features."""
        rows = encode_rows(
            task.train, self.base.short, task.labels, task.template, self.pooling
        )
        return [rows[index] for index in next(batches_of(rows, len(rows), None))]

    def _right(self, features: Tensor, inside: Tensor, ways: tuple[Way, ...]) -> Tensor:
        found = []
        for way in ways:
            own, targets = way.reading.of(features), self.targets[inside]
            head = fit_head(own[inside], targets, self._classes, way.penalty, None)
            with torch.no_grad():
                answers = head(own[~inside]).argmax(-1)
            found.append(answers == self.targets[~inside])
        return torch.stack(found).cpu()

    def _learn(self, config: TrainConfig, examples: list[Example]) -> Prompt:
        """A prompt trained on examples, from the means of their classes."""
        torch.manual_seed(config.seed)
        prompt = starting_prompt(self.base, self.task, config)
        with torch.no_grad():
            state = prompt.state(self.base)
        features, targets = extract(self.base, examples, self.pooling, state)
        vectors = class_means(features, targets, self._classes)
        if self.share:
            vectors = mixed(vectors, self.names, self.share)
        scale = config.head_scale / float(features.norm(dim=-1).mean())
        head = Head(vectors * scale).to(self.base.device)
        optimiser, schedule = make_optimiser(prompt, head, config, len(examples))
        for epoch in range(config.epochs):
            seed = config.seed * 1_000_003 + epoch
            words = np.random.default_rng(seed)
            for indices in batches_of(examples, config.batch_size, seed):
                chosen = [examples[index] for index in indices]
                chosen = without_words(chosen, config.word_dropout, words)
                state = prompt.state(self.base)
                loss = batch_loss(self.base, config, state, head, chosen, self.pooling)
                take_step(loss, self.base, prompt, head, optimiser, config)
                schedule.step()
            say(self.task.name, f"epoch {epoch + 1}/{config.epochs}")
        return prompt


def percent(right: Tensor) -> float:
    """Share of rows that are right, in percent."""
    return 100.0 * float(right.float().mean())


def _target(example: Example) -> int:
    assert isinstance(example.target, int)
    return example.target
