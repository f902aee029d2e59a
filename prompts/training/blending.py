"""Starts from other prompts: one blob (SPoT), or a weighted mean of several.

Sources: SPoT, Vu et al. 2022 (arXiv:2110.07904); means of prompts that were trained
from one start keep what they have in common (model soups, Wortsman et al. 2022,
arXiv:2203.05482). With `epochs: 0` a blend is packed as it is.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from promptdial.export.errors import NoPrefix
from promptdial.prompts.blob import PromptBlob, read_blob
from promptdial.prompts.errors import UsageError
from promptdial.prompts.metadata import APART
from promptdial.prompts.training.base import PromptBase
from promptdial.prompts.training.config import (
    ATTENTION,
    MEAN,
    PAIRS_APART,
    TrainConfig,
)
from promptdial.prompts.training.heads import Head
from promptdial.prompts.training.parameters import DeepPrompt, Prompt, make_prompt
from promptdial.prompts.training.task import Task

FROM = "from:"


@dataclass(frozen=True)
class Blend:
    """Blobs of one base and of one shape, and their shares.

    Attributes:
        blobs: At least one.
        shares: Weights that sum to one.
        source: What asked for them, for messages.
    """

    blobs: tuple[PromptBlob, ...]
    shares: tuple[float, ...]
    source: str

    def prompt(self, base: PromptBase, config: TrainConfig) -> Prompt:
        """The mean as the start of a method.

        Raises:
            NoPrefix: The base takes no prompt of this method.
            UsageError: The blobs have another length, or none of what it trains.
        """
        first, count = self.blobs[0], config.num_virtual_tokens
        deep = bool(first.past_key_values)
        if first.num_virtual_tokens != count or deep != (config.method == "prefix"):
            raise UsageError(
                f"{self.source} has {first.num_virtual_tokens} "
                f"{'deep' if deep else 'soft'} virtual tokens, the run {count} of "
                f"method {config.method}",
                "give the same --num-virtual-tokens and a method of that kind",
            )
        if not deep:
            rows = self._mean([_rows(blob) for blob in self.blobs])
            width = config.encoder_hidden_size
            return make_prompt(config.method, base, rows.to(base.device), width)
        layers = [blob.past_key_values for blob in self.blobs]
        if len(layers[0]) != base.dims.layers:
            raise NoPrefix(
                f"{self.source} has {len(layers[0])} layers, {base.base.architecture} "
                f"{base.dims.layers}",
                "start from a blob of the same base",
            )
        pairs = [
            (
                self._mean([p[i][0] for p in layers]),
                self._mean([p[i][1] for p in layers]),
            )
            for i in range(len(layers[0]))
        ]
        return DeepPrompt(pairs)

    def head(self, task: Task, config: TrainConfig) -> Head:
        """The mean of the class vectors.

        Raises:
            UsageError: The blobs have other labels, or read other levels.
        """
        first = self.blobs[0]
        mix, wanted = first.head_mix, config.head_levels
        mixes = 0 if mix is None else len(mix)
        if mix is not None:
            wanted = min(wanted, mix.shape[1])
        pooling = MEAN if first.head_query is None else ATTENTION
        apart = first.meta.pooling == APART
        if task.kind == "pair" and apart != (config.pairs == PAIRS_APART):
            raise UsageError(
                f"head_init blob: {self.source} reads pairs by {first.meta.pooling}, "
                f"pairs is {config.pairs!r}",
                "give the blob's own --pairs, or start from labels or probe",
            )
        there = (len(first.meta.labels), mixes, pooling)
        asked = (len(task.labels), wanted, config.head_pooling)
        if first.meta.labels != task.labels or there != asked:
            raise UsageError(
                f"head_init blob: {self.source} has {there[0]} labels over {there[1]} "
                f"levels and pools by {there[2]}, the task {asked[0]} over {asked[1]} "
                f"and by {asked[2]}",
                "start the class vectors from labels or probe",
            )
        biases = [blob.head_bias for blob in self.blobs]
        found = [blob.head_mix for blob in self.blobs if blob.head_mix is not None]
        queries = [b.head_query for b in self.blobs if b.head_query is not None]
        return Head(
            self._mean([blob.head_weight for blob in self.blobs]),
            None if biases[0] is None else self._mean(biases),
            self._mean(found) if found else None,
            self._mean(queries) if queries else None,
        )

    def _mean(self, arrays: Sequence[object]) -> Tensor:
        tensors = [torch.tensor(array, dtype=torch.float32) for array in arrays]
        parts = [t * share for t, share in zip(tensors, self.shares, strict=True)]
        return torch.stack(parts).sum(0)


def blended(init: str, base: PromptBase) -> Blend:
    """Read what `from:A`, `from:A,B` or `from:A*0.7,B*0.3` names.

    Raises:
        PromptError: A blob cannot be read.
        UsageError: Nothing is named, a share is no positive number, or the blobs are
            of other bases or shapes.
    """
    if not init.startswith(FROM):
        raise UsageError(
            f"init is {init!r}, not {FROM}BLOB", "name a blob to start from"
        )
    parts = [_share(part) for part in init.removeprefix(FROM).split(",")]
    blobs = tuple(read_blob(Path(path)) for path, _ in parts)
    total = sum(share for _, share in parts)
    first = blobs[0]
    for (path, _), blob in zip(parts, blobs, strict=True):
        if blob.meta.base_fingerprint != base.base.fingerprint:
            raise UsageError(
                f"{path} is for {blob.meta.base_fingerprint}, this model is "
                f"{base.base.fingerprint}",
                "start from a blob of the same base",
            )
        if _shape(blob) != _shape(first):
            raise UsageError(
                f"{path} is not of the shape of {parts[0][0]}",
                "blend blobs of one method, length and list of labels",
            )
    return Blend(blobs, tuple(share / total for _, share in parts), init)


def _share(part: str) -> tuple[str, float]:
    path, star, number = part.strip().rpartition("*")
    if not star:
        path, number = number, "1"
    try:
        share = float(number)
    except ValueError:
        share = -1.0
    if not path or not 0 < share < float("inf"):
        raise UsageError(f"init names {part!r}", "write BLOB or BLOB*0.5")
    return path, share


def _shape(blob: PromptBlob) -> tuple[object, ...]:
    arrays = (
        blob.prompt_embeddings,
        blob.head_weight,
        blob.head_mix,
        blob.head_query,
    )
    shapes = [None if array is None else array.shape for array in arrays]
    past = [key.shape for key, _ in blob.past_key_values]
    return (*shapes, *past, blob.meta.labels, blob.head_bias is None)


def _rows(blob: PromptBlob) -> object:
    if blob.prompt_embeddings is None:
        raise UsageError(
            f"{blob.meta.task} has no virtual tokens", "start from another blob"
        )
    return blob.prompt_embeddings
