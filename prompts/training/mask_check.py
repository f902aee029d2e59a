"""Whether masks and prefixes reach the model: checked before any training.

Both are known failures of prompt-tuning libraries (mask not extended, adapter ignored).
"""

import torch
from torch import Tensor

from promptdial.prompts.training.base import FrozenBase
from promptdial.prompts.training.batches import Example, collate
from promptdial.prompts.training.diagnostics import Finding

_PAD_TOLERANCE = 1e-3
"""Of a hidden state: float32 sums in another order differ by some 1e-6."""


def mask_findings(
    base: FrozenBase, examples: list[Example], rows: Tensor
) -> list[Finding]:
    """Whether padding leaks into answers, and whether a prefix reaches them at all.

    Args:
        base: The frozen model.
        examples: Some rows of different lengths.
        rows: Prompt rows [P, H].
    """
    texts = [item.text.passes[0] for item in examples[:32]]
    short, long = min(texts, key=len), max(texts, key=len)
    findings = []
    with torch.no_grad():
        state = base.state_of(rows)
        alone = base.hidden(collate([short], base.device), state)[0]
        padded = base.hidden(collate([short, long], base.device), state)[
            0, : len(short)
        ]
        plain = base.hidden(collate([short], base.device), [])[0]
    leak = float((alone - padded).abs().max())
    if leak > _PAD_TOLERANCE:
        findings.append(
            Finding(
                "MASK",
                f"a row differs by {leak:.2g} when padded beside a longer one; the "
                "attention mask does not reach this model: check its attention class",
            )
        )
    if float((alone - plain).abs().max()) < 1e-6:
        findings.append(
            Finding(
                "PREFIX_IGNORED",
                "a prompt changes no hidden state; the model was not loaded with "
                "promptdial's attention",
            )
        )
    return findings
