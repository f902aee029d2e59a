"""One forward pass of a frozen base over a prompt: the reference for graph and device.

A prompt enters in one of two ways. `one_way`: its keys and values are a prefix, and
prompt rows never see the text. `full`: where the architecture's attention takes no
prefix (MPNet, DeBERTa), its rows are put in front of the text and see all of it. Either
way text positions are those of the text alone, and so are the prompt rows'.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from promptdial.export.masks import Masks, encoder_mask
from promptdial.export.prefix_attention import Prefix
from promptdial.runtime.manifest import Dims

ONE_WAY, FULL = "one_way", "full"

PromptState = Sequence[tuple[Tensor, ...]]
"""A prompt ready to run: of each layer (key, value) [1 or B, K, P, D], or the rows of
its convolution ([1 or B, H, conv_kernel],) (`one_way`); one tuple (rows,)
[1 or B, P, H] (`full`); or nothing."""


def levels_of(output: Any, *, every: bool) -> list[Tensor]:
    """Levels of a transformers output; the last is the model's own last one."""
    before = list(output.hidden_states[:-1]) if every else []
    return [*before, output.last_hidden_state]


def state_length(state: Sequence[tuple[Tensor | NDArray[np.float32], ...]]) -> int:
    """P, by keys where there are some: no convolution tells how many rows it saw."""
    pairs = [parts for parts in state if len(parts) == 2]
    return int((pairs or state)[0][0].shape[-2]) if state else 0


@dataclass(frozen=True)
class FrozenModel:
    """A frozen transformers model that takes prompts.

    Attributes:
        model: In eval mode; its attention is promptdial's where `attention` is one_way.
        dims: Its sizes.
        attention: `one_way` or `full`.
    """

    model: nn.Module
    dims: Dims
    attention: str

    def state_of(self, rows: Tensor) -> PromptState:
        """Prompt rows [P, H] ready to run: their keys and values, or themselves."""
        if self.attention == FULL:
            return [(rows[None],)]
        count = rows.shape[0]
        prefix = Prefix()
        self._run(
            rows[None],
            encoder_mask(self.model, rows.new_ones(1, count), count),
            self._positions(1, count, rows.device),
            torch.zeros(1, count, dtype=torch.long, device=rows.device),
            prefix,
        )
        return prefix.present

    def hidden(
        self, embeds: Tensor, mask: Tensor, type_ids: Tensor, state: PromptState
    ) -> Tensor:
        """Hidden rows [B, T, H] of texts over a prompt, after the last layer.

        Args:
            embeds: [B, T, H].
            mask: [B, T], 0 for padding.
            type_ids: [B, T] segments.
            state: The prompt; empty for none.
        """
        return self.levels(embeds, mask, type_ids, state, every=False)[-1]

    def levels(
        self,
        embeds: Tensor,
        mask: Tensor,
        type_ids: Tensor,
        state: PromptState,
        *,
        every: bool = True,
    ) -> list[Tensor]:
        """Hidden rows [B, T, H] of every level: what enters the first layer, then L.

        Args:
            embeds: [B, T, H].
            mask: [B, T], 0 for padding.
            type_ids: [B, T] segments.
            state: The prompt; empty for none.
            every: All L + 1 levels, or the last alone.
        """
        batch, length = embeds.shape[:2]
        count = state_length(state)
        seen = torch.cat([mask.new_ones(batch, count), mask], dim=1)
        positions = self._positions(batch, length, embeds.device)
        if self.attention == ONE_WAY:
            past = [(pair[0], pair[1]) for pair in state]
            wide = encoder_mask(self.model, seen, length)
            prefix = Prefix(past=past, keep=False)
            return self._run(embeds, wide, positions, type_ids, prefix, every)
        if state:
            embeds = torch.cat([state[0][0].expand(batch, -1, -1), embeds], dim=1)
            before = self._positions(batch, count, embeds.device)
            positions = torch.cat([before, positions], dim=1)
            type_ids = torch.cat([type_ids.new_zeros(batch, count), type_ids], dim=1)
        found = self._run(embeds, seen.long(), positions, type_ids, None, every)
        return [level[:, count:] for level in found]

    def _positions(self, batch: int, length: int, device: torch.device) -> Tensor:
        steps = torch.arange(length, device=device) + self.dims.position_offset
        return steps.expand(batch, length)

    def _run(
        self,
        embeds: Tensor,
        mask: Masks,
        positions: Tensor,
        type_ids: Tensor,
        prefix: Prefix | None,
        every: bool = False,
    ) -> list[Tensor]:
        extra: dict[str, Tensor | Prefix] = {}
        if self.dims.token_types:
            extra["token_type_ids"] = type_ids
        if prefix is not None:
            extra["prefix"] = prefix
        output = self.model(
            inputs_embeds=embeds,
            attention_mask=mask,
            position_ids=positions,
            output_hidden_states=every,
            **extra,
        )
        return levels_of(output, every=every)
