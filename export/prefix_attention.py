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

from promptdial.export.errors import Unsupported

ATTENTION = "promptdial_prefix"

LayerKV = tuple[Tensor, Tensor]


@dataclass
class Prefix:
    """Keys and values to put in front, and those that came out: of one forward pass.

    Attributes:
        past: One (key, value) pair a layer, each [1 or B, K, P, D]; empty for none.
        present: Filled by the forward pass: one pair a layer, each [B, K, P+T, D].
        keep: Whether `present` is wanted; else it stays empty, and a long text's keys
            and values are let go layer by layer.
        layers: Attention layers that have run.
        bias: [1, N, T, P+T], what relative positions add to scores (T5), of the layer
            that has them; None before it, and in models without them.
    """

    past: list[LayerKV] = field(default_factory=list)
    present: list[LayerKV] = field(default_factory=list)
    keep: bool = True
    layers: int = 0
    bias: Tensor | None = None

    def extend(self, key: Tensor, value: Tensor) -> LayerKV:
        """Put the next layer's prefix in front of its own [B, K, T, D] keys, values.

        Layers come in the order in which they run: not every architecture numbers its
        attention modules (DistilBERT), and some run one module many times (ALBERT).
        """
        if self.past:
            past_key, past_value = self.past[self.layers]
            batch = key.shape[0]
            if past_key.shape[0] != batch:
                past_key = past_key.expand(batch, -1, -1, -1)
                past_value = past_value.expand(batch, -1, -1, -1)
            key = torch.cat([past_key, key], dim=2)
            value = torch.cat([past_value, value], dim=2)
        self.layers += 1
        if self.keep:
            self.present.append((key, value))
        return key, value

    def add(self, other: "Prefix") -> None:
        """Count what ran on another prefix, which had the rest of this one's `past`."""
        self.layers += other.layers
        self.present += other.present


def prefix_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    prefix: Prefix | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    position_bias: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attend over the prefix and the text.

    Args:
        module: The attention layer.
        query: [B, N, T, D], N being K or a multiple of it.
        key: [B, K, T, D].
        value: [B, K, T, D].
        attention_mask: bool, broadcastable to [B, K, T, P+T], or None for all.
        scaling: Factor on the scores; None for 1/sqrt(D).
        dropout: Probability on the attention weights.
        prefix: What to put in front; None is plain attention.
        softcap: Scores are bent to within this magnitude (Gemma 2), dropout left out.
        s_aux: Sinks, which are not built: a model that has some cannot be used.
        position_bias: [1, N, T, T], what relative positions add to the scores (T5).

    Returns:
        The mixed values [B, T, N, D], and None for the weights.

    Raises:
        Unsupported: The model has attention sinks, or relative positions that are not
            made as T5's are.
    """
    if s_aux is not None:
        raise Unsupported(
            f"{type(module).__name__} has attention sinks", "give another model"
        )
    if prefix is not None:
        key, value = prefix.extend(key, value)
    if position_bias is not None:
        bias = _with_prefix(module, position_bias, key.shape[2], prefix)
        attention_mask = _masked_bias(bias, attention_mask)
    if softcap is not None:
        mixed = _softcapped(query, key, value, attention_mask, scaling, softcap)
        return mixed.transpose(1, 2), None
    mixed = nn.functional.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=attention_mask,
        dropout_p=dropout,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return mixed.transpose(1, 2), None


def _with_prefix(module: Any, bias: Tensor, keys: int, prefix: Prefix | None) -> Tensor:
    """The bias [1, N, T, P+T] of prefix and text, in one sequence in this order.

    Made by the first layer, whose table the others share; a layer that has its own
    table (umT5) makes its own.

    Raises:
        Unsupported: No layer has made one: the model has them from elsewhere.
    """
    rows = bias.shape[2]
    if prefix is None:
        return bias
    if getattr(module, "has_relative_attention_bias", False):
        found = module.compute_bias(
            rows, keys, device=bias.device, past_seen_tokens=keys - rows
        )
        prefix.bias = found.to(bias.dtype)
    if prefix.bias is None:
        raise Unsupported(
            f"{type(module).__name__} has relative positions of an unknown kind",
            "give another model",
        )
    return prefix.bias


def _masked_bias(bias: Tensor, mask: Tensor | None) -> Tensor:
    """The bias where a key may be seen, and next to nothing where not."""
    if mask is None:
        return bias
    return torch.where(mask, bias, torch.finfo(bias.dtype).min)


def _softcapped(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float | None,
    softcap: float,
) -> Tensor:
    """[B, N, T, D] where scores are `softcap * tanh(scores / softcap)`.

    Source: Gemma 2 (arXiv:2408.00118), section 2.
    """
    groups = query.shape[1] // key.shape[1]
    key = key.repeat_interleave(groups, dim=1)
    value = value.repeat_interleave(groups, dim=1)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = softcap * torch.tanh(query @ key.transpose(2, 3) * scale / softcap)
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    return scores.softmax(-1) @ value


def _masks(*args: Any, **kwargs: Any) -> Tensor | None:
    """The library's own masks; never None for a causal one.

    Its SDPA path may leave a causal mask out and trust that the attention function
    knows; ours would then let every row see what comes later.
    """
    kwargs["allow_is_causal_skip"] = False
    mask: Tensor | None = sdpa_mask(*args, **kwargs)
    return mask


AttentionInterface.register(ATTENTION, prefix_attention)
AttentionMaskInterface.register(ATTENTION, _masks)
