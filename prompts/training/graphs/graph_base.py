"""A base whose passes are those of a bundle's graph: training meets its rounding."""

from dataclasses import replace
from pathlib import Path

import torch

from promptdial.export.errors import WrongBase
from promptdial.export.model import LoadedBase
from promptdial.export.token_table import read_table
from promptdial.prompts.training.base import FrozenBase, Passes, encoder_base
from promptdial.prompts.training.config import TrainConfig
from promptdial.prompts.training.graphs.graph_model import read_graph
from promptdial.prompts.training.graphs.graph_name import name_of
from promptdial.prompts.training.graphs.static_passes import read_static_graphs
from promptdial.runtime.bundle import Bundle, open_bundle
from promptdial.runtime.manifest import TOKEN_TABLE_NAME
from promptdial.runtime.opening import window_of
from promptdial.runtime.text import TextEncoder


def training_base(
    loaded: LoadedBase, device: torch.device, config: TrainConfig
) -> FrozenBase:
    """A loaded encoder as a configuration trains on it.

    Args:
        loaded: The model.
        device: Where it is.
        config: Its options of precision, window, memory and graph.

    Raises:
        UsageError: The model has no layers for gradient checkpointing.
        PromptdialError: As `on_graph`.
    """
    base = encoder_base(
        loaded, device, config.bf16, config.max_tokens, config.gradient_checkpointing
    )
    if not config.quantised:
        return base
    return on_graph(base, Path(config.quantised), config.variant)


def on_graph(base: FrozenBase, folder: Path, variant: str) -> FrozenBase:
    """The base with a bundle's graph, and its token table, in place of the model.

    Args:
        base: The frozen model.
        folder: A bundle of the same base.
        variant: Which of its graphs.

    Raises:
        WrongBase: The bundle was made from another model, or with another tokenizer.
        BundleInvalid: It is broken, or has no such variant.
        Unsupported: A node of the graph has no counterpart in torch.
    """
    bundle = open_bundle(folder, variant)
    theirs, ours = bundle.manifest.base, base.base
    for key in ("fingerprint", "tokenizer_fingerprint"):
        if getattr(theirs, key) != getattr(ours, key):
            raise WrongBase(
                f"{folder} was made from {theirs.model} with {key} "
                f"{getattr(theirs, key)}, and {ours.model} has {getattr(ours, key)}",
                "give the model it was made from, or a bundle of this model",
            )
    table = torch.from_numpy(read_table(folder / TOKEN_TABLE_NAME))
    longest = min(base.encoder.max_tokens, window_of(bundle))
    encoder = short = TextEncoder(bundle.tokenizer_json(), longest)
    if base.short.max_tokens < longest:
        short = TextEncoder(bundle.tokenizer_json(), base.short.max_tokens)
    return replace(
        base,
        encoder=encoder,
        short=short,
        graph=_passes(bundle, base.device),
        table=table.to(base.device),
        graph_name=name_of(bundle),
        ranges=bundle.variant.ranges,
    )


def _passes(bundle: Bundle, device: torch.device) -> Passes:
    """What runs the variant that a bundle was opened with."""
    dims, attention = bundle.manifest.dims, bundle.manifest.attention
    if bundle.variant.buckets:
        return read_static_graphs(bundle.path, bundle.variant, dims, device)
    return read_graph(bundle.graph_path, dims, attention, device)
