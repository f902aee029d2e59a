"""A decoder's graph: logits over the state of rows that came before.

The state (keys and values, rows of convolutions) stays in onnxruntime's own memory from
one pass to the next: as arrays of numpy it would be copied out and in again for every
token.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from promptdial.runtime.errors import BundleInvalid, SessionFailed
from promptdial.runtime.graph_state import (
    empty_state,
    flat,
    past_names,
    past_shapes,
    present_shapes,
)
from promptdial.runtime.manifest import Dims
from promptdial.runtime.profiles import Profile
from promptdial.runtime.prompt_limits import PromptLimits
from promptdial.runtime.session import (
    Floats,
    Ints,
    PromptState,
    check_inputs,
    check_outputs,
    first_line,
    open_session,
    ort_value,
)

KeyValues = tuple[Any, ...]
"""A PromptState of N rows and B texts, each array an OrtValue: of a convolution too."""

_LOGITS = "logits"
_KEEP = "logits_to_keep"
_VISIBLE = "visible_keys"


class DecoderSession:
    """A decoder graph. Safe to share among threads."""

    takes_prefix = True
    limits: PromptLimits | None = None
    """As an encoder's: its scales are made from what it is given."""

    def __init__(
        self,
        path: Path,
        dims: Dims,
        profile: Profile,
        threads: int | None = None,
        providers: Sequence[str] | None = None,
        cpu_features: Sequence[str] = (),
        *,
        packed_cache: bool = False,
    ) -> None:
        """Load the graph.

        Args:
            path: The .onnx file.
            dims: Sizes it must have.
            profile: How to run.
            threads: Threads of one request; None for the profile's.
            providers: onnxruntime's execution providers; None for the CPU's.
            cpu_features: Those the graph is meant for, as its manifest says.
            packed_cache: Whether sequences of different lengths may share a pass.

        Raises:
            SessionFailed: onnxruntime refuses, or lacks a provider.
            BundleInvalid: The graph is broken, or not the contract's.
            UsageError: `threads` is out of range.
        """
        self._session = open_session(path, profile, threads, providers, cpu_features)
        self._past_names = flat(past_names(dims))
        present = present_shapes(dims)
        self._outputs = [_LOGITS, *present]
        shapes = {item.name: item.shape for item in self._session.get_inputs()}
        check_inputs(path.name, shapes, dims, past_shapes(dims))
        shapes = {item.name: item.shape for item in self._session.get_outputs()}
        wanted = {_LOGITS: (None, None, dims.vocab), **present}
        check_outputs(path.name, shapes, wanted)
        options = {i.name for i in self._session.get_overridable_initializers()}
        for name in (_KEEP, _VISIBLE):
            if name not in options:
                raise BundleInvalid(
                    f"{path.name} lacks input {name}", "export it again"
                )
        self.packed_cache = packed_cache
        self._vocab = dims.vocab
        self.no_prompt: PromptState = empty_state(dims)

    def key_values(self, state: PromptState) -> KeyValues:
        """A prompt's state as a pass takes it; nothing is copied."""
        return tuple(ort_value(array) for array in state)

    def state_of(self, rows: Floats) -> PromptState:
        """What prompt rows [P, H] leave in each layer: one pass of P rows.

        Raises:
            SessionFailed: onnxruntime fails.
        """
        mask = np.ones((1, len(rows)), np.int64)
        positions = np.arange(len(rows), dtype=np.int64)[None]
        _, present = self.forward(
            rows[None], mask, positions, self.key_values(self.no_prompt), 1
        )
        return tuple(value.numpy() for value in present)

    def forward(
        self,
        embeds: Floats,
        mask: Ints,
        positions: Ints,
        past: KeyValues,
        keep: int,
        visible: NDArray[np.bool_] | None = None,
    ) -> tuple[Floats, KeyValues]:
        """Logits [B, `keep`, V] of the last rows, and every layer's state.

        Args:
            embeds: [B, T, H].
            mask: [B, N+T], 0 where a row must not be seen. With a packed cache a row
                is some ones and then zeros: the sequence's length.
            positions: [B, T].
            past: State of the N rows before.
            keep: Rows that get logits; 0 for all T.
            visible: [1, 1, T, N+T], False where a row must not see a key before it;
                None where it sees all.

        Raises:
            SessionFailed: onnxruntime fails.
        """
        feed = {
            "inputs_embeds": ort_value(embeds),
            "attention_mask": ort_value(mask),
            "position_ids": ort_value(positions),
            _KEEP: ort_value(np.array([keep], np.int64)),
        }
        if visible is not None:
            feed[_VISIBLE] = ort_value(visible)
        feed.update(zip(self._past_names, past, strict=True))
        try:
            logits, *present = self._session.run_with_ort_values(self._outputs, feed)
        except Exception as error:  # onnxruntime raises bare classes of its own
            raise SessionFailed(
                first_line(error), "report this with the input"
            ) from None
        found: Floats = logits.numpy()
        return found, tuple(present)

    def bind(self, buffers: Sequence[Floats]) -> "BoundPass":
        """Passes that read and write their keys and values in place.

        Args:
            buffers: [B, K, capacity, D], in a PromptState's order; of a graph with a
                packed cache.
        """
        binding = self._session.io_binding()
        values = [ort_value(buffer) for buffer in buffers]
        for name, made, value in zip(
            self._past_names, self._outputs[1:], values, strict=True
        ):
            binding.bind_ortvalue_input(name, value)
            binding.bind_ortvalue_output(made, value)
        logits = np.empty((len(buffers[0]), 1, self._vocab), np.float32)
        keep = ort_value(np.array([1], np.int64))
        binding.bind_ortvalue_input(_KEEP, keep)
        values += [keep, ort_value(logits)]
        binding.bind_ortvalue_output(_LOGITS, values[-1])
        return BoundPass(binding, logits, values)

    def forward_bound(
        self, bound: "BoundPass", embeds: Floats, mask: Ints, positions: Ints
    ) -> Floats:
        """Logits [B, 1, V] after the last row; new keys and values are in the buffers.

        Args:
            bound: Of this session.
            embeds: [B, T, H]; T is 1 where B is not.
            mask: [B, N], each row some ones, its length with the new rows, and zeros.
            positions: [B, T].

        Raises:
            SessionFailed: onnxruntime fails.
        """
        feed = {
            "inputs_embeds": ort_value(embeds),
            "attention_mask": ort_value(mask),
            "position_ids": ort_value(positions),
        }
        for name, value in feed.items():
            bound.binding.bind_ortvalue_input(name, value)
        try:
            self._session.run_with_iobinding(bound.binding)
        except Exception as error:  # onnxruntime raises bare classes of its own
            raise SessionFailed(
                first_line(error), "report this with the input"
            ) from None
        return bound.logits


@dataclass(frozen=True)
class BoundPass:
    """Where the passes of one request read and write.

    Attributes:
        binding: onnxruntime's.
        logits: [B, 1, V], written over by every pass.
        values: What the binding points to, kept alive.
    """

    binding: Any
    logits: Floats
    values: list[Any]
