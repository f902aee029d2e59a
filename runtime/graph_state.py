"""The state that a graph carries from pass to pass: names, shapes, and the empty one.

A layer of attention carries its keys and values, which grow by a row for each row that
is run. A short convolution (LFM2) carries the rows that its next output still sees, the
last ones, whatever came before. Both come in the order of the layers.
"""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from promptdial.runtime.manifest import Dims

Value = TypeVar("Value")


def past_names(dims: Dims) -> list[tuple[str, ...]]:
    """Input names of every layer's state: (key, value), or (convolution,)."""
    return _names("past_key_values", "past_conv", dims)


def present_names(dims: Dims) -> list[tuple[str, ...]]:
    """Output names of every layer's state: (key, value), or (convolution,)."""
    return _names("present", "present_conv", dims)


def level_names(dims: Dims) -> list[str]:
    """Output names of what enters each of the L layers (encoders)."""
    return [f"hidden_states.{layer}" for layer in range(dims.layers)]


def flat(names: Sequence[tuple[str, ...]]) -> list[str]:
    """The names of all layers in one list, in the order of a PromptState."""
    return [name for layer in names for name in layer]


def by_layer(values: Sequence[Value], dims: Dims) -> list[tuple[Value, ...]]:
    """A graph's state, in its order, as one tuple a layer."""
    rest = iter(values)
    return [tuple([next(rest) for _ in layer]) for layer in past_names(dims)]


def past_shapes(dims: Dims) -> dict[str, tuple[int | None, ...]]:
    """Shapes of the inputs for state, by name; None where a size is free."""
    return _shapes(past_names(dims), dims)


def present_shapes(dims: Dims) -> dict[str, tuple[int | None, ...]]:
    """Shapes of the outputs for state, by name; None where a size is free."""
    return _shapes(present_names(dims), dims)


def empty_state(dims: Dims) -> tuple[NDArray[np.float32], ...]:
    """What stands before the first row, for one text.

    Keys and values [1, K, 0, D]; a convolution's rows [1, H, conv_kernel], all zero.
    Layers share the arrays.
    """
    pair = np.zeros((1, dims.kv_heads, 0, dims.head_dim), np.float32)
    rows = np.zeros((1, dims.hidden, dims.conv_kernel), np.float32)
    return tuple(
        [pair if len(layer) == 2 else rows for layer in past_names(dims) for _ in layer]
    )


def _shapes(
    names: Sequence[tuple[str, ...]], dims: Dims
) -> dict[str, tuple[int | None, ...]]:
    pair = (None, dims.kv_heads, None, dims.head_dim)
    rows = (None, dims.hidden, dims.conv_kernel)
    return {
        name: pair if len(layer) == 2 else rows for layer in names for name in layer
    }


def _names(pair: str, convolution: str, dims: Dims) -> list[tuple[str, ...]]:
    return [
        (f"{convolution}.{layer}",)
        if layer in dims.conv_layers
        else (f"{pair}.{layer}.key", f"{pair}.{layer}.value")
        for layer in range(dims.layers)
    ]
