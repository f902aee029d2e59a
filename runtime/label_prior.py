"""How likely labels are without a text: what a calibrated label task takes off.

Some labels are likely whatever the text says, because their words are common or the
prompt leans to them. A task whose template has a `neutral` text compares
log p(label | prompt, text) - log p(label | prompt, neutral text). Sources: contextual
calibration, Zhao et al. 2021 (arXiv:2102.09690); domain-conditional PMI, Holtzman et
al. 2021 (arXiv:2104.08315).
"""

from collections.abc import Callable

import numpy as np

from promptdial.prompts.metadata import NEUTRAL
from promptdial.runtime.generating import DecoderModel, GenerationRequest
from promptdial.runtime.label_trie import Logs
from promptdial.runtime.prompt_cache import ReadyPrompt
from promptdial.runtime.requests import make_generation_request


def prior_of(
    request: GenerationRequest,
    model: DecoderModel,
    likelihoods: Callable[[GenerationRequest], Logs],
) -> Logs | None:
    """Log-likelihoods [C] of a prompt's labels on its neutral text.

    They are found by a prompt's first request and kept with the prompt, in its place in
    the prompt cache. Two threads may find them at once: their numbers are the same.

    Args:
        request: The request that wants them.
        model: The decoder.
        likelihoods: Gives [C] of a request.

    Returns:
        [C]; None for a task that is not calibrated.

    Raises:
        TextRefused: There is no room for the neutral text.
        SessionFailed: onnxruntime fails.
        NotFinite: The logits are not finite.
    """
    prompt = request.prompt
    if prompt is None or NEUTRAL not in prompt.meta.template:
        return None
    place = prompt.prior if isinstance(prompt, ReadyPrompt) else None
    if place is not None and not np.isnan(place).any():
        return place
    room = {"max_new_tokens": request.options.max_new_tokens}
    neutral = prompt.meta.template[NEUTRAL]
    found = likelihoods(
        make_generation_request(model, prompt, neutral, room, request.began)
    )
    if place is not None:
        place[:] = found
    return found
