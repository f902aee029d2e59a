"""An encoder's graph: hidden states over a prompt, whichever way the prompt enters."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from promptdial.runtime.graph_state import (
    empty_state,
    flat,
    level_names,
    past_names,
    past_shapes,
    present_names,
)
from promptdial.runtime.manifest import Dims
from promptdial.runtime.profiles import Profile
from promptdial.runtime.prompt_limits import PromptLimits
from promptdial.runtime.session import (
    Floats,
    Ints,
    PromptState,
    check_inputs,
    open_session,
    run_named,
)

_HIDDEN = "last_hidden_state"
_TYPES = "token_type_ids"


class EncoderSession:
    """An encoder graph with prefix inputs. Safe to share among threads."""

    limits: PromptLimits | None = None
    """Its scales are made from what it is given: any prompt is within them."""

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
        self._present_names = flat(present_names(dims))
        self._level_names = level_names(dims)
        found = {item.name for item in self._session.get_outputs()}
        self.gives_levels = found.issuperset(self._level_names)
        shapes = {item.name: item.shape for item in self._session.get_inputs()}
        self._takes_types = _TYPES in shapes
        self.takes_prefix = bool(set(self._past_names) & set(shapes))
        named = {name: shape for name, shape in shapes.items() if name != _TYPES}
        past = past_shapes(dims) if self.takes_prefix else {}
        check_inputs(path.name, named, dims, past)
        self.no_prompt: PromptState = empty_state(dims) if self.takes_prefix else ()
        self._first_position = dims.position_offset

    def hidden(
        self,
        embeds: Floats,
        mask: Ints,
        positions: Ints,
        types: Ints,
        state: PromptState,
    ) -> Floats:
        """Hidden states [B, T, H] after the last layer; arguments as `levels`.

        Raises:
            SessionFailed: onnxruntime fails.
        """
        return self._hidden([_HIDDEN], embeds, mask, positions, types, state)[0]

    def levels(
        self,
        embeds: Floats,
        mask: Ints,
        positions: Ints,
        types: Ints,
        state: PromptState,
    ) -> list[Floats]:
        """Hidden states [B, T, H] that enter each of L layers, and of the last.

        Args:
            embeds: [B, T, H].
            mask: [B, P+T], 0 where a key must not be seen.
            positions: [B, T].
            types: [B, T] segments.
            state: The prompt.

        Raises:
            SessionFailed: onnxruntime fails.
        """
        names = [*self._level_names, _HIDDEN]
        return self._hidden(names, embeds, mask, positions, types, state)

    def _hidden(
        self,
        names: list[str],
        embeds: Floats,
        mask: Ints,
        positions: Ints,
        types: Ints,
        state: PromptState,
    ) -> list[Floats]:
        length = embeds.shape[1]
        if state and not self.takes_prefix:
            embeds, positions, types = self._in_front(
                state[0], embeds, positions, types
            )
        feed = self._feed(embeds, mask, positions, types, state)
        # Naming the outputs keeps the presents from being copied out.
        return [found[:, -length:] for found in run_named(self._session, names, feed)]

    def state_of(self, rows: Floats) -> PromptState:
        """Prompt rows [P, H] ready to run: at most one forward pass of P rows.

        Raises:
            SessionFailed: onnxruntime fails.
        """
        if not self.takes_prefix:
            return (rows[None],)
        length = len(rows)
        feed = self._feed(
            rows[None],
            np.ones((1, length), np.int64),
            self._positions(length),
            np.zeros((1, length), np.int64),
            self.no_prompt,
        )
        return tuple(run_named(self._session, self._present_names, feed))

    def _positions(self, length: int) -> Ints:
        """Positions [1, T] of a text, and just so of a prompt."""
        first = self._first_position
        return np.arange(first, first + length, dtype=np.int64)[None]

    def _in_front(
        self, rows: Floats, embeds: Floats, positions: Ints, types: Ints
    ) -> tuple[Floats, Ints, Ints]:
        """Embeddings, positions and segments of prompt rows and text, [B, P+T, ...]."""
        batch, prompt = len(embeds), rows.shape[1]
        front = np.broadcast_to(rows, (batch, *rows.shape[1:]))
        before = np.repeat(self._positions(prompt), batch, 0)
        return (
            np.concatenate([front, embeds], axis=1),
            np.concatenate([before, positions], axis=1),
            np.concatenate([np.zeros_like(before), types], axis=1),
        )

    def _feed(
        self,
        embeds: Floats,
        mask: Ints,
        positions: Ints,
        types: Ints,
        state: PromptState,
    ) -> dict[str, NDArray[Any]]:
        feed: dict[str, NDArray[Any]] = {
            "inputs_embeds": embeds,
            "attention_mask": mask,
            "position_ids": positions,
        }
        if self._takes_types:
            feed[_TYPES] = types
        if self.takes_prefix:
            feed.update(zip(self._past_names, state, strict=True))
        return feed
