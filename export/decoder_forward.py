"""One forward pass of a frozen decoder over what came before: the reference.

A prompt's rows come first and are seen by all that follows; positions count them.
What they leave in each layer (keys and values, the last rows of a convolution) depends
on nothing after them, so it is computed once and kept: exactly what the model gives for
prompt and text in one sequence.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from promptdial.export.conv_state import ConvCache, conv_layers
from promptdial.export.forward import PromptState, state_length
from promptdial.export.masks import also, decoder_mask
from promptdial.export.prefix_attention import Prefix

Present = list[tuple[Tensor, ...]]
"""What a pass leaves in each layer: a PromptState of all rows until now."""


def decoder_pass(
    model: nn.Module,
    embeds: Tensor,
    attention_mask: Tensor,
    positions: Tensor,
    past: PromptState,
    *,
    visible: Tensor | None = None,
    keep: bool = True,
) -> tuple[Tensor, Present]:
    """Logits [B, T, V], and every layer's state after the pass.

    Args:
        model: With promptdial's attention.
        embeds: [B, T, H].
        attention_mask: [B, P+T], 0 where a row must not be seen.
        positions: [B, T].
        past: State of the P rows before, of 1 or B texts; empty for none.
        visible: [1, 1, T, P+T], false where a row must not see a key before it; None
            where it sees all.
        keep: Whether the state is wanted; else it comes empty, and a long text's keys
            and values are let go layer by layer.
    """
    length = embeds.shape[1]
    layers = conv_layers(model.config)
    pairs = [(parts[0], parts[1]) for parts in past if len(parts) == 2]
    prefix = Prefix(past=pairs, keep=keep)
    extra: dict[str, ConvCache] = {}
    if layers:
        rows = {layer: past[layer][0] for layer in layers} if past else {}
        extra["cache"] = ConvCache(attention_mask[:, -length:], rows)
    masks = decoder_mask(model, attention_mask, positions)
    output = model(
        inputs_embeds=embeds,
        attention_mask=masks if visible is None else also(masks, visible),
        position_ids=positions,
        prefix=prefix,
        use_cache=False,
        **extra,
    )
    logits = output.logits
    assert isinstance(logits, Tensor)
    present: Present = list(prefix.present)
    if keep:
        for layer in layers:  # from the first on: each then lands at its own place
            present.insert(layer, (extra["cache"].present[layer],))
    return logits, present


@dataclass(frozen=True)
class FrozenDecoder:
    """A frozen causal model of transformers whose attention is promptdial's."""

    model: nn.Module

    def state_of(self, rows: Tensor) -> PromptState:
        """What prompt rows [P, H] leave in each layer."""
        return self.run(rows[None], rows.new_ones(1, len(rows)), [])[1]

    def logits(self, embeds: Tensor, mask: Tensor, state: PromptState) -> Tensor:
        """Logits [B, T, V] of texts over a prompt.

        Args:
            embeds: [B, T, H].
            mask: [B, T], 0 for padding, which stands on the right.
            state: The prompt; empty for none.
        """
        seen = mask.new_ones(len(embeds), state_length(state))
        seen = torch.cat([seen, mask], dim=1)
        positions = _positions(embeds, state)
        return decoder_pass(self.model, embeds, seen, positions, state, keep=False)[0]

    def run(
        self, embeds: Tensor, attention_mask: Tensor, past: PromptState
    ) -> tuple[Tensor, Present]:
        """Logits [B, T, V], and every layer's state, of rows numbered from P on.

        Args:
            embeds: [B, T, H].
            attention_mask: [B, P+T], 0 where a row must not be seen.
            past: State of the P rows before.
        """
        positions = _positions(embeds, past)
        return decoder_pass(self.model, embeds, attention_mask, positions, past)


def _positions(embeds: Tensor, past: PromptState) -> Tensor:
    """[B, T], numbered from P on."""
    batch, length = embeds.shape[:2]
    start = state_length(past)
    steps = torch.arange(start, start + length, device=embeds.device)
    return steps.expand(batch, length)
