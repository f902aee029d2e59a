"""Build machine: a Hugging Face model becomes a bundle that the runtime opens.

Importing this package is light; torch is loaded by the first call.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from promptdial.export.extra import needs_export_extra

if TYPE_CHECKING:
    from promptdial.export.build import ExportResult
    from promptdial.export.verify import Parity

__all__ = ["export_bundle", "verify_bundle"]


def export_bundle(
    model: str,
    out: str | Path,
    precision: str | Sequence[str] | None = None,
    calibrate: Sequence[str | Path] = (),
    target: str = "cpu",
    lengths: Sequence[int] = (),
    window: int | None = None,
) -> "ExportResult":
    """Export MODEL as a bundle, or add variants to the bundle at `out`.

    Args:
        model: Hub id, local folder or `minilm`.
        out: The folder.
        precision: `int8`, `int4`, `fp32` or several of them. None for int8, or with
            another target for none where the bundle has some.
        calibrate: .jsonl files of texts like those to come; none for built-in ones. For
            another target also prompts, as .safetensors files.
        target: `cpu`; `qnn` adds graphs of fixed sizes, `openvino` for encoders.
        lengths: Tokens of each of those; () for 32, 64 and 128, of a decoder's that
            read for 64.
        window: Rows of a decoder's cache in those; None for 512.

    Raises:
        MissingExtra: torch, transformers, optimum or onnx is not installed.
        ExportError: See promptdial.export.errors; `out` is then as it was.
        DataInvalid: A file of texts cannot be used.
        PromptError: A prompt cannot be used.
        UsageError: Prompts, lengths or a window, and no graphs of fixed sizes that
            have them.
    """
    with needs_export_extra("export"):
        from promptdial.export import build
    precisions = (precision,) if isinstance(precision, str) else precision
    files = [Path(file) for file in calibrate]
    return build.export_bundle(
        model,
        Path(out),
        precisions,
        target,
        calibrate=files,
        lengths=lengths,
        window=window,
    )


def verify_bundle(bundle: str | Path, model: str = "") -> "Parity":
    """Compare every graph of a bundle with PyTorch, on built-in sentences.

    Args:
        bundle: The folder.
        model: MODEL; empty for the one that the bundle names.

    Raises:
        MissingExtra: torch, transformers, optimum or onnx is not installed.
        ExportError: The bundle is damaged, from another base, or too far away.
    """
    with needs_export_extra("verify"):
        from promptdial.export import bundle_parity
    return bundle_parity.verify_bundle(Path(bundle), model)
