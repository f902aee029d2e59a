"""One forward pass of a frozen decoder over what came before: the reference.

A prompt's rows come first and are seen by all that follows; positions count them.
Their keys and values depend on nothing after them, so they are computed once and kept:
exactly what the model gives for prompt and text in one sequence.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from promptdial.export.forward import PromptState, state_length
from promptdial.export.masks import decoder_mask
from promptdial.export.prefix_attention import LayerKV, Prefix


@dataclass(frozen=True)
class FrozenDecoder:
    """A frozen causal model of transformers whose attention is promptdial's."""

    model: nn.Module

    def state_of(self, rows: Tensor) -> PromptState:
        """Keys and values [1, K, P, D] of prompt rows [P, H], one pair a layer."""
        return self.run(rows[None], rows.new_ones(1, len(rows)), [])[1]

    def logits(self, embeds: Tensor, mask: Tensor, state: PromptState) -> Tensor:
        """Logits [B, T, V] of texts over a prompt.

        Args:
            embeds: [B, T, H].
            mask: [B, T], 0 for padding, which stands on the right.
            state: The prompt; empty for none.
        """
        seen = mask.new_ones(len(embeds), state_length(state))
        prefix = Prefix(past=[(pair[0], pair[1]) for pair in state], keep=False)
        return self._run(embeds, torch.cat([seen, mask], dim=1), prefix)

    def run(
        self, embeds: Tensor, attention_mask: Tensor, past: PromptState
    ) -> tuple[Tensor, list[LayerKV]]:
        """Logits [B, T, V], and every layer's keys and values [B, K, P+T, D].

        Args:
            embeds: [B, T, H].
            attention_mask: [B, P+T], 0 where a key must not be seen.
            past: Keys and values of the P rows before, each [1 or B, K, P, D].
        """
        prefix = Prefix(past=[(pair[0], pair[1]) for pair in past])
        return self._run(embeds, attention_mask, prefix), prefix.present

    def _run(self, embeds: Tensor, attention_mask: Tensor, prefix: Prefix) -> Tensor:
        batch, length = embeds.shape[:2]
        start = state_length(prefix.past)
        steps = torch.arange(start, start + length, device=embeds.device)
        positions = steps.expand(batch, length)
        output = self.model(
            inputs_embeds=embeds,
            attention_mask=decoder_mask(self.model, attention_mask, positions),
            position_ids=positions,
            prefix=prefix,
            use_cache=False,
        )
        logits = output.logits
        assert isinstance(logits, Tensor)
        return logits
