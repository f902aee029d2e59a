"""What a model shows when a few rows run through it: sizes, positions, layers."""

import inspect
from typing import Any

import torch
from optimum.utils import NormalizedConfigManager, NormalizedTextConfig
from torch import nn

from promptdial.export.conv_state import conv_layers
from promptdial.export.decoder_forward import FrozenDecoder
from promptdial.export.errors import NoPrefix, Unsupported
from promptdial.export.masks import LAYER_KINDS
from promptdial.export.prefix_attention import Prefix
from promptdial.runtime.manifest import ENCODER, Dims

_PROBE_ROWS = 3
_RELATIVE = "relative_attention_num_buckets"
"""In the configurations of models that know positions by distance (T5)."""
_RELATIVE_WINDOW = 512
"""Tokens that T5 was trained on (arXiv:1910.10683, section 3.1.2): nothing in its
weights ends there, and no configuration since T5 1.1 says it.
"""
_MAX_OWN_DIFF = 1e-3  # of the largest value: another function differs by far more


def input_embeddings(model: nn.Module) -> torch.Tensor:
    """The token table [V, H] of a transformers model, as `inputs_embeds` takes it.

    Gemma 3 scales its rows on their way out of the table; others read them as they are.
    """
    module = model.get_input_embeddings()  # type: ignore[operator]
    weight = module.weight
    assert isinstance(weight, torch.Tensor)
    if type(module) is nn.Embedding:
        return weight.detach()
    with torch.no_grad():
        rows = module(torch.arange(len(weight), device=weight.device))
    assert isinstance(rows, torch.Tensor)
    return rows


def ties_head(model: nn.Module) -> bool:
    """Whether a transformers model's head has the token table as its weights."""
    found: Any = model
    head = found.get_output_embeddings()
    return head is not None and head.weight is found.get_input_embeddings().weight


def require_encoder(model: nn.Module, family: str) -> None:
    """Refuse a decoder whose attention cannot be reached.

    Raises:
        NoPrefix: It is one.
    """
    if family != ENCODER:
        raise NoPrefix(
            f"{type(model).__name__} has an attention of its own that takes no prefix",
            "give a model of another architecture (Llama, Qwen, GPT-2, ...)",
        )


def require_own_function(model: nn.Module) -> None:
    """Check that promptdial's attention gives what the model's own code gives.

    Architectures hand arguments of their own to the attention function: one that is
    not known here would be dropped without a word. The model runs once with either
    attention, and has its own one back at the end.

    Raises:
        Unsupported: The answers for a few rows differ, or the attention of a loaded
            model cannot be changed.
    """
    switched: Any = model
    ours = switched.config._attn_implementation
    found, _ = _probe_answers(model)
    switched.set_attn_implementation("eager")
    try:
        # transformers only warns where it cannot switch: the layers that still come by
        # promptdial's attention tell.
        wanted, still = _probe_answers(model)
    finally:
        switched.set_attn_implementation(ours)
    if still or not _alike(found, wanted):
        raise Unsupported(
            f"{type(model).__name__} computes its attention in an unknown way",
            "give a model of another architecture",
        )


def _probe_answers(model: nn.Module) -> tuple[torch.Tensor, int]:
    """Logits [1, 3, V] of a few rows, of an encoder hidden rows [1, 3, H].

    And how many layers reached promptdial's attention.
    """
    prefix = Prefix(keep=False)
    with torch.no_grad():
        output = model(inputs_embeds=_probe_rows(model), prefix=prefix, use_cache=False)
    # Either is what transformers calls it, and comes first.
    answers = output[0]
    assert isinstance(answers, torch.Tensor)
    return answers, prefix.layers


