"""Runs of a few-shot search: one prompt on some folds, read on the others."""

import time

import numpy as np
import torch
from torch import Tensor

from promptdial.prompts.training.base import FrozenBase
from promptdial.prompts.training.batches import Example, batches_of, encode_rows
from promptdial.prompts.training.config import TrainConfig
from promptdial.prompts.training.heads import POOLING_OF_KIND, Head
from promptdial.prompts.training.initialise import starting_prompt
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
from promptdial.prompts.training.search.few_shot_rows import FOLDS, fold_of
from promptdial.prompts.training.search.search_log import SearchLog, Trial
from promptdial.prompts.training.step import batch_loss, make_optimiser, take_step
from promptdial.prompts.training.task import Task
from promptdial.prompts.training.word_dropout import without_words

PENALTIES = (1e-5, 1e-4, 1e-3, 1e-2)
"""Of the squared class vectors; with few rows, stronger ones than the probe's too."""
PROBE = "class vectors alone"


class FoldRuns:
    """Rows, folds, and features without a prompt, made once for all that is tried."""

    def __init__(
        self, base: FrozenBase, task: Task, config: TrainConfig, log: SearchLog
    ) -> None:
        self.base, self.task, self.config, self.log = base, task, config, log
        self.pooling = POOLING_OF_KIND[task.kind]
        self.examples = self._sorted(task)
        self.fold = fold_of([_target(item) for item in self.examples])
        self.plain, self.targets = extract(base, self.examples, self.pooling, [])
        self.names, self.share = torch.zeros(0), 0.0
        if task.kind != "pair":  # whose features are products of two texts
            self.names = name_features(base, task.labels)
            self.share = name_share(self.plain, self.targets, self.fold, self.names)

    def folds(
        self,
        tried: tuple[Candidate, TrainConfig] | None,
        folds: tuple[int, ...] = tuple(range(FOLDS)),
    ) -> Tensor:
        """[penalties, rows of the folds] True where a held-out row is right."""
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
                features, _ = extract(self.base, self.examples, self.pooling, state)
            right = self._right(features, inside)
            found.append(right)
            best = percent(self.best(right)[0])
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
        return torch.cat(found, dim=1)

    def best(self, right: Tensor) -> tuple[Tensor, float]:
        """The rows of the best penalty, the stronger one of equals, and the penalty."""
        scores = right.float().mean(1)
        index = max(range(len(PENALTIES)), key=lambda item: (float(scores[item]), item))
        return right[index], PENALTIES[index]

    def train(
        self, config: TrainConfig, examples: list[Example], penalty: float
    ) -> tuple[Prompt, Head]:
        """Prompt and class vectors of all rows."""
        if config.method == "probe":
            head = fit_head(self.plain, self.targets, self._classes, penalty, None)
            return NoPrompt(), head
        prompt = self._learn(config, examples)
        with torch.no_grad():
            state = prompt.state(self.base)
        features, targets = extract(self.base, examples, self.pooling, state)
        return prompt, fit_head(features, targets, self._classes, penalty, None)

    @property
    def _classes(self) -> int:
        return len(self.task.labels)

    def _sorted(self, task: Task) -> list[Example]:
        """Encoded rows in the order in which `extract` gives their features."""
        rows = encode_rows(task.train, self.base.encoder, task.labels, task.template)
        return [rows[index] for index in next(batches_of(rows, len(rows), None))]

    def _right(self, features: Tensor, inside: Tensor) -> Tensor:
        found = []
        for penalty in PENALTIES:
            head = fit_head(
                features[inside], self.targets[inside], self._classes, penalty, None
            )
            with torch.no_grad():
                answers = head(features[~inside]).argmax(-1)
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
