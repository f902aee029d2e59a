"""The PyTorch reference of a decoder: what a prompt writes, and its likeliest label.

The passes are the frozen float32 model's. Texts are cut, tokens chosen and answers
ended by the device's own functions. Labels are compared by brute force, every token of
every one: the device leaves out those that cannot win.
"""

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from promptdial.export.forward import PromptState, state_length
from promptdial.prompts.metadata import NEUTRAL, PromptMeta
from promptdial.prompts.training.decoder_base import DecoderBase
from promptdial.runtime.constraint import Constraints
from promptdial.runtime.generation_options import GenerationOptions
from promptdial.runtime.label_scoring import verbalised
from promptdial.runtime.requests import (
    NO_CHANGES,
    chosen_options,
    constrained,
    text_to_continue,
    tokens_to_end_at,
)
from promptdial.runtime.rows import Row
from promptdial.runtime.sampling import Sampler
from promptdial.runtime.text_stream import StopStrings
from promptdial.runtime.vocabulary import Vocabulary

_LABELS = 64
"""Labels of one pass."""


@dataclass(frozen=True)
class DecoderReader:
    """What turns texts into a decoder's answers.

    Attributes:
        base: The frozen model.
        state: The prompt ready to run; empty for none.
        meta: What the prompt's blob says about itself.
        constraints: Those that answers were held to.
    """

    base: DecoderBase
    state: PromptState
    meta: PromptMeta
    constraints: Constraints = field(default_factory=Constraints)

    @cached_property
    def prior(self) -> Tensor | None:
        """Log-likelihoods [C] on the neutral text; None for a task that has none."""
        neutral = self.meta.template.get(NEUTRAL)
        return None if neutral is None else _likelihoods(self, neutral)


@dataclass(frozen=True)
class Written:
    """An answer that was written.

    Attributes:
        text: Without what ended it.
        tokens: As they were chosen, the one that ended it included.
        margin: Least distance of the two best probabilities among all of its tokens.
    """

    text: str
    tokens: tuple[int, ...]
    margin: float


def answers_of(reader: DecoderReader, rows: list[Row]) -> list[str]:
    """The label (classification) or the text (generation) of every row.

    Raises:
        TextRefused: A text cannot be encoded, or there is no room for it.
    """
    labels = reader.meta.labels
    if reader.meta.kind == "classification":
        scores = (label_scores(reader, row.text) for row in rows)
        return [labels[int(found.argmax())] for found in scores]
    options = chosen_options(reader.meta, NO_CHANGES)
    return [write(reader, row.text, options).text for row in rows]


def write(reader: DecoderReader, text: str, options: GenerationOptions) -> Written:
    """Continue a text.

    Raises:
        TextRefused: It cannot be encoded, or there is no room for it.
    """
    base = reader.base
    vocabulary = Vocabulary(base.encoder, base.dims.vocab, base.stop_tokens)
    options, constraint = constrained(
        reader.constraints, options, vocabulary, own_limit=True
    )
    ids = fitted_ids(reader, text, options.max_new_tokens)
    ends = tokens_to_end_at(base.encoder, options, base.stop_tokens)
    sampler = Sampler(options, ids, constraint)
    pieces, stops = base.encoder.pieces(), StopStrings(options.stop)
    tokens: list[int] = []
    parts: list[str] = []
    margin, feed, past = 1.0, torch.from_numpy(ids), reader.state
    while len(tokens) < options.max_new_tokens and not stops.found:
        logits, past = _pass(base, feed[None].to(base.device), past)
        token = sampler.choose(logits[0, -1].cpu().numpy())
        tokens.append(token)
        margin = min(margin, _margin(logits[0, -1]))
        if token in ends:
            break
        parts.append(stops.push(pieces.push(token)))
        if constraint is not None and constraint.finished:
            break
        feed = torch.tensor([token])
    if not stops.found:
        parts += [stops.push(pieces.finish()), stops.finish()]
    return Written("".join(parts), tuple(tokens), margin)


def label_scores(reader: DecoderReader, text: str) -> Tensor:
    """Log-likelihood [C] of every label after a text, less the prior, in float64.

    Raises:
        TextRefused: The text cannot be encoded, or there is no room for it.
    """
    found = _likelihoods(reader, text)
    return found if reader.prior is None else found - reader.prior


def _likelihoods(reader: DecoderReader, text: str) -> Tensor:
    """Log-likelihood [C] of every label after a text, in float64."""
    base = reader.base
    end = [] if base.end_token is None else [base.end_token]
    words = [verbalised(label) for label in reader.meta.labels]
    paths = [[*base.encoder.token_ids(word), *end] for word in words]
    ids = fitted_ids(reader, text, max(map(len, paths)))
    logits, past = _pass(
        base, torch.from_numpy(ids)[None].to(base.device), reader.state
    )
    first = _logs(logits[0, -1])
    found = [
        _label_scores(base, first, paths[at : at + _LABELS], past)
        for at in range(0, len(paths), _LABELS)
    ]
    return torch.cat(found)


def _label_scores(
    base: DecoderBase, first: Tensor, paths: list[list[int]], past: PromptState
) -> Tensor:
    """Log-likelihoods of some labels.

    Args:
        base: The frozen model.
        first: Log-probabilities [V] of a label's first token.
        paths: Each label's tokens.
        past: Keys and values of prompt and text.
    """
    scores = torch.stack([first[path[0]] for path in paths])
    length = max(map(len, paths)) - 1
    if not length:
        return scores
    # Padded on the right, where nothing that counts looks.
    ids = torch.tensor([[*path, *[0] * length][:length] for path in paths])
    logs = _logs(_pass(base, ids.to(base.device), past)[0])
    for row, path in enumerate(paths):
        for step, token in enumerate(path[1:]):
            scores[row] += logs[row, step, token]
    return scores


def fitted_ids(
    reader: DecoderReader, text: str, new_tokens: int
) -> "np.ndarray[tuple[int], np.dtype[np.int64]]":
    """Token ids [T] of a text in the prompt's template, cut as the device cuts it.

    Raises:
        TextRefused: It cannot be encoded, or there is no room for it.
    """
    base, used = reader.base, state_length(reader.state)
    window = base.dims.max_positions
    ids, _ = text_to_continue(base.encoder, reader.meta, text, used, new_tokens, window)
    return ids


def _pass(
    base: DecoderBase, ids: Tensor, past: PromptState
) -> tuple[Tensor, PromptState]:
    """Logits [B, T, V] of tokens [B, T], and keys and values up to their last."""
    seen = ids.new_ones(len(ids), state_length(past) + ids.shape[1])
    with torch.no_grad():
        return base.decoder.run(base.token_table[ids], seen, past)


def _logs(logits: Tensor) -> Tensor:
    return torch.log_softmax(logits.double(), -1).cpu()


def _margin(logits: Tensor) -> float:
    """Distance of the two best probabilities of logits [V]."""
    best = torch.softmax(logits.double(), -1).topk(2).values
    return float(best[0] - best[1])
