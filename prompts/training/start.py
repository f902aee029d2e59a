"""What runs of one task on one base have in common: encoded rows, and the probe."""

from dataclasses import dataclass, replace

from torch import Tensor

from promptdial.prompts.training.base import FrozenBase
from promptdial.prompts.training.batches import Example, encode_rows, target_tensor
from promptdial.prompts.training.config import MEAN, TrainConfig
from promptdial.prompts.training.diagnostics import Finding
from promptdial.prompts.training.heads import Head, pooling_of
from promptdial.prompts.training.initialise import starting_head
from promptdial.prompts.training.probe import extract, fit_probe
from promptdial.prompts.training.scoring import (
    Reader,
    features_of,
    joined,
    logits_over,
    score_of_logits,
)
from promptdial.prompts.training.task import Task
from promptdial.prompts.training.units import Units, units_of_logits
from promptdial.prompts.training.unknown_words import unknown_findings
from promptdial.prompts.training.weighed_probe import fit_weighed_probe


@dataclass(frozen=True)
class Start:
    """What runs of one task on one base have in common, if they read pairs alike.

    Attributes:
        train: Encoded training rows.
        dev: Encoded dev rows.
        reader: Class vectors from label names, no prompt.
        zero_shot: Its dev metric, percent.
        probe: The linear probe; of no use for embedding tasks.
        probe_metric: Its dev metric, percent.
        probe_answers: Its answers on dev; empty for embedding tasks.
        warnings: Known failures that the rows show before any training.
    """

    train: list[Example]
    dev: list[Example]
    reader: Reader
    zero_shot: float
    probe: Reader
    probe_metric: float
    probe_answers: Units
    warnings: list[Finding]


def prepare(base: FrozenBase, task: Task, config: TrainConfig) -> Start:
    """Encode the rows, and fit the probe on the features without a prompt."""
    plain = None
    if task.kind != "embedding":
        # What a prompt is measured against reads the last level, as probes do.
        named = replace(config, head_levels=0, head_init="labels", head_pooling=MEAN)
        plain = starting_head(base, task, named)
    pooling = pooling_of(task.kind, config)
    reader = Reader(base, [], plain, task.kind, pooling, task.labels)
    labels, template = task.labels, task.template
    train = encode_rows(task.train, base.short, labels, template, pooling)
    dev = encode_rows(task.dev, base.encoder, labels, template, pooling)
    # One pass over dev serves all that is read of it without a prompt.
    features = features_of(reader, dev)
    logits = logits_over(plain, features)
    zero_shot = score_of_logits(reader, task.dev, dev, logits)
    warnings = unknown_findings(base.encoder, train)
    if plain is None:
        return Start(train, dev, reader, zero_shot, reader, zero_shot, [], warnings)
    probe = _linear_probe(train, dev, reader, features)
    logits = logits_over(probe.head, features)
    return Start(
        train=train,
        dev=dev,
        reader=reader,
        zero_shot=zero_shot,
        probe=probe,
        probe_metric=score_of_logits(probe, task.dev, dev, logits),
        probe_answers=units_of_logits(probe, dev, logits),
        warnings=warnings,
    )


def probe_over(start: Start, reader: Reader, seed: int) -> Reader:
    """The reader with a linear probe over its own features as its head.

    Args:
        start: For its rows.
        reader: Its prompt, and the mix and queries of its head, stay as they are, but
            for queries of a head that weighs rows, which are fitted too.
        seed: Of the order of the rows where queries are fitted.
    """
    if reader.head is None or reader.head.query is None:
        found = features_of(reader, start.dev)
        return _linear_probe(start.train, start.dev, reader, found)
    head = fit_weighed_probe(
        reader.base,
        start.train,
        start.dev,
        reader.head,
        reader.pooling,
        reader.state,
        seed,
    )
    return replace(reader, head=head)


def _linear_probe(
    train: list[Example], dev: list[Example], reader: Reader, found: list[Tensor]
) -> Reader:
    """The reader with class vectors fitted to its features; `found` are dev's."""
    trained = extract(reader.base, train, reader.pooling, reader.state, reader.head)
    chosen = joined(found), target_tensor(dev, reader.base.device)
    head, _ = fit_probe(trained, chosen, len(reader.labels))
    mix = None if reader.head is None else reader.head.mix
    return replace(reader, head=Head(head.weight, head.bias, mix))
