"""MODEL to bundle: trace, quantise, lay out the folder, verify, put in place."""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from promptdial.export.bundle import (
    PARITY_NAME,
    ExistingBundle,
    bundle_at,
    file_entries,
    open_bundle,
    put_in_place,
    staging,
)
from promptdial.export.calibration import calibration_texts, take_evenly
from promptdial.export.errors import Unsupported, WrongBase, file_errors
from promptdial.export.families import family_of
from promptdial.export.forward import ONE_WAY
from promptdial.export.graph_files import write_graph
from promptdial.export.model import LoadedBase, load_base, resolve
from promptdial.export.quantise import SCHEME, quantise
from promptdial.export.session import cpu_session
from promptdial.export.sides import Floats
from promptdial.export.smooth import channel_maxima
from promptdial.export.source import MINILM_ALIAS, MINILM_ID
from promptdial.export.token_table import read_table, row_norm_limit, write_table
from promptdial.export.verify import Parity, Prompt, random_prompts, require
from promptdial.runtime.manifest import (
    TOKEN_TABLE_NAME,
    TOKENIZER_NAME,
    Base,
    GraphVariant,
    Manifest,
)
from promptdial.runtime.rows import Row

PRECISIONS = ("int8", "fp32")
TARGETS = ("cpu",)
MAX_CALIBRATION_TEXTS = 256
MAX_VERIFY_TEXTS = 24
MAX_GRAPH_BYTES = 2_000_000_000  # protobuf's limit for a graph in one file

Report = Callable[[str], None]


@dataclass(frozen=True)
class ExportResult:
    """What `export` answers.

    Attributes:
        bundle: The folder.
        family: `encoder` or `decoder`.
        bytes: Size of the whole folder.
        base: The model it was made from.
        parity: Figures of this export's variants.
    """

    bundle: Path
    family: str
    bytes: int
    base: Base
    parity: Parity


def export_bundle(
    model: str,
    out: Path,
    precisions: Sequence[str] = ("int8",),
    target: str = "cpu",
    calibrate: Sequence[Path] = (),
    report: Report = lambda line: None,
) -> ExportResult:
    """Export MODEL as a bundle, or add variants to the bundle at `out`.

    Args:
        model: Hub id, local folder or `minilm`.
        out: The folder; made, or extended where it is a bundle of the same base.
        precisions: Variants to build: `int8`, `fp32`.
        target: Kind of processor; `cpu`.
        calibrate: .jsonl files of texts like those to come; none for built-in ones.
        report: Called with a line at the beginning of each step.

    Raises:
        ExportError: See promptdial.export.errors; `out` is then as it was.
        DataInvalid: A calibration file cannot be used.
    """
    require_buildable(precisions, target)
    rows = calibration_texts(calibrate)
    existing = bundle_at(out)
    report(f"loading {model}")
    loaded = load_base(resolve(model))
    if existing is not None:
        require_same_base(existing, loaded)
    report(f"tracing {loaded.base.architecture}")
    graphs = build_graphs(loaded, precisions, rows, report)
    with staging(out) as folder:
        report("writing the bundle")
        written = {
            name: write_graph(graph, folder, f"model_{name}.onnx")
            for name, graph in graphs.items()
        }
        files = {name: names[0] for name, names in written.items()}
        kept = _keep_variants(folder, existing, graphs)
        made = [*graphs, *(variant.precision for variant in kept.values())]
        _write_base_files(folder, loaded, exact_table=set(made) == {"fp32"})
        report("comparing with PyTorch")
        parity = _verify_staged(folder, files, loaded, rows)
        _write_parity(folder, parity, existing, kept)
        variants = {name: _variant(name, written[name]) for name in graphs} | kept
        put_in_place(folder, _manifest(folder, loaded, variants), out)
    size = open_bundle(out).size
    return ExportResult(out, loaded.family, size, loaded.base, parity)


def verify_bundle(
    folder: Path,
    model: str = "",
    rows: Sequence[Row] = (),
    prompt: Prompt | None = None,
    device: str = "cpu",
    report: Report = lambda line: None,
) -> Parity:
    """Compare every graph of a bundle with PyTorch and judge the figures.

    Args:
        folder: The bundle.
        model: MODEL; empty for the one that the manifest names.
        rows: Texts; empty for the built-in sentences.
        prompt: Compared over it; None for random prompts of several lengths.
        device: Where PyTorch runs.
        report: Called with a line at the beginning of each step.

    Raises:
        BundleBroken, WrongBase, ParityFailed: As they say.
        ExportError: The model cannot be found or loaded.
    """
    bundle = open_bundle(folder)
    name = model or bundle.manifest.base.model
    report(f"loading {name}")
    loaded = load_base(
        resolve(MINILM_ALIAS if not model and name == MINILM_ID else name), device
    )
    require_same_base(bundle, loaded)
    files = {name: graph.files[0] for name, graph in bundle.manifest.graphs.items()}
    texts = take_evenly(rows or calibration_texts(), MAX_VERIFY_TEXTS)
    prompts = [prompt] if prompt else random_prompts(loaded.token_table.cpu().numpy())
    report(f"comparing {', '.join(files)} with PyTorch on {len(texts)} texts")
    parity = _compare(folder, files, loaded, texts, prompts)
    graphs = bundle.manifest.graphs
    precisions = {name: graph.precision for name, graph in graphs.items()}
    require(parity, precisions, family_of(loaded).min_cosine)
    return parity


