"""Whether the device would take a trained prompt on the graph that it was trained on.

Graphs of fixed sizes have ranges, and the runtime refuses what lies outside. Trained
rows, keys and values are kept inside (parameters.keep_within); what rows lead to, and
what a reparametrisation makes, may still lie at an end.
"""

import torch

from promptdial.prompts.training.base import FrozenBase
from promptdial.prompts.training.diagnostics import Finding
from promptdial.prompts.training.parameters import DeepPrompt, NoPrompt, Prompt
from promptdial.prompts.training.storage import Storage
from promptdial.runtime.errors import PromptRefused
from promptdial.runtime.prompt_limits import PromptLimits, check_rows, check_state


def range_findings(base: FrozenBase, prompt: Prompt, storage: Storage) -> list[Finding]:
    """A finding where the runtime would refuse the prompt.

    Args:
        base: What it was trained on.
        prompt: The trained numbers.
        storage: How its blob stores them.
    """
    if not base.ranges:
        return []
    limits = PromptLimits(base.dims.max_positions, base.ranges)
    with torch.no_grad():
        state = prompt.state(base, storage)
    parts = tuple(part.cpu().numpy() for pair in state for part in pair)
    try:
        if not isinstance(prompt, DeepPrompt | NoPrompt):
            rows = storage.rows(prompt.embeddings().detach())
            check_rows("the prompt", rows.cpu().numpy(), limits)
        check_state("the prompt", parts, base.dims, limits)
    except PromptRefused as error:
        return [Finding("OUTSIDE_RANGES", f"{error.message}; {error.hint}")]
    return []
