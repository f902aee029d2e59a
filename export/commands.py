"""The commands `export` and `verify`: arguments in, one answer out."""

import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from promptdial.export.extra import needs_export_extra
from promptdial.runtime.accelerator import CPU
from promptdial.runtime.command import Command

if TYPE_CHECKING:
    from promptdial.export.verify import Prompt


def configure_export(parser: ArgumentParser) -> None:
    """Add the arguments of `export`."""
    parser.add_argument(
        "model", metavar="MODEL", help="a hub id, a local folder, or minilm"
    )
    parser.add_argument(
        "out", metavar="OUT", type=Path, help="the bundle's folder, new or of this base"
    )
    parser.add_argument(
        "--precision",
        action="append",
        choices=("int8", "int4", "fp32"),
        help="variant for the CPU to build; without it int8, or those that are there "
        "where the target is another; may be repeated",
    )
    parser.add_argument(
        "--target",
        default="cpu",
        choices=("cpu", "qnn", "openvino"),
        help="kind of processor (default: cpu)",
    )
    parser.add_argument(
        "--calibrate",
        action="extend",
        nargs="+",
        type=Path,
        default=[],
        metavar="FILE",
        help="texts like those to come (.jsonl), without any built-in sentences; "
        "for other targets than cpu, also prompts (.safetensors)",
    )
    parser.add_argument(
        "--seq-len",
        action="append",
        type=int,
        default=[],
        metavar="N",
        help="tokens of a graph of fixed sizes; may be repeated (default: "
        "32, 64 and 128; of a decoder, those that read: 64)",
    )
    parser.add_argument(
        "--window",
        type=int,
        metavar="N",
        help="rows of a decoder's cache in graphs of fixed sizes: prompt, text and "
        "answer (default: 512)",
    )


def run_export(args: Namespace) -> dict[str, Any]:
    """Build the bundle; the answer has `bundle, family, bytes, fingerprint, parity`."""
    with needs_export_extra("export"):
        from promptdial.export.build import export_bundle
    result = export_bundle(
        args.model,
        args.out,
        precisions=tuple(args.precision) if args.precision else None,
        target=args.target,
        calibrate=args.calibrate,
        lengths=tuple(args.seq_len),
        window=args.window,
        report=_progress,
    )
    return {
        "bundle": str(result.bundle),
        "family": result.family,
        "bytes": result.bytes,
        "fingerprint": result.base.fingerprint,
        "tokenizer_fingerprint": result.base.tokenizer_fingerprint,
        "parity": result.parity.to_dict(),
    }


def configure_verify(parser: ArgumentParser) -> None:
    """Add the arguments of `verify`."""
    parser.add_argument("bundle", metavar="BUNDLE", type=Path, help="what export wrote")
    parser.add_argument(
        "--model", default="", help="MODEL; without it, the one the bundle names"
    )
    parser.add_argument(
        "--data",
        type=Path,
        metavar="FILE.jsonl",
        help="texts; without it, built-in sentences",
    )
    parser.add_argument(
        "--prompt",
        type=Path,
        metavar="BLOB",
        help="compare over this prompt; without it, over random ones",
    )
    parser.add_argument(
        "--device", default="cpu", help="where PyTorch runs: cpu, cuda (default: cpu)"
    )
    parser.add_argument(
        "--provider",
        default=CPU,
        help="what runs the graphs of fixed sizes that are for it (default: "
        "%(default)s)",
    )


def run_verify(args: Namespace) -> dict[str, Any]:
    """Compare with PyTorch; the answer has the worst figures and those by variant."""
    with needs_export_extra("verify"):
        from promptdial.export.bundle_parity import verify_bundle
    from promptdial.runtime.rows import read_rows

    parity = verify_bundle(
        args.bundle,
        model=args.model,
        rows=read_rows(args.data) if args.data else (),
        prompt=_read_prompt(args.prompt, args.bundle) if args.prompt else None,
        device=args.device,
        provider=args.provider,
        report=_progress,
    )
    return {"bundle": str(args.bundle), **parity.to_dict()}


def show_export(answer: dict[str, Any]) -> str:
    """The answer of `export` for people."""
    lines = [
        f"{answer['bundle']}  {answer['family']}, {answer['bytes'] / 1e6:.1f} MB",
        f"base  {answer['fingerprint']}",
        *_parity_lines(answer["parity"]),
    ]
    return "\n".join(lines)


def show_verify(answer: dict[str, Any]) -> str:
    """The answer of `verify` for people."""
    return "\n".join([answer["bundle"], *_parity_lines(answer)])


def _parity_lines(parity: dict[str, Any]) -> list[str]:
    lengths = ", ".join(map(str, parity["prompts"]))
    lines = [f"{parity['texts']} texts, prompts of {lengths} virtual tokens"]
    for name, row in sorted(parity["variants"].items()):
        lines.append(
            f"  {name:5} max_abs_diff {row['max_abs_diff']:.2g}  "
            f"cosine {row['cosine']:.5f} (least {row['cosine_min']:.5f})  "
            f"agreement {row['agreement']:.3f}  batch_diff {row['batch_diff']:.2g}"
        )
    return lines


def _read_prompt(path: Path, bundle: Path) -> "Prompt":
    """A blob's prompt, if it belongs to the bundle's base."""
    from promptdial.export.bundle import open_bundle
    from promptdial.export.errors import NoPrefix, WrongBase
    from promptdial.export.verify import Prompt
    from promptdial.prompts.blob import read_blob

    blob = read_blob(path)
    manifest = open_bundle(bundle).manifest
    base = manifest.base
    if blob.meta.base_fingerprint != base.fingerprint:
        raise WrongBase(
            f"{path} was trained on {blob.meta.base_fingerprint}, and {bundle} was "
            f"made from {base.fingerprint}",
            "give a prompt of this base",
        )
    if blob.past_key_values and manifest.dims.conv_layers:
        raise NoPrefix(
            f"{path} is a deep prompt, and {bundle} has convolutions, which take no "
            "keys and values",
            "give a soft prompt",
        )
    return Prompt(rows=blob.prompt_embeddings, past=tuple(blob.past_key_values))


def _progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


export = Command(
    summary="turn a Hugging Face model into a bundle",
    configure=configure_export,
    run=run_export,
    show=show_export,
)
verify = Command(
    summary="compare a bundle's graphs with PyTorch",
    configure=configure_verify,
    run=run_verify,
    show=show_verify,
)