def require_buildable(precisions: Sequence[str], target: str) -> None:
    """Refuse what is planned and not built.

    Raises:
        Unsupported: Naming what is asked for and what there is.
    """
    if target not in TARGETS:
        raise Unsupported(
            f"target {target!r} is not built yet, only {', '.join(TARGETS)}",
            "leave --target out",
        )
    for precision in precisions:
        if precision not in PRECISIONS:
            raise Unsupported(
                f"precision {precision!r} is not built yet, only "
                f"{' and '.join(PRECISIONS)}",
                "use --precision int8",
            )


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


def build_graphs(
    loaded: LoadedBase,
    precisions: Sequence[str],
    rows: Sequence[Row],
    report: Report = lambda line: None,
) -> dict[str, onnx.ModelProto]:
    """The FP32 graph, and what is made of it, by precision."""
    exact = family_of(loaded).trace(loaded)
    graphs: dict[str, onnx.ModelProto] = {}
    for precision in dict.fromkeys(precisions):
        if precision == "fp32":
            graphs[precision] = exact
            continue
        used = take_evenly(rows, MAX_CALIBRATION_TEXTS)
        report(f"quantising, calibrated on {len(used)} texts")
        graphs[precision] = quantise(exact, calibrated_maxima(loaded, exact, used))
    return graphs


def calibrated_maxima(
    loaded: LoadedBase, graph: onnx.ModelProto, rows: Sequence[Row]
) -> Mapping[str, Floats]:
    """Channel maxima over texts, by activation name."""
    session = cpu_session(serialised(graph))
    return channel_maxima(graph, family_of(loaded).feeds(loaded, session, rows))


def serialised(graph: onnx.ModelProto) -> bytes:
    """The graph's bytes, equal for equal graphs.

    Raises:
        Unsupported: It is too large for one file.
    """
    size = graph.ByteSize()
    if size > MAX_GRAPH_BYTES:
        raise Unsupported(
            f"the graph has {size} bytes, at most {MAX_GRAPH_BYTES}",
            "use --precision int8, or a smaller model",
        )
    return bytes(graph.SerializeToString(deterministic=True))


def _write_base_files(folder: Path, loaded: LoadedBase, *, exact_table: bool) -> None:
    for name in (TOKENIZER_NAME, "config.json", "generation_config.json"):
        if (loaded.folder / name).is_file():
            shutil.copyfile(loaded.folder / name, folder / name)
    table = loaded.token_table.cpu().numpy()
    write_table(folder / TOKEN_TABLE_NAME, table, exact=exact_table)


def _keep_variants(
    folder: Path, existing: ExistingBundle | None, new: Mapping[str, object]
) -> dict[str, GraphVariant]:
    """Copy the graphs of the existing bundle that are not built anew."""
    if existing is None:
        return {}
    graphs = existing.manifest.graphs
    kept = {name: graph for name, graph in graphs.items() if name not in new}
    for graph in kept.values():
        for name in graph.files:
            shutil.copyfile(existing.folder / name, folder / name)
    return kept


def _compare(
    folder: Path,
    files: Mapping[str, str],
    loaded: LoadedBase,
    rows: Sequence[Row],
    prompts: Sequence[Prompt],
) -> Parity:
    """Compare the graph files of a folder, by variant, over its token table."""
    graphs = {name: folder / file for name, file in files.items()}
    table = read_table(folder / TOKEN_TABLE_NAME)
    return family_of(loaded).compare(loaded, graphs, table, rows, prompts)


def _verify_staged(
    folder: Path, files: Mapping[str, str], loaded: LoadedBase, rows: Sequence[Row]
) -> Parity:
    prompts = random_prompts(loaded.token_table.cpu().numpy())
    texts = take_evenly(rows, MAX_VERIFY_TEXTS)
    parity = _compare(folder, files, loaded, texts, prompts)
    precisions = {name: name for name in files}
    require(parity, precisions, family_of(loaded).min_cosine)
    return parity


def _write_parity(
    folder: Path,
    parity: Parity,
    existing: ExistingBundle | None,
    kept: Mapping[str, object],
) -> None:
    """Figures by variant; those of kept variants are carried over."""
    body: dict[str, Any] = {}
    if existing is not None and PARITY_NAME in existing.manifest.files:
        with file_errors(existing.folder / PARITY_NAME):
            old = json.loads((existing.folder / PARITY_NAME).read_text("utf-8"))
        body = {name: figures for name, figures in old.items() if name in kept}
    report = parity.to_dict()
    shared = {key: report[key] for key in ("texts", "prompts", "hidden_max")}
    for name, figures in report["variants"].items():
        body[name] = {**shared, **figures}
    text = json.dumps(body, indent=2, sort_keys=True) + "\n"
    (folder / PARITY_NAME).write_text(text, encoding="utf-8")


def _variant(precision: str, files: tuple[str, ...]) -> GraphVariant:
    if precision == "fp32":
        return GraphVariant(files=files, target="cpu", precision="fp32")
    return GraphVariant(
        files=files,
        target="cpu",
        precision=precision,
        scheme=SCHEME,
        cpu_features=("avx512_vnni", "avx_vnni", "asimddp"),
    )


def _manifest(
    folder: Path, loaded: LoadedBase, variants: Mapping[str, GraphVariant]
) -> Manifest:
    return Manifest(
        family=loaded.family,
        dims=loaded.dims,
        prefix=loaded.attention == ONE_WAY,
        attention=loaded.attention,
        input_multiplier=1.0,
        row_norm_limit=row_norm_limit(loaded.token_table.cpu().numpy()),
        base=loaded.base,
        graphs=dict(sorted(variants.items())),
        files=file_entries(folder),
    )
