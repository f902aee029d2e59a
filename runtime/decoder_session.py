"""A decoder's graph: logits over the state of rows that came before.

The state (keys and values, rows of convolutions) stays in onnxruntime's own memory from
one pass to the next: as arrays of numpy it would be copied out and in again for every
token.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

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


class DecoderSession:
    """A decoder graph. Safe to share among threads."""

    takes_prefix = True

    def __init__(
        self,
        path: Path,
        dims: Dims,
        profile: Profile,
        threads: int | None = None,
        providers: Sequence[str] | None = None,
        cpu_features: Sequence[str] = (),
    ) -> None:
        """Load the graph.

        Args:
            path: The .onnx file.
            dims: Sizes it must have.
            profile: How to run.
            threads: Threads of one request; None for the profile's.
            providers: onnxruntime's execution providers; None for the CPU's.
            cpu_features: Those the graph is meant for, as its manifest says.

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
        if _KEEP not in options:
            raise BundleInvalid(f"{path.name} lacks input {_KEEP}", "export it again")
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
        self, embeds: Floats, mask: Ints, positions: Ints, past: KeyValues, keep: int
    ) -> tuple[Floats, KeyValues]:
        """Logits [B, `keep`, V] of the last rows, and every layer's state.

        Args:
            embeds: [B, T, H].
            mask: [B, N+T], 0 where a row must not be seen.
            positions: [B, T].
            past: State of the N rows before.
            keep: Rows that get logits; 0 for all T.

        Raises:
            SessionFailed: onnxruntime fails.
        """
        feed = {
            "inputs_embeds": ort_value(embeds),
            "attention_mask": ort_value(mask),
            "position_ids": ort_value(positions),
            _KEEP: ort_value(np.array([keep], np.int64)),
        }
        feed.update(zip(self._past_names, past, strict=True))
        try:
            logits, *present = self._session.run_with_ort_values(self._outputs, feed)
        except Exception as error:  # onnxruntime raises bare classes of its own
            raise SessionFailed(
                first_line(error), "report this with the input"
            ) from None
        found: Floats = logits.numpy()
        return found, tuple(present)
