"""Gradient checkpointing: a layer's activations are computed again, not kept.

Source: Chen et al. 2016 (arXiv:1604.06174). transformers has it too, for models in
training mode only, and there it takes kept keys and values away from the layers. Here
it goes in either mode, and every layer gets its part of the prompt both times.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from promptdial.export.prefix_attention import Prefix
from promptdial.prompts.errors import UsageError


@contextmanager
def recomputed(model: nn.Module) -> Iterator[None]:
    """Passes within it keep only every layer's input for the gradients.

    The gradients may be taken later, outside of it. Not to be nested.

    Args:
        model: A transformers model whose layers may be checkpointed.
    """
    layers = _layers(model)
    for layer in layers:
        layer.forward = partial(_forget, layer.forward, layer.training)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward  # the class's own comes to light again


def require_layers(model: nn.Module) -> None:
    """Refuse a model of which nothing would be computed again.

    Raises:
        UsageError: transformers marks none of its layers (MPNet, ALBERT).
    """
    if not _layers(model):
        raise UsageError(
            f"gradient_checkpointing: {type(model).__name__} has no layers for it",
            "leave it out, or lower batch_size",
        )


def _layers(model: nn.Module) -> list[nn.Module]:
    modules = model.modules()
    return [item for item in modules if isinstance(item, GradientCheckpointingLayer)]


def _forget(
    forward: Callable[..., Any],
    dropout: bool,
    *args: Any,
    prefix: Prefix | None = None,
    **named: Any,
) -> Any:
    """A layer's pass whose activations are computed again in the backward pass.

    With dropout, the second pass leaves out what the first one did. Arguments but the
    prefix are the architecture's own and go through as they are.
    """
    if not torch.is_grad_enabled():
        named |= {} if prefix is None else {"prefix": prefix}
        return forward(*args, **named)
    if prefix is None:
        return _checkpointed(partial(forward, **named), args, dropout)
    # Not the prefix itself: it counts layers, and the second pass must begin where the
    # first one did. Nor must the graph hold what it has collected of other layers.
    past, keep = prefix.past[prefix.layers :], prefix.keep

    def run(*inputs: Any) -> tuple[Any, Prefix]:
        own = Prefix(past=past, keep=keep)
        return forward(*inputs, prefix=own, **named), own

    output, own = _checkpointed(run, args, dropout)
    prefix.add(own)
    return output


def _checkpointed(run: Callable[..., Any], args: tuple[Any, ...], dropout: bool) -> Any:
    # A frozen base draws nothing at random, and on a GPU every layer would wait for
    # the random state to be read.
    return checkpoint(run, *args, use_reentrant=False, preserve_rng_state=dropout)
