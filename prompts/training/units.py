"""What is counted on dev: one label a row, or the entities of a tagged sentence.

Findings and reports count the same units for every kind of task.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from promptdial.prompts.training.batches import Example
from promptdial.prompts.training.diagnostics import LabelFacts
from promptdial.prompts.training.scoring import (
    Reader,
    labels_of_logits,
    logits_of,
    tags_of_logits,
)
from promptdial.prompts.training.task import Task
from promptdial.runtime.metrics import bio_spans
from promptdial.runtime.rows import Row

Unit = tuple[str, int, int]
"""Name, first word, word after the last; a row's label has the words 0 to 1."""

Units = list[frozenset[Unit]]
"""The units of each row."""


def gold_units(rows: Sequence[Row]) -> Units:
    """What the rows say; nothing where they have neither label nor tags."""
    return [
        frozenset(bio_spans(row.tags))
        if row.tags
        else frozenset([(row.label, 0, 1)] if row.label is not None else [])
        for row in rows
    ]


def found_units(reader: Reader, examples: list[Example]) -> Units:
    """What a reader answers; nothing for embedding, which has no classes."""
    return units_of_logits(reader, examples, logits_of(reader, examples))


def units_of_logits(
    reader: Reader, examples: list[Example], logits: Sequence[Tensor]
) -> Units:
    """As `found_units`, from what `logits_of` gave."""
    if reader.kind == "embedding":
        return [frozenset()] * len(examples)
    if reader.kind == "token":
        tags = tags_of_logits(reader, examples, logits)
        return [frozenset(bio_spans(found)) for found in tags]
    return [frozenset([(label, 0, 1)]) for label in labels_of_logits(reader, logits)]


def count_names(units: Units) -> dict[str, int]:
    """Units of each name, most frequent first."""
    return dict(Counter(name for row in units for name, _, _ in row).most_common())


def paired_interval(gold: Units, one: Units, two: Units) -> float:
    """Half of the 95 % interval of the difference of two answers, in points.

    Over the gold units that one of them has and the other has not, as McNemar's test
    (1947) counts them: what both know or neither knows says nothing about which is
    better.
    """
    pairs = [
        (unit in first, unit in second)
        for wanted, first, second in zip(gold, one, two, strict=True)
        for unit in wanted
    ]
    if not pairs:
        return 0.0
    only_one = sum(a and not b for a, b in pairs)
    only_two = sum(b and not a for a, b in pairs)
    spread = only_one + only_two - (only_one - only_two) ** 2 / len(pairs)
    return 196.0 * math.sqrt(spread) / len(pairs)


def share_changed(reader: Reader, examples: list[Example], found: Units) -> float:
    """Share of the answers that differ when the prompt is taken away.

    Args:
        reader: What was trained.
        examples: Encoded rows.
        found: Its answers to them.
    """
    if not reader.state:
        return 0.0
    bare = replace(reader, state=[])
    if reader.kind == "embedding":
        with_prompt = torch.stack(logits_of(reader, examples))
        without = torch.stack(logits_of(bare, examples))
        return float((with_prompt - without).abs().max() > 1e-3)
    pairs = list(zip(found, found_units(bare, examples), strict=True))
    return sum(one != two for one, two in pairs) / max(1, len(pairs))


def answer_facts(
    task: Task, dev: list[Example], reader: Reader, probe: Units
) -> tuple[float, LabelFacts | None]:
    """Share of dev answers that differ without the prompt, and what they are.

    Each pass over dev serves both: on a short run they are a good part of its time.

    Args:
        task: Rows and labels.
        dev: Its dev rows, encoded.
        reader: What was trained.
        probe: Answers of the linear probe; not looked at where there are no classes.
    """
    found = found_units(reader, dev)
    changed = share_changed(reader, dev, found)
    if reader.head is None:
        return changed, None
    return changed, label_facts(task, found, probe)


def label_facts(task: Task, found: Units, probe: Units) -> LabelFacts:
    """How often each label stands in the rows and in the answers.

    Args:
        task: Rows and labels.
        found: Answers on dev of what was trained.
        probe: Those of the linear probe.
    """
    gold = gold_units(task.dev)
    return LabelFacts(
        train=count_names(gold_units(task.train)),
        dev=count_names(gold),
        predicted=count_names(found),
        gain_interval=paired_interval(gold, found, probe),
    )
