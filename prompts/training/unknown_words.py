"""Whether the base's vocabulary knows the words of the training rows.

Words that it lacks are one and the same token to it: no prompt can tell them apart.
"""

import json

import numpy as np

from promptdial.prompts.training.batches import Example
from promptdial.prompts.training.diagnostics import Finding
from promptdial.runtime.text import TextEncoder

_MOSTLY = 0.5
"""Share of a row's tokens above which little of the row is left to read."""

_SHARE = 0.02
"""Of the training rows: a name or an emoji here and there costs less."""


def unknown_findings(encoder: TextEncoder, examples: list[Example]) -> list[Finding]:
    """A warning where many rows are mostly words that the vocabulary lacks.

    Args:
        encoder: Text to tokens.
        examples: The training rows, at least one.
    """
    token = unknown_token(encoder)
    if token is None:
        return []
    shares = [_share(example, token) for example in examples]
    rows = sum(share > _MOSTLY for share in shares) / len(shares)
    if rows <= _SHARE:
        return []
    return [
        Finding(
            "UNKNOWN_WORDS",
            f"{rows:.1%} of the training rows are mostly words that the base's "
            "vocabulary lacks, which all look alike to it; take a base of their "
            "language or script",
        )
    ]


def unknown_token(encoder: TextEncoder) -> int | None:
    """Id of the token of words that the vocabulary lacks; None where it spells all."""
    model = json.loads(encoder.tokenizer_json())["model"]
    if model.get("byte_fallback"):
        return None
    if "unk_id" in model:
        found: int | None = model["unk_id"]
        return found
    name = model.get("unk_token")
    ids: dict[str, int] = model["vocab"]
    return None if name is None else ids.get(name)


def _share(example: Example, token: int) -> float:
    """Share of unknown tokens among those of words."""
    ids = example.text.ids[example.text.words >= 0]
    return float(np.mean(ids == token)) if len(ids) else 0.0
