"""Golden inputs of a decoder's prompt: dev inputs whose answers are clear.

A label must be the right one. A text need not be: the self-test asks whether the device
writes what the maker's model wrote, and of free texts none is the only right one.
"""

from promptdial.prompts.blob import Golden
from promptdial.prompts.training.decoders.decoder_reference import (
    DecoderReader,
    fitted_ids,
    label_scores,
    write,
)
from promptdial.prompts.training.packing import (
    GOLDEN_COUNT,
    GOLDEN_MARGIN,
    GOLDEN_TOKENS,
)
from promptdial.runtime.deciding import decide
from promptdial.runtime.errors import TextRefused
from promptdial.runtime.requests import chosen_options
from promptdial.runtime.rows import Row
from promptdial.runtime.selftest import GOLDEN_TOKENS as NEW_TOKENS
from promptdial.runtime.selftest import golden_changes

_CANDIDATES = 64
"""Short rows that are tried: each costs up to eight passes."""


def golden_answers(reader: DecoderReader, dev: list[Row]) -> tuple[Golden, ...]:
    """Clear, different answers among short dev inputs.

    Args:
        reader: The base with the blob's stored prompt.
        dev: Rows of the task.
    """
    found: list[Golden] = []
    tried = 0
    for row in dev:
        if len(found) == GOLDEN_COUNT or tried == _CANDIDATES:
            break
        try:
            ids = fitted_ids(reader, row.text, NEW_TOKENS)
            if len(ids) > GOLDEN_TOKENS:
                continue
            tried += 1
            label, margin = _answer(reader, row)
        except TextRefused:
            continue  # no room for it beside a long prompt
        if margin < GOLDEN_MARGIN or label in {item.label for item in found}:
            continue
        tokens = tuple(int(token) for token in ids)
        found.append(Golden(row.text, None, tokens, label, round(margin, 4)))
    return tuple(found)


def _answer(reader: DecoderReader, row: Row) -> tuple[str, float]:
    """A row's answer and its margin; no margin where it is wrong, or nothing."""
    if reader.meta.kind == "generation":
        options = chosen_options(reader.meta, golden_changes(reader.meta))
        written = write(reader, row.text, options, own_limit=False)
        return written.text, written.margin if written.text.strip() else 0.0
    meta = reader.meta
    decision = decide(label_scores(reader, row.text).numpy(), meta.labels, meta.scores)
    label = meta.labels[decision.best]
    good = label == row.label and not decision.abstained
    return label, decision.margin if good else 0.0
