"""MODEL to bundle: trace, quantise, lay out the folder, verify, put in place."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx

from promptdial.export.bundle import (
    ExistingBundle,
    bundle_at,
    file_entries,
    open_bundle,
    put_in_place,
    staging,
)
from promptdial.export.bundle_parity import (
    Report,
    require_same_base,
    verify_staged,
    write_parity,
)
from promptdial.export.calibration import calibration_texts, take_evenly
from promptdial.export.channel_calibration import (
    calibrated_maxima,
    require_one_file,
)
from promptdial.export.errors import ModelInvalid, Unsupported
from promptdial.export.families import family_of
from promptdial.export.forward import ONE_WAY
from promptdial.export.graph_files import write_graph
from promptdial.export.group_query import has_packed_cache
from promptdial.export.model import DECODER, ENCODER, LoadedBase, load_base, resolve
from promptdial.export.model_probe import ties_head
from promptdial.export.onnx_edit import copy_model
from promptdial.export.quantise import SCHEME, quantise
from promptdial.export.quantise_blocks import INT4_SCHEME, quantise_int4
from promptdial.export.targets.calibrate import read_prompts
from promptdial.export.targets.decoder_variant import (
    build_static_decoder,
    decoder_buckets,
    require_static_decoder,
)
from promptdial.export.targets.schemes import SCHEMES
from promptdial.export.targets.variant import (
    build_static,
    encoder_buckets,
    require_static,
)
from promptdial.export.token_table import row_norm_limit, write_table
from promptdial.export.verify import Parity, Prompt, random_prompts
from promptdial.prompts.blob import SUFFIX
from promptdial.prompts.errors import UsageError
from promptdial.runtime.errors import BundleInvalid
from promptdial.runtime.manifest import (
    TOKEN_TABLE_NAME,
    TOKENIZER_NAME,
    Base,
    GraphVariant,
    Manifest,
    StaticBucket,
)
from promptdial.runtime.processor import INT8_FEATURES
from promptdial.runtime.rows import Row
from promptdial.runtime.stop_tokens import stop_tokens

PRECISIONS = ("int8", "int4", "fp32")
CPU_TARGET = "cpu"
TARGETS = (CPU_TARGET, *SCHEMES)
MAX_CALIBRATION_TEXTS = 256

_SCHEMES = {"int8": (SCHEME, INT8_FEATURES), "int4": (INT4_SCHEME, ())}
"""How a precision is made, and the processor features that it is meant for. Products
of 4-bit weights and int8 rows fit into 16 bits: they need none."""


@dataclass(frozen=True)
class ExportResult:
    """What `export` answers.

    Attributes:
        bundle: The folder.
        family: `encoder` or `decoder`.
        bytes: Size of the whole folder.
        base: The model it was made from.
        parity: Figures of all its variants.
    """

    bundle: Path
    family: str
    bytes: int
    base: Base
    parity: Parity


def export_bundle(
    model: str,
    out: Path,
    precisions: Sequence[str] | None = None,
    target: str = CPU_TARGET,
    calibrate: Sequence[Path] = (),
    lengths: Sequence[int] = (),
    window: int | None = None,
    report: Report = lambda line: None,
) -> ExportResult:
    """Export MODEL as a bundle, or add variants to the bundle at `out`.

    A target other than `cpu` adds a variant of graphs of fixed sizes that has the
    target's name.

    Args:
        model: Hub id, local folder or `minilm`.
        out: The folder; made, or extended where it is a bundle of the same base.
        precisions: Variants for the CPU to build: `int8`, `int4`, `fp32`. None for
            int8, or with another target for none where the bundle has some.
        target: Kind of processor: `cpu`, `qnn`, `openvino`.
        calibrate: .jsonl files of texts like those to come; none for built-in ones. For
            graphs of fixed sizes also prompts, as .safetensors files.
        lengths: Tokens of each graph of fixed sizes; () for the usual ones.
        window: Rows of a decoder's cache in such graphs; None for the usual number.
        report: Called with a line at the beginning of each step.

    Raises:
        ExportError: See promptdial.export.errors; `out` is then as it was.
        DataInvalid: A file of texts cannot be used.
        PromptError: A prompt cannot be used.
        UsageError: Prompts, lengths or a window, and no graphs of fixed sizes that
            have them.
    """
    existing = bundle_at(out)
    if precisions is None:
        precisions = () if existing is not None and target != CPU_TARGET else ("int8",)
    require_buildable(precisions, target)
    blobs = [file for file in calibrate if file.suffix == SUFFIX]
    rows = calibration_texts([file for file in calibrate if file not in blobs])
    if target == CPU_TARGET and (blobs or lengths or window is not None):
        raise UsageError(
            f"target {target!r} takes prompts of any range and texts of any length",
            "give another --target, or no prompts to --calibrate, --seq-len, --window",
        )
    report(f"loading {model}")
    loaded = load_base(resolve(model))
    if existing is not None:
        require_same_base(existing, loaded)
    prompts = read_prompts(blobs, loaded)
    buckets: tuple[StaticBucket, ...] = ()
    if target != CPU_TARGET:
        # A prompt may also be as plain as token rows.
        prompts = [*prompts, *random_prompts(loaded.token_table.cpu().numpy())]
        # Sizes that leave no room are wrong before the long work.
        buckets = _buckets(loaded, target, prompts, lengths, window)
    report(f"tracing {loaded.base.architecture}")
    exact = family_of(loaded).trace(loaded)
    graphs = build_graphs(loaded, exact, precisions, rows, report)
    with staging(out) as folder:
        report("writing the bundle")
        written = {
            name: write_graph(graph, folder, f"model_{name}.onnx")
            for name, graph in graphs.items()
        }
        variants = {
            name: _variant(name, written[name], has_packed_cache(graph))
            for name, graph in graphs.items()
        }
        if target != CPU_TARGET:
            used = take_evenly(rows, MAX_CALIBRATION_TEXTS)
            build = build_static
            if loaded.family == DECODER:
                require_one_file(exact)
                build = build_static_decoder
            variants[target] = build(
                loaded, exact, folder, target, used, prompts, buckets, report
            )
        kept = _keep_variants(folder, existing, variants)
        variants |= kept
        exact_table = all(variant.precision == "fp32" for variant in variants.values())
        _write_base_files(folder, loaded, exact_table=exact_table)
        # The kept ones too: the token table may be another now.
        report("comparing with PyTorch")
        parity = verify_staged(folder, variants, loaded, rows)
        write_parity(folder, parity)
        # Of all variants or of none: a prompt must work on every one of them.
        levels = loaded.family == ENCODER and (
            not kept or (existing is not None and existing.manifest.level_outputs)
        )
        manifest = _manifest(folder, loaded, variants, levels=levels)
        put_in_place(folder, manifest, out)
    size = open_bundle(out).size
    return ExportResult(out, loaded.family, size, loaded.base, parity)


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
                f"{', '.join(PRECISIONS)}",
                "use --precision int8",
            )


def build_graphs(
    loaded: LoadedBase,
    exact: onnx.ModelProto,
    precisions: Sequence[str],
    rows: Sequence[Row],
    report: Report = lambda line: None,
) -> dict[str, onnx.ModelProto]:
    """What is made of the FP32 graph, by precision."""
    if set(precisions) <= {"fp32"}:
        return dict.fromkeys(precisions, exact)
    used = take_evenly(rows, MAX_CALIBRATION_TEXTS)
    report(f"quantising, calibrated on {len(used)} texts")
    maxima = calibrated_maxima(loaded, exact, used)
    arranged = copy_model(exact)
    family_of(loaded).arrange(loaded, arranged)
    makers: dict[str, Callable[[], onnx.ModelProto]] = {
        "fp32": lambda: exact,
        "int8": lambda: quantise(arranged, maxima),
        "int4": lambda: quantise_int4(arranged, maxima),
    }
    return {precision: makers[precision]() for precision in dict.fromkeys(precisions)}


def _buckets(
    loaded: LoadedBase,
    target: str,
    prompts: Sequence[Prompt],
    lengths: Sequence[int],
    window: int | None,
) -> tuple[StaticBucket, ...]:
    """The sizes of a target's graphs, if there can be such graphs of a base."""
    if loaded.family == DECODER:
        require_static_decoder(loaded, target)
        return decoder_buckets(loaded, target, prompts, lengths, window)
    require_static(loaded, target)
    if window is not None:
        raise UsageError(
            f"a window of {window} rows, and {loaded.base.architecture} has no cache",
            "leave --window out",
        )
    return encoder_buckets(loaded, target, prompts, lengths)


