"""The two sides that parity compares: PyTorch and an ONNX graph, under one interface.

Both turn prompt rows into a prefix on their own, so a comparison covers the road that
a device takes: rows -> keys and values -> text over them. Where a base takes no prefix,
the rows themselves go on.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray

from promptdial.export.forward import FULL
from promptdial.export.graph_names import HIDDEN_NAME
from promptdial.export.model import LoadedBase
from promptdial.runtime.graph_state import past_names, present_names
from promptdial.runtime.manifest import Dims
from promptdial.runtime.text import Encoded

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
State = Sequence[tuple[Floats, ...]]
"""A prompt ready to run, as promptdial.export.forward.PromptState."""


@dataclass(frozen=True)
class Batch:
    """Encoded texts side by side: ids, type ids and mask, each [B, T] int64."""

    ids: Ints
    type_ids: Ints
    mask: Ints


class TakesPrompts(Protocol):
    """A side that makes prompts ready, of either family."""

    def state(self, rows: Floats) -> State:
        """Prompt rows [P, H] ready to run."""


class Side(TakesPrompts, Protocol):
    """What both sides can do."""

    def hidden(self, batch: Batch, state: State) -> Floats:
        """Hidden rows [B, T, H] of texts over a prompt (an empty list for none)."""


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

    def state(self, rows: Floats) -> State:
        """See `Side`."""
        with torch.no_grad():
            state = self.loaded.frozen.state_of(self._tensor(rows))
        return [tuple(item.cpu().numpy() for item in parts) for parts in state]

    def hidden(self, batch: Batch, state: State) -> Floats:
        """See `Side`; without a prompt the model is called as transformers means it."""
        ids, mask = self._tensor(batch.ids), self._tensor(batch.mask)
        types = self._tensor(batch.type_ids)
        with torch.no_grad():
            if not state:
                named = (
                    {"token_type_ids": types} if self.loaded.dims.token_types else {}
                )
                output = self.loaded.model(input_ids=ids, attention_mask=mask, **named)
                found = output.last_hidden_state
            else:
                parts = [tuple(self._tensor(item) for item in row) for row in state]
                rows = self.loaded.token_table[ids]
                found = self.loaded.frozen.hidden(rows, mask, types, parts)
        return np.asarray(found.cpu().numpy(), np.float32)

    def _tensor(self, values: NDArray[np.generic]) -> torch.Tensor:
        return torch.from_numpy(values).to(self.loaded.token_table.device)


@dataclass(frozen=True)
class GraphSide:
    """A graph in onnxruntime over a token table [V, H]."""

    session: onnxruntime.InferenceSession
    dims: Dims
    attention: str
    table: Floats

    def state(self, rows: Floats) -> State:
        """See `Side`."""
        if self.attention == FULL:
            return [(rows[None],)]
        length = len(rows)
        batch = Batch(*(np.zeros((1, length), np.int64) for _ in range(3)))
        batch.mask[:] = 1
        names = [name for pair in present_names(self.dims) for name in pair]
        values = self.session.run(names, self.feed(batch, [], rows[None]))
        return list(zip(values[0::2], values[1::2], strict=True))

    def hidden(self, batch: Batch, state: State) -> Floats:
        """See `Side`."""
        feed = self.feed(batch, state, self.table[batch.ids])
        found = np.asarray(self.session.run([HIDDEN_NAME], feed)[0], np.float32)
        return found[:, found.shape[1] - batch.ids.shape[1] :]

    def feed(
        self, batch: Batch, state: State, rows: Floats
    ) -> dict[str, NDArray[np.generic]]:
        """The graph's inputs for embedding rows [B, T, H] over a prompt."""
        count, length = batch.ids.shape
        prompt = state[0][0].shape[-2] if state else 0
        positions = np.tile(self._positions(length), (count, 1))
        types = batch.type_ids
        if self.attention == FULL and state:
            front = np.broadcast_to(state[0][0], (count, prompt, rows.shape[2]))
            rows = np.concatenate([front, rows], axis=1)
            before = np.tile(self._positions(prompt), (count, 1))
            positions = np.concatenate([before, positions], axis=1)
            types = np.concatenate([np.zeros_like(before), types], axis=1)
        seen = np.ones((count, prompt), np.int64)
        feed: dict[str, NDArray[np.generic]] = {
            "inputs_embeds": np.ascontiguousarray(rows, np.float32),
            "attention_mask": np.concatenate([seen, batch.mask], axis=1),
            "position_ids": positions,
        }
        if self.dims.token_types:
            feed["token_type_ids"] = types
        if self.attention != FULL:
            shape = (1, self.dims.kv_heads, 0, self.dims.head_dim)
            empty = np.zeros(shape, np.float32)
            pairs = state or [(empty, empty)] * self.dims.layers
            for names, pair in zip(past_names(self.dims), pairs, strict=True):
                feed.update(zip(names, pair, strict=True))
        return feed

    def _positions(self, length: int) -> Ints:
        return np.arange(length, dtype=np.int64) + self.dims.position_offset
