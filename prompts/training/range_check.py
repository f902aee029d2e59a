"""Whether the device would take a trained prompt on the graph that it was trained on.

Graphs of fixed sizes have ranges, and the runtime refuses what lies outside. Trained
rows, keys and values are kept inside (parameters.keep_within); what rows lead to, and
what a reparametrisation makes, may still lie at an end.
"""

import numpy as np
import torch
from numpy.typing import NDArray

from promptdial.export.forward import PromptState
from promptdial.prompts.blob import PromptBlob
from promptdial.prompts.training.base import FrozenBase
from promptdial.prompts.training.diagnostics import Finding
from promptdial.prompts.training.parameters import DeepPrompt, NoPrompt, Prompt
from promptdial.prompts.training.scoring import Reader
from promptdial.prompts.training.storage import Storage
from promptdial.runtime.errors import PromptRefused
from promptdial.runtime.prompt_limits import PromptLimits, check_rows, check_state

Floats = NDArray[np.float32]


def range_findings(base: FrozenBase, prompt: Prompt, storage: Storage) -> list[Finding]:
    """A finding where the runtime would refuse the prompt.

    Args:
        base: What it was trained on.
        prompt: The trained numbers.
        storage: How its blob stores them.
    """
    if not base.ranges:
        return []
    rows = None
    with torch.no_grad():
        state = prompt.state(base, storage)
        if not isinstance(prompt, DeepPrompt | NoPrompt):
            rows = storage.rows(prompt.embeddings()).cpu().numpy()
    return _outside(base, rows, state)


def blob_findings(reader: Reader, blob: PromptBlob) -> list[Finding]:
    """The same of a blob: of a pack, no task's prompt is trained on its own.

    Args:
        reader: Of the blob, on what it was trained on.
        blob: The stored numbers.
    """
    if not reader.base.ranges:
        return []
    return _outside(reader.base, blob.prompt_embeddings, reader.state)


def _outside(
    base: FrozenBase, rows: Floats | None, state: PromptState
) -> list[Finding]:
    limits = PromptLimits(base.dims.max_positions, base.ranges)
    parts = tuple(part.cpu().numpy() for pair in state for part in pair)
    try:
        if rows is not None:
            check_rows("the prompt", rows, limits)
        check_state("the prompt", parts, base.dims, limits)
    except PromptRefused as error:
        return [Finding("OUTSIDE_RANGES", f"{error.message}; {error.hint}")]
    return []
