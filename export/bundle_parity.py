"""Parity of a whole bundle: its graph files beside PyTorch, and parity.json."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from promptdial.export.bundle import PARITY_NAME, ExistingBundle, open_bundle
from promptdial.export.calibration import calibration_texts, take_evenly
from promptdial.export.errors import WrongBase
from promptdial.export.families import family_of
from promptdial.export.model import DECODER, LoadedBase, load_base, resolve
from promptdial.export.source import MINILM_ALIAS, MINILM_ID
from promptdial.export.targets.decoder_parity import compare_static_decoder
from promptdial.export.targets.parity import static_side
from promptdial.export.token_table import read_table
from promptdial.export.verify import (
    Parity,
    Prompt,
    compare,
    merged,
    random_prompts,
    require,
)
from promptdial.runtime.accelerator import CPU, is_for, place_of
from promptdial.runtime.manifest import TOKEN_TABLE_NAME, GraphVariant
from promptdial.runtime.rows import Row

MAX_VERIFY_TEXTS = 24

Report = Callable[[str], None]


def verify_bundle(
    folder: Path,
    model: str = "",
    rows: Sequence[Row] = (),
    prompt: Prompt | None = None,
    device: str = "cpu",
    provider: str = CPU,
    report: Report = lambda line: None,
) -> Parity:
    """Compare every graph of a bundle with PyTorch and judge the figures.

    Args:
        folder: The bundle.
        model: MODEL; empty for the one that the manifest names.
        rows: Texts; empty for the built-in sentences.
        prompt: Compared over it; None for random prompts of several lengths.
        device: Where PyTorch runs.
        provider: What runs the graphs of fixed sizes that are for it whole; those
            for another provider run on the CPU.
        report: Called with a line at the beginning of each step.

    Raises:
        BundleBroken, WrongBase, ParityFailed: As they say.
        ExportError: The model cannot be found or loaded.
        RuntimeFailure, MissingExtra: The provider cannot be used.
    """
    if provider != CPU:
        place_of(provider)
    bundle = open_bundle(folder)
    name = model or bundle.manifest.base.model
    report(f"loading {name}")
    loaded = load_base(
        resolve(MINILM_ALIAS if not model and name == MINILM_ID else name), device
    )
    require_same_base(bundle, loaded)
    graphs = bundle.manifest.graphs
    texts = take_evenly(rows or calibration_texts(), MAX_VERIFY_TEXTS)
    prompts = [prompt] if prompt else random_prompts(loaded.token_table.cpu().numpy())
    report(f"comparing {', '.join(graphs)} with PyTorch on {len(texts)} texts")
    parity = _compare(folder, graphs, loaded, texts, prompts, provider)
    precisions = {name: graph.precision for name, graph in graphs.items()}
    require(parity, precisions, family_of(loaded).min_cosine)
    return parity


def require_same_base(bundle: ExistingBundle, loaded: LoadedBase) -> None:
    """Refuse a bundle and a model that do not belong together.

    Raises:
        WrongBase: With both fingerprints.
    """
    theirs, ours = bundle.manifest.base, loaded.base
    for key in ("fingerprint", "tokenizer_fingerprint"):
        if getattr(theirs, key) != getattr(ours, key):
            raise WrongBase(
                f"{bundle.folder} was made from {theirs.model} with {key} "
                f"{getattr(theirs, key)}, and {ours.model} has {getattr(ours, key)}",
                "give the model it was made from, or another folder",
            )


def _compare(
    folder: Path,
    variants: Mapping[str, GraphVariant],
    loaded: LoadedBase,
    rows: Sequence[Row],
    prompts: Sequence[Prompt],
    provider: str = CPU,
) -> Parity:
    """Compare the variants of a folder, over its token table.

    Graphs of fixed sizes are compared on texts that are cut to what they take.
    """
    table = read_table(folder / TOKEN_TABLE_NAME)
    free = {
        name: folder / variant.files[0]
        for name, variant in variants.items()
        if not variant.buckets
    }
    parts = []
    if free:
        parts.append(family_of(loaded).compare(loaded, free, table, rows, prompts))
    for name, variant in variants.items():
        used = (provider if is_for(provider, variant.target) else CPU,)
        if variant.buckets and loaded.family == DECODER:
            parts.append(
                compare_static_decoder(
                    loaded, folder, name, variant, table, rows, prompts, used
                )
            )
        elif variant.buckets:
            side = static_side(folder, variant, loaded.dims, table, used)
            window = side.session.window
            parts.append(compare(loaded, {name: side}, rows, prompts, window))
    return merged(parts)


def verify_staged(
    folder: Path,
    variants: Mapping[str, GraphVariant],
    loaded: LoadedBase,
    rows: Sequence[Row],
) -> Parity:
    """Compare the graphs of a bundle in the making, and judge the figures.

    Raises:
        ParityFailed: A graph is too far from PyTorch.
    """
    prompts = random_prompts(loaded.token_table.cpu().numpy())
    texts = take_evenly(rows, MAX_VERIFY_TEXTS)
    parity = _compare(folder, variants, loaded, texts, prompts)
    precisions = {name: variant.precision for name, variant in variants.items()}
    require(parity, precisions, family_of(loaded).min_cosine)
    return parity


def write_parity(folder: Path, parity: Parity) -> None:
    """Write parity.json: figures by variant."""
    report = parity.to_dict()
    shared = {key: report[key] for key in ("texts", "prompts", "hidden_max")}
    body = {name: {**shared, **row} for name, row in report["variants"].items()}
    text = json.dumps(body, indent=2, sort_keys=True) + "\n"
    (folder / PARITY_NAME).write_text(text, encoding="utf-8")
