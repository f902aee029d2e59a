"""Attention masks over a prefix and a text, for layers of every kind.

Encoders: every text row sees the prefix and the text; layers of local attention
(ModernBERT) see the text rows in their window, and the whole prefix: a prompt that only
the first words saw would steer nothing else.

Decoders: a row sees itself and what comes before it, the prefix first; sliding windows
(Mistral, Gemma) count prefix rows like any others, as transformers does. Convolutions
(LFM2) have no mask here: promptdial.export.conv_state keeps padding out of theirs.
"""

from typing import Any

import torch
from torch import Tensor, nn

LAYER_KINDS = ("full_attention", "sliding_attention", "conv")
_GLOBAL, _LOCAL, CONV = LAYER_KINDS

Masks = Tensor | dict[str, Tensor] | dict[str, Tensor | None]
"""What a model takes as `attention_mask`: one, or one for each kind of layer."""


def encoder_mask(model: nn.Module, attention_mask: Tensor, text_length: int) -> Masks:
    """The mask of an encoder's layers.

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


def decoder_mask(
    model: nn.Module, attention_mask: Tensor, position_ids: Tensor
) -> Masks:
    """The mask of a decoder's layers: as `encoder_mask`, and nothing that comes later.

    Windows count positions, not rows: those of several continuations of one text stand
    behind one another and have the same positions.

    Args:
        model: For its configuration.
        attention_mask: [B, P+T], non-zero where a key may be seen.
        position_ids: [B, T]; the P keys before have positions 0 to P-1.
    """
    config: Any = model.config
    text_length = position_ids.shape[1]
    width = attention_mask.shape[1]
    keys = torch.arange(width, device=attention_mask.device)[None, :]
    rows = torch.arange(text_length, device=attention_mask.device)[:, None]
    rows = rows + (width - text_length)
    causal = text_mask(attention_mask, text_length) & (keys <= rows)
    window = sliding_window(config)
    kinds = set(getattr(config, "layer_types", None) or [_LOCAL])
    if CONV in kinds:
        return {_GLOBAL: causal, CONV: None}
    if window is None:
        return causal
    before = torch.arange(width - text_length, device=attention_mask.device)
    before = before[None, :].expand(position_ids.shape[0], -1)
    places = torch.cat([before, position_ids], dim=1)
    near = places[:, None, None, :] > position_ids[:, None, :, None] - window
    masks = {_GLOBAL: causal, _LOCAL: causal & near}
    if len(kinds) == 1:
        return masks[kinds.pop()]
    return {kind: masks[kind] for kind in sorted(kinds)}


def also(masks: Masks, visible: Tensor) -> Masks:
    """Masks that a further mask [1, 1, T, P+T] holds for too."""
    if isinstance(masks, Tensor):
        return masks & visible
    return {
        kind: None if mask is None else mask & visible for kind, mask in masks.items()
    }


def sliding_window(config: Any) -> int | None:
    """Rows that a layer of local attention sees, itself included; None without any."""
    window = getattr(config, "sliding_window", None)
    if window is None or not getattr(config, "use_sliding_window", True):
        return None
    kinds = getattr(config, "layer_types", None)
    return None if kinds and _LOCAL not in kinds else int(window)


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
