"""Texts with some words left out: other wordings of a row, where rows are few."""

from dataclasses import replace

import numpy as np

from promptdial.prompts.training.batches import Example
from promptdial.runtime.text import Encoded

_MIN_WORDS = 3
"""A text of fewer words is its words: nothing is left out."""


def without_words(
    examples: list[Example], share: float, generator: np.random.Generator
) -> list[Example]:
    """The examples, each with about this share of its words left out.

    Special tokens stay, and so do a positive and the targets of the words that stay.

    Args:
        examples: Encoded rows.
        share: Of the words, 0 to 1.
        generator: Draws the words.
    """
    if not share:
        return examples
    return [
        replace(item, text=_thinned(item.text, share, generator)) for item in examples
    ]


def _thinned(text: Encoded, share: float, generator: np.random.Generator) -> Encoded:
    # A pair counts its words in each text anew.
    words = np.where(text.words >= 0, 2 * text.words + text.type_ids, -1)
    names = np.unique(words[words >= 0])
    if len(names) < _MIN_WORDS:
        return text
    gone = names[generator.random(len(names)) < share]
    if len(gone) == len(names):
        return text
    keep = ~np.isin(words, gone)
    return replace(
        text,
        ids=text.ids[keep],
        type_ids=text.type_ids[keep],
        words=text.words[keep],
    )