def _alike(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    limit = _MAX_OWN_DIFF * max(1.0, float(wanted.abs().max()))
    return float((found - wanted).abs().max()) <= limit


def dims_of(model: nn.Module, family: str) -> Dims:
    """Sizes of a model.

    Raises:
        Unsupported: It takes no positions, or numbers them in an unknown way.
    """
    config: Any = model.config
    try:
        kind = NormalizedConfigManager.get_normalized_config_class(config.model_type)
    except KeyError:
        kind = NormalizedTextConfig
    sizes = kind(config)
    hidden, heads = int(sizes.hidden_size), int(sizes.num_attention_heads)
    vocab, width = input_embeddings(model).shape
    takes = inspect.signature(model.forward).parameters
    relative = "position_ids" not in takes
    if relative and not hasattr(config, _RELATIVE):
        raise Unsupported(f"{type(model).__name__} takes no position_ids")
    types = int(getattr(config, "type_vocab_size", 0) or 0)
    # A decoder numbers from 0, whatever it adds inside (OPT: 2).
    numbered = family == ENCODER and not relative
    offset = _position_offset(model) if numbered else 0
    convolutions = conv_layers(config)
    return Dims(
        layers=int(sizes.num_layers),
        hidden=hidden,
        embedding=int(width),
        heads=heads,
        kv_heads=int(getattr(config, "num_key_value_heads", None) or heads),
        head_dim=int(getattr(config, "head_dim", None) or hidden // heads),
        vocab=int(vocab),
        max_positions=(_RELATIVE_WINDOW if relative else _positions(model)) - offset,
        position_offset=offset,
        token_types=types if types > 1 and "token_type_ids" in takes else 0,
        conv_layers=convolutions,
        conv_kernel=int(config.conv_L_cache) if convolutions else 0,
    )


def _positions(model: nn.Module) -> int:
    """Positions that a sequence may have.

    LongRoPE (Phi 3 with 128k, Phi 4 mini) turns every key by other factors as soon as a
    sequence is longer than the original window: kept keys would be of the wrong kind,
    so that window is the limit here.

    Raises:
        Unsupported: The configuration names none, or its keys change with the length.
    """
    config: Any = model.config
    window = getattr(config, "max_position_embeddings", None)
    if not isinstance(window, int):
        raise Unsupported(
            f"{type(model).__name__} names no max_position_embeddings",
            "give a model of text alone",
        )
    rope = getattr(config, "rope_parameters", None) or {}
    kind = rope.get("rope_type", "default")
    if kind == "dynamic":
        raise Unsupported(
            f"{type(model).__name__} has rope_type dynamic: its keys change with the "
            "length of a sequence, and kept ones would be wrong",
            "give a model with another rope_type",
        )
    if kind == "longrope":
        name = "original_max_position_embeddings"
        original = rope.get(name) or getattr(config, name, None) or window
        return min(window, int(original))
    return window


def _position_offset(model: nn.Module) -> int:
    """The first text token's position: the one that gives the model's own answer."""
    pad = getattr(model.config, "pad_token_id", None)
    inputs = _probe_rows(model)
    steps = torch.arange(inputs.shape[1], device=inputs.device)[None]
    with torch.no_grad():
        own = model(inputs_embeds=inputs).last_hidden_state
        for offset in (0, int(pad) + 1 if isinstance(pad, int) else 0):
            shifted = model(inputs_embeds=inputs, position_ids=steps + offset)
            if torch.allclose(own, shifted.last_hidden_state, atol=1e-5):
                return offset
    raise Unsupported(f"{type(model).__name__} numbers its positions in an unknown way")


def require_known_layers(model: nn.Module) -> None:
    """Refuse layers of a kind that has no mask here.

    Raises:
        Unsupported: Naming the kinds.
    """
    kinds = set(getattr(model.config, "layer_types", None) or LAYER_KINDS[:1])
    *attention, convolution = LAYER_KINDS
    if not kinds <= set(attention) and kinds != {attention[0], convolution}:
        raise Unsupported(
            f"{type(model).__name__} has layers of {', '.join(sorted(kinds))}; built "
            f"are {' and '.join(attention)}, and {convolution} beside {attention[0]}",
            "give a model of another architecture",
        )


def layers_with_prefix(model: nn.Module) -> list[tuple[int, ...]]:
    """Shapes of the keys [1, K, 3, D] that reach promptdial's attention, in order."""
    prefix = Prefix()
    with torch.no_grad():
        model(inputs_embeds=_probe_rows(model), prefix=prefix)
    return [tuple(key.shape) for key, _ in prefix.present]


def require_prefix(model: nn.Module, dims: Dims) -> None:
    """Check that every layer's keys and values reach promptdial's attention.

    Raises:
        NoPrefix: Some do not.
    """
    shapes, count = layers_with_prefix(model), dims.layers - len(dims.conv_layers)
    if shapes != [(1, dims.kv_heads, _PROBE_ROWS, dims.head_dim)] * count:
        raise NoPrefix(
            f"{type(model).__name__} hands {len(shapes)} of {count} layers' keys "
            "and values to transformers' attention interface",
            "give a model of another architecture (BERT, RoBERTa, DistilBERT, ...)",
        )


def require_conv_state(model: nn.Module, dims: Dims) -> None:
    """Check that rows over a kept state give what they give in one sequence.

    A convolution's state goes by a cache, which transformers has changed before: one
    that is not asked, or asked in another way, would be left out without a word.

    Raises:
        Unsupported: They do not, or the state has another shape.
    """
    rows, decoder = _probe_rows(model), FrozenDecoder(model)
    wanted_shape = (1, dims.hidden, dims.conv_kernel)
    with torch.no_grad():
        wanted = model(inputs_embeds=rows, use_cache=False).logits[:, -1:]
        try:
            state = decoder.state_of(rows[0, :-1])
            found = decoder.logits(rows[:, -1:], rows.new_ones(1, 1), state)
            shapes = {tuple(state[layer][0].shape) for layer in dims.conv_layers}
            right = shapes == {wanted_shape} and _alike(found, wanted)
        except (AttributeError, KeyError, TypeError, RuntimeError):
            right = False
    if not right:
        raise Unsupported(
            f"{type(model).__name__} hands no state {list(wanted_shape)} of its "
            "convolutions to the cache of this version of transformers",
            "upgrade transformers, or give a model of another architecture",
        )


def _probe_rows(model: nn.Module) -> torch.Tensor:
    """Rows [1, 3, H] of the token table, unlike each other."""
    table = input_embeddings(model)
    rows = torch.linspace(1, len(table) - 1, _PROBE_ROWS).long().to(table.device)
    return table[rows][None]
