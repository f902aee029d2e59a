"""The state of short convolutions, in front of a layer's own rows (LFM2).

transformers hands the rows that a convolution reads to the `cache` of the call, and
convolves what comes back. `ConvCache` stands in for that cache: as with `Prefix` and
keys and values, no model is forked. Source: LFM2, Liquid AI 2025 (arXiv:2511.23404).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from promptdial.export.masks import CONV


def conv_layers(config: Any) -> tuple[int, ...]:
    """Indices of a model's convolution layers, by its configuration."""
    kinds = getattr(config, "layer_types", None) or ()
    return tuple(layer for layer, kind in enumerate(kinds) if kind == CONV)


@dataclass
class ConvCache:
    """State to put in front, and that which came out: of one forward pass.

    Attributes:
        mask: [B, T] of the pass's rows: those of 0 count as zeros. Here and not in the
            model, which would multiply what the norm gives: the same (of a convolution
            without bias), but then no factor of INT8 could go into that norm.
        past: By layer, [1 or B, H, conv_kernel]; empty for what stands before the first
            row, which is zeros.
        present: Filled by the forward pass: by layer, [B, H, conv_kernel].
    """

    mask: Tensor
    past: Mapping[int, Tensor] = field(default_factory=dict)
    present: dict[int, Tensor] = field(default_factory=dict)

    def get_conv_state(self, layer_idx: int, state_idx: int = 0) -> None:
        """None: the layer then asks `update_conv_state`, however many rows there are.

        Its short cut for one row would write into the state that it was given.
        """

    def update_conv_state(
        self, rows: Tensor, layer_idx: int, conv_kernel_size: int
    ) -> Tensor:
        """The rows [B, H, conv_kernel+T] to convolve: the state, then those of a pass.

        Args:
            rows: [B, H, T].
            layer_idx: The layer's index.
            conv_kernel_size: Rows that an output sees, and a state holds.
        """
        batch, width, _ = rows.shape
        rows = rows * self.mask[:, None, :].to(rows.dtype)
        past = self.past.get(layer_idx)
        if past is None:
            past = rows.new_zeros(batch, width, conv_kernel_size)
        together = torch.cat([past.expand(batch, -1, -1), rows], dim=2)
        self.present[layer_idx] = together[:, :, -conv_kernel_size:]
        return together

    def update(
        self, keys: Tensor, values: Tensor, layer_idx: int, **_: Any
    ) -> tuple[Tensor, Tensor]:
        """Keys and values as they are: what stands in front of them is `Prefix`'s."""
        return keys, values
