"""The two sides that parity compares: PyTorch and an ONNX graph, under one interface.

Both turn prompt rows into a prefix on their own, so a comparison covers the road that
a device takes: rows -> keys and values -> text over them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray

from promptdial.export.graph import HIDDEN_NAME, past_names, present_names
from promptdial.export.model import LoadedBase
from promptdial.export.prefix_attention import Prefix, text_mask
from promptdial.runtime.manifest import Dims
from promptdial.runtime.text import Encoded

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
Past = list[tuple[Floats, Floats]]


@dataclass(frozen=True)
class Batch:
    """Encoded texts side by side: ids, type ids and mask, each [B, T] int64."""

    ids: Ints
    type_ids: Ints
    mask: Ints


class Side(Protocol):
    """What both sides can do."""

    def prefix(self, rows: Floats) -> Past:
        """Keys and values [1, K, P, D] a layer of prompt rows [P, H] seen alone."""

    def hidden(self, batch: Batch, past: Past) -> Floats:
        """Hidden rows [B, T, H] of texts over a prefix (an empty list for none)."""


def batch_of(texts: Sequence[Encoded]) -> Batch:
    """Pad texts to the longest with zeros on the right."""
    shape = (len(texts), max(len(text) for text in texts))
    batch = Batch(*(np.zeros(shape, np.int64) for _ in range(3)))
    for row, text in enumerate(texts):
        batch.ids[row, : len(text)] = text.ids
        batch.type_ids[row, : len(text)] = text.type_ids
        batch.mask[row, : len(text)] = 1
    return batch


def pooled(hidden: Floats, mask: Ints) -> Floats:
    """Mean over the text rows, of L2 norm 1: [B, H]."""
    weight = mask[:, :, None].astype(np.float32)
    mean = (hidden * weight).sum(axis=1) / weight.sum(axis=1)
    norm = np.linalg.norm(mean, axis=1, keepdims=True)
    return np.asarray(mean / np.maximum(norm, 1e-12), np.float32)


@dataclass(frozen=True)
class TorchSide:
    """The reference: the loaded base, in float32."""

    loaded: LoadedBase

    def prefix(self, rows: Floats) -> Past:
        """See `Side`."""
        prefix = Prefix()
        length = len(rows)
        self._run(
            self._tensor(rows)[None],
            torch.ones(1, length, device=self._device),
            torch.zeros(1, length, dtype=torch.int64, device=self._device),
            prefix,
        )
        return [
            (key.cpu().numpy(), value.cpu().numpy()) for key, value in prefix.present
        ]

    def hidden(self, batch: Batch, past: Past) -> Floats:
        """See `Side`; without a prefix the model is called as transformers means it."""
        ids, mask = self._tensor(batch.ids), self._tensor(batch.mask)
        types = self._tensor(batch.type_ids)
        if not past:
            return self._plain(ids, mask, types)
        seen = mask.new_ones(len(mask), past[0][0].shape[2])
        pairs = [(self._tensor(key), self._tensor(value)) for key, value in past]
        rows = self.loaded.token_table[ids]
        return self._run(
            rows, torch.cat([seen, mask], dim=1), types, Prefix(past=pairs)
        )

    @property
    def _device(self) -> torch.device:
        return self.loaded.token_table.device

    def _tensor(self, values: NDArray[np.generic]) -> torch.Tensor:
        return torch.from_numpy(values).to(self._device)

    def _types(self, types: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"token_type_ids": types} if self.loaded.dims.token_types else {}

    def _plain(
        self, ids: torch.Tensor, mask: torch.Tensor, types: torch.Tensor
    ) -> Floats:
        with torch.no_grad():
            output = self.loaded.model(
                input_ids=ids, attention_mask=mask, **self._types(types)
            )
        return np.asarray(output.last_hidden_state.cpu().numpy(), np.float32)

    def _run(
        self,
        rows: torch.Tensor,
        mask: torch.Tensor,
        types: torch.Tensor,
        prefix: Prefix,
    ) -> Floats:
        batch, length = rows.shape[:2]
        steps = torch.arange(length, device=self._device)
        with torch.no_grad():
            output = self.loaded.model(
                inputs_embeds=rows,
                attention_mask=text_mask(mask, length),
                position_ids=(steps + self.loaded.dims.position_offset).expand(
                    batch, -1
                ),
                prefix=prefix,
                **self._types(types),
            )
        return np.asarray(output.last_hidden_state.cpu().numpy(), np.float32)


@dataclass(frozen=True)
class GraphSide:
    """A graph in onnxruntime over a token table [V, H]."""

    session: onnxruntime.InferenceSession
    dims: Dims
    table: Floats

    def prefix(self, rows: Floats) -> Past:
        """See `Side`."""
        length = len(rows)
        batch = Batch(*(np.zeros((1, length), np.int64) for _ in range(3)))
        batch.mask[:] = 1
        names = [name for pair in present_names(self.dims) for name in pair]
        values = self.session.run(names, self.feed(batch, [], rows[None]))
        return list(zip(values[0::2], values[1::2], strict=True))

    def hidden(self, batch: Batch, past: Past) -> Floats:
        """See `Side`."""
        feed = self.feed(batch, past, self.table[batch.ids])
        return np.asarray(self.session.run([HIDDEN_NAME], feed)[0], np.float32)

    def feed(
        self, batch: Batch, past: Past, rows: Floats
    ) -> dict[str, NDArray[np.generic]]:
        """The graph's inputs for embedding rows [B, T, H] over a prefix."""
        count, length = batch.ids.shape
        empty = np.zeros((1, self.dims.kv_heads, 0, self.dims.head_dim), np.float32)
        pairs = past or [(empty, empty)] * self.dims.layers
        seen = np.ones((count, pairs[0][0].shape[2]), np.int64)
        steps = np.arange(length, dtype=np.int64) + self.dims.position_offset
        feed: dict[str, NDArray[np.generic]] = {
            "inputs_embeds": np.ascontiguousarray(rows, np.float32),
            "attention_mask": np.concatenate([seen, batch.mask], axis=1),
            "position_ids": np.tile(steps, (count, 1)),
        }
        if self.dims.token_types:
            feed["token_type_ids"] = batch.type_ids
        for names, pair in zip(past_names(self.dims), pairs, strict=True):
            feed.update(zip(names, pair, strict=True))
        return feed
