"""The PyTorch reference of a decoder: what a prompt writes, and its likeliest label.

The passes are the frozen float32 model's. Texts are cut, tokens chosen and answers
ended by the device's own functions. Labels are compared by brute force, every one in a
sequence of its own.
"""

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from promptdial.export.forward import PromptState, state_length
from promptdial.prompts.metadata import NEUTRAL, PromptMeta
from promptdial.prompts.training.decoders.decoder_base import DecoderBase
from promptdial.runtime.abstention import counted
from promptdial.runtime.constraint import Constraints
from promptdial.runtime.deciding import decide
from promptdial.runtime.generation_options import GenerationOptions
from promptdial.runtime.label_scoring import label_trie
from promptdial.runtime.label_trie import Path
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
        return None if neutral is None else likelihoods(self, neutral)


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

    An abstention is the out-of-scope label of a prompt that has one.

    Raises:
        TextRefused: A text cannot be encoded, or there is no room for it.
    """
    if reader.meta.kind == "classification":
        return counted(*label_choices(reader, rows), reader.meta.scores.out_of_scope)
    options = chosen_options(reader.meta, NO_CHANGES)
    return [write(reader, row.text, options).text for row in rows]


def label_choices(
    reader: DecoderReader, rows: list[Row]
) -> tuple[list[str], list[bool]]:
    """Best label of every row, and whether the prompt abstains from it.

    Raises:
        TextRefused: A text cannot be encoded, or there is no room for it.
    """
    labels, scores = reader.meta.labels, reader.meta.scores
    logs = (label_scores(reader, row.text).numpy() for row in rows)
    found = [decide(row, labels, scores) for row in logs]
    return [labels[it.best] for it in found], [it.abstained for it in found]


def write(
    reader: DecoderReader,
    text: str,
    options: GenerationOptions,
    *,
    own_limit: bool = True,
) -> Written:
    """Continue a text.

    Args:
        reader: The base with its prompt.
        text: The input.
        options: How to write.
        own_limit: Whether a constraint's longest answer sets the limit of tokens.

    Raises:
        TextRefused: It cannot be encoded, or there is no room for it.
    """
    base = reader.base
    vocabulary = Vocabulary(base.encoder, base.dims.vocab, base.stop_tokens)
    options, constraint = constrained(
        reader.constraints, options, vocabulary, own_limit=own_limit
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
        last = logits[0, -1].cpu()
        if constraint is not None:
            allowed = torch.from_numpy(constraint.allowed())
            margin = min(margin, _margin(last.masked_fill(~allowed, -torch.inf)))
        else:
            margin = min(margin, _margin(last))
        token = sampler.choose(last.numpy())
        tokens.append(token)
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
    found = likelihoods(reader, text)
    return found if reader.prior is None else found - reader.prior


def likelihoods(reader: DecoderReader, text: str) -> Tensor:
    """Log-likelihood [C] of every label after a text, in float64.

    Raises:
        TextRefused: The text cannot be encoded, or there is no room for it.
        PromptRefused: The labels cannot be told apart.
    """
    base = reader.base
    trie = label_trie(base.encoder, base.end_token, reader.meta.labels)
    ids = torch.from_numpy(fitted_ids(reader, text, trie.longest))
    logits, past = _pass(base, ids[None].to(base.device), reader.state)
    after: dict[Path, NDArray[np.float32]] = {}
    if () in trie.following:
        after[()] = trie.chosen((), logits[0, -1].cpu().numpy())
    length = trie.longest - 1
    for at in range(0, len(trie.paths) if length else 0, _LABELS):
        paths = trie.paths[at : at + _LABELS]
        # Padded on the right, where nothing that counts looks.
        padded = torch.tensor([[*path, *[0] * length][:length] for path in paths])
        with torch.no_grad():
            embeds = base.token_table[padded.to(base.device)]
            ones = embeds.new_ones(embeds.shape[:2], dtype=torch.int64)
            rows = base.decoder.logits(embeds, ones, past).cpu().numpy()
        for row, path in enumerate(paths):
            for end in range(1, len(path)):
                if path[:end] in trie.following:
                    after[path[:end]] = trie.chosen(path[:end], rows[row, end - 1])
    return torch.from_numpy(trie.logs(after))


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


def _margin(logits: Tensor) -> float:
    """Distance of the two best probabilities of logits [V]."""
    best = torch.softmax(logits.double(), -1).topk(2).values
    return float(best[0] - best[1])