def _write_base_files(folder: Path, loaded: LoadedBase, *, exact_table: bool) -> None:
    if loaded.family == DECODER:
        _require_end_tokens(loaded)
    for name in (TOKENIZER_NAME, "config.json", "generation_config.json"):
        if (loaded.folder / name).is_file():
            shutil.copyfile(loaded.folder / name, folder / name)
    table = loaded.token_table.cpu().numpy()
    write_table(folder / TOKEN_TABLE_NAME, table, exact=exact_table)


def _require_end_tokens(loaded: LoadedBase) -> None:
    """Refuse end tokens that no device would take."""
    names = [path.name for path in loaded.folder.iterdir()]
    try:
        stop_tokens(loaded.folder, names, loaded.dims.vocab)
    except BundleInvalid as error:
        raise ModelInvalid(error.message, "correct the checkpoint's file") from None


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


def _variant(
    precision: str, files: tuple[str, ...], packed_cache: bool
) -> GraphVariant:
    if precision == "fp32":
        return GraphVariant(files=files, target="cpu", precision="fp32")
    scheme, features = _SCHEMES[precision]
    return GraphVariant(
        files=files,
        target="cpu",
        precision=precision,
        scheme=scheme,
        cpu_features=features,
        packed_cache=packed_cache,
    )


def _manifest(
    folder: Path,
    loaded: LoadedBase,
    variants: Mapping[str, GraphVariant],
    *,
    levels: bool,
) -> Manifest:
    files = file_entries(folder)
    # The head lies in the graph, in a layout of its own: no two formats share it.
    tied = files[TOKEN_TABLE_NAME].bytes if ties_head(loaded.model) else 0
    return Manifest(
        family=loaded.family,
        dims=loaded.dims,
        prefix=loaded.attention == ONE_WAY,
        attention=loaded.attention,
        input_multiplier=1.0,
        row_norm_limit=row_norm_limit(loaded.token_table.cpu().numpy()),
        base=loaded.base,
        graphs=dict(sorted(variants.items())),
        files=files,
        tied_table_bytes=tied,
        level_outputs=levels,
    )
