"""The words of the vocabulary that each virtual token of a blob is most like.

Rows are compared with the token table (Lester et al. 2021, arXiv:2104.08691, section
7); of a deep prompt the keys of the first layer with the keys that words have there.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from promptdial.export.masks import encoder_mask
from promptdial.export.prefix_attention import LayerKV, Prefix
from promptdial.prompts.blob import PromptBlob
from promptdial.prompts.training.base import FrozenBase

_CHUNK = 4096
"""Words of one pass."""


@dataclass(frozen=True)
class Neighbour:
    """A word near a virtual token.

    Attributes:
        word: As it stands in the vocabulary.
        cosine: Of the two vectors.
    """

    word: str
    cosine: float


def nearest_words(
    base: FrozenBase, blob: PromptBlob, count: int = 5
) -> list[list[Neighbour]]:
    """The nearest words of each virtual token, nearest first; [] of a probe.

    Args:
        base: The model that the blob is for.
        blob: The prompt.
        count: Words for each virtual token.
    """
    ids = _words(base)
    texts = [base.encoder.token_text(int(item)) for item in ids]
    with torch.no_grad():
        found = []
        for own, words in _compared(base, blob, ids):
            near = torch.nn.functional.cosine_similarity(words, own[None], dim=-1)
            top = near.topk(min(count, len(texts)))
            found.append(
                [
                    Neighbour(texts[int(at)], round(float(value), 3))
                    for value, at in zip(top.values, top.indices, strict=True)
                ]
            )
    return found


def _words(base: FrozenBase) -> Tensor:
    """Ids [N] of the tokens that begin or are a word of letters."""
    size = min(base.encoder.vocab_size, base.token_table.shape[0])
    texts = [base.encoder.token_text(index) for index in range(size)]
    # The marks of a word's beginning in byte-level and SentencePiece vocabularies.
    plain = [text.lstrip("\u0120\u2581") for text in texts]
    ids = [index for index, text in enumerate(plain) if text.isalpha()]
    return torch.tensor(ids or list(range(size)), device=base.device)


def _compared(
    base: FrozenBase, blob: PromptBlob, ids: Tensor
) -> Iterator[tuple[Tensor, Tensor]]:
    """Each virtual token's vector and those of the words [N, ...]."""
    rows, table = blob.prompt_embeddings, base.token_table
    if rows is not None:
        for row in torch.tensor(rows, device=base.device):
            yield row, table[ids]
    for place in range(blob.num_virtual_tokens if blob.past_key_values else 0):
        key = torch.tensor(blob.past_key_values[0][0], device=base.device)[:, place]
        words = torch.cat(
            [_first_keys(base, table[part], place) for part in torch.split(ids, _CHUNK)]
        )
        # Every key has a large part in common with all others; it says nothing.
        common = words.mean(0)
        yield key.flatten().float() - common, words - common


def _first_keys(base: FrozenBase, rows: Tensor, place: int) -> Tensor:
    """Keys [N, K * D] that rows [N, H] have in the first layer, each alone at a place.

    The first layer sees nothing but a row and its position.
    """
    count = len(rows)
    first = _FirstLayer(keep=True)
    inputs: dict[str, object] = {
        "inputs_embeds": rows[:, None],
        "attention_mask": encoder_mask(base.model, rows.new_ones(count, 1), 1),
        "position_ids": torch.full(
            (count, 1), place + base.dims.position_offset, device=rows.device
        ),
        "prefix": first,
    }
    if base.dims.token_types:
        inputs["token_type_ids"] = torch.zeros(
            count, 1, dtype=torch.long, device=rows.device
        )
    try:
        base.model(**inputs)
    except _Enough:
        pass
    return first.present[0][0].flatten(1)


class _Enough(Exception):
    """The first layer's keys are known; the other layers need not run."""


class _FirstLayer(Prefix):
    def extend(self, key: Tensor, value: Tensor) -> LayerKV:
        self.present.append((key, value))
        raise _Enough
