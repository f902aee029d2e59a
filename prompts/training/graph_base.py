"""A base whose passes are those of a bundle's graph: training meets its rounding."""

from dataclasses import replace
from pathlib import Path

import torch

from promptdial.export.errors import WrongBase
from promptdial.export.token_table import read_table
from promptdial.prompts.training.base import FrozenBase
from promptdial.prompts.training.graph_model import read_graph
from promptdial.runtime.bundle import open_bundle
from promptdial.runtime.manifest import TOKEN_TABLE_NAME


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
    dims, attention = bundle.manifest.dims, bundle.manifest.attention
    graph = read_graph(bundle.graph_path, dims, attention, base.device)
    table = torch.from_numpy(read_table(folder / TOKEN_TABLE_NAME)).to(base.device)
    return replace(
        base,
        graph=graph,
        table=table,
        graph_name=f"{variant} sha256:{bundle.graph_digest}",
    )
