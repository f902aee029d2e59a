"""A decoder in PyTorch and as an ONNX graph, under one interface, for parity.

As in promptdial.export.sides, both turn prompt rows into the state of every layer (keys
and values, rows of a convolution) on their own.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray

from promptdial.export.forward import state_length
from promptdial.export.graph_names import LOGITS_NAME
from promptdial.export.model import LoadedBase
from promptdial.export.sides import Batch, Floats, State, TakesPrompts
from promptdial.runtime.graph_state import (
    by_layer,
    empty_state,
    flat,
    past_names,
    present_names,
)
from promptdial.runtime.manifest import Dims


class DecoderSide(TakesPrompts, Protocol):
    """What both sides can do."""

    def logits(self, batch: Batch, state: State) -> Floats:
        """Logits [B, T, V] of texts over a prompt (an empty list for none)."""


@dataclass(frozen=True)
class TorchDecoder:
    """The reference: the loaded base, in float32."""

    loaded: LoadedBase

    def state(self, rows: Floats) -> State:
        """See `DecoderSide`."""
        with torch.no_grad():
            state = self.loaded.decoder.state_of(self._tensor(rows))
        return [tuple(item.cpu().numpy() for item in pair) for pair in state]

    def logits(self, batch: Batch, state: State) -> Floats:
        """See `DecoderSide`; without a prompt the model is called with token ids."""
        ids, mask = self._tensor(batch.ids), self._tensor(batch.mask)
        with torch.no_grad():
            if not state:
                output = self.loaded.model(input_ids=ids, attention_mask=mask)
                found = output.logits
            else:
                past = [tuple(self._tensor(item) for item in pair) for pair in state]
                rows = self.loaded.token_table[ids]
                found = self.loaded.decoder.logits(rows, mask, past)
        return np.asarray(found.cpu().numpy(), np.float32)

    def _tensor(self, values: NDArray[np.generic]) -> torch.Tensor:
        return torch.from_numpy(values).to(self.loaded.token_table.device)


@dataclass(frozen=True)
class GraphDecoder:
    """A graph in onnxruntime over a token table [V, H]."""

    session: onnxruntime.InferenceSession
    dims: Dims
    table: Floats

    def state(self, rows: Floats) -> State:
        """See `DecoderSide`."""
        mask = np.ones((1, len(rows)), np.int64)
        return self.run(self.feed(rows[None], mask, []))[1]

    def logits(self, batch: Batch, state: State) -> Floats:
        """See `DecoderSide`."""
        feed = self.feed(self.table[batch.ids], batch.mask, state)
        return np.asarray(self.session.run([LOGITS_NAME], feed)[0], np.float32)

    def run(self, feed: Mapping[str, NDArray[np.generic]]) -> tuple[Floats, State]:
        """Logits [B, T, V], and every layer's state after the pass."""
        names = [LOGITS_NAME, *flat(present_names(self.dims))]
        logits, *values = self.session.run(names, dict(feed))
        return logits, by_layer(values, self.dims)

    def feed(
        self, rows: Floats, mask: NDArray[np.int64], state: State
    ) -> dict[str, NDArray[np.generic]]:
        """The graph's inputs for embedding rows [B, T, H] with a mask [B, T]."""
        count, length = rows.shape[:2]
        prompt = state_length(state)
        seen = np.ones((count, prompt), np.int64)
        steps = np.arange(prompt, prompt + length, dtype=np.int64)
        feed: dict[str, NDArray[np.generic]] = {
            "inputs_embeds": np.ascontiguousarray(rows, np.float32),
            "attention_mask": np.concatenate([seen, mask], axis=1),
            "position_ids": np.tile(steps, (count, 1)),
        }
        held = [array for layer in state for array in layer] or empty_state(self.dims)
        for name, values in zip(flat(past_names(self.dims)), held, strict=True):
            shape = (count, *values.shape[1:])
            feed[name] = np.ascontiguousarray(np.broadcast_to(values, shape))
        return feed
