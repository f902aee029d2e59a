"""Prefix attention: keys and values put in front of every layer's own, in any model.

transformers looks its attention function up by name (`AttentionInterface`), so a
prefix needs no fork of a model: `prefix_attention` is registered once under
`ATTENTION`, and `model(..., prefix=prefix)` hands a `Prefix` down to it.
Sources: prefix tuning, Li & Liang 2021 (arXiv:2101.00190); P-tuning v2, Liu et al.
2021 (arXiv:2110.07602).
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

ATTENTION = "promptdial_prefix"
LAYER_KINDS = ("full_attention", "sliding_attention")
_GLOBAL, _LOCAL = LAYER_KINDS

LayerKV = tuple[Tensor, Tensor]


@dataclass
class Prefix:
    """Keys and values to put in front, and those that came out: of one forward pass.

    Attributes:
        past: One (key, value) pair a layer, each [1 or B, K, P, D]; empty for none.
        present: Filled by the forward pass: one pair a layer, each [B, K, P+T, D].
    """

    past: list[LayerKV] = field(default_factory=list)
    present: list[LayerKV] = field(default_factory=list)

    def extend(self, key: Tensor, value: Tensor) -> LayerKV:
        """Put the next layer's prefix in front of its own [B, K, T, D] keys, values.

        Layers come in the order in which they run: not every architecture numbers its
        attention modules (DistilBERT), and some run one module many times (ALBERT).
        """
        if self.past:
            past_key, past_value = self.past[len(self.present)]
            batch = key.shape[0]
            key = torch.cat([past_key.expand(batch, -1, -1, -1), key], dim=2)
            value = torch.cat([past_value.expand(batch, -1, -1, -1), value], dim=2)
        self.present.append((key, value))
        return key, value


def prefix_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    prefix: Prefix | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attend over the prefix and the text.

    Args:
        module: The attention layer.
        query: [B, K, T, D].
        key: [B, K, T, D].
        value: [B, K, T, D].
        attention_mask: bool, broadcastable to [B, K, T, P+T], or None for all.
        scaling: Factor on the scores; None for 1/sqrt(D).
        dropout: Probability on the attention weights.
        prefix: What to put in front; None is plain attention.

    Returns:
        The mixed values [B, T, K, D], and None for the weights.
    """
    if prefix is not None:
        key, value = prefix.extend(key, value)
    mixed = nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=attention_mask, dropout_p=dropout, scale=scaling
    )
    return mixed.transpose(1, 2), None


AttentionInterface.register(ATTENTION, prefix_attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)


def model_mask(
    model: nn.Module, attention_mask: Tensor, text_length: int
) -> Tensor | dict[str, Tensor]:
    """The mask that a model's layers take: one, or one for each kind of layer.

    Layers of local attention (ModernBERT) see the text rows in their window, and the
    whole prefix: a prompt that only the first words saw would steer nothing else.

    Args:
        model: For its configuration.
        attention_mask: [B, P+T], non-zero where a key may be seen.
        text_length: T.
    """
    everywhere = text_mask(attention_mask, text_length)
    kinds = set(getattr(model.config, "layer_types", None) or [_GLOBAL])
    if kinds == {_GLOBAL}:
        return everywhere
    config: Any = model.config
    near = _near(attention_mask, text_length, int(config.sliding_window))
    masks = {_GLOBAL: everywhere, _LOCAL: everywhere & near}
    return {kind: masks[kind] for kind in sorted(kinds)}


def text_mask(attention_mask: Tensor, text_length: int) -> Tensor:
    """Mask [B, 1, T, P+T] that lets every text row see what `attention_mask` marks.

    Args:
        attention_mask: [B, P+T], non-zero where a key may be seen.
        text_length: T.
    """
    batch, width = attention_mask.shape
    wide = attention_mask.bool()[:, None, None, :]
    return wide.expand(batch, 1, text_length, width)


def _near(attention_mask: Tensor, text_length: int, window: int) -> Tensor:
    """[T, P+T], True where a text row is at most `window` away, and on the prefix."""
    steps = torch.arange(text_length, device=attention_mask.device)
    local = (steps[:, None] - steps[None, :]).abs() <= window
    prompt = attention_mask.shape[1] - text_length
    return torch.cat([local.new_ones(text_length, prompt), local], dim=1)
