"""What a run trains on, as its blob says it: PyTorch's precision, or a graph."""

from pathlib import Path

from promptdial.prompts.training.config import TrainConfig
from promptdial.runtime.bundle import Bundle, open_bundle


def trained_on(config: TrainConfig) -> str:
    """`torch-fp32`, `torch-bf16`, or variant and digest of the bundle's graph.

    Raises:
        BundleInvalid: The bundle is broken, or has no such variant.
    """
    if not config.quantised:
        return in_torch(bf16=config.bf16)
    return name_of(open_bundle(Path(config.quantised), config.variant))


def in_torch(*, bf16: bool) -> str:
    """The model itself."""
    return "torch-bf16" if bf16 else "torch-fp32"


def name_of(bundle: Bundle) -> str:
    """The graph that a bundle was opened with: of its file and of its weights."""
    return f"{bundle.variant_name} sha256:{bundle.graph_digest}"
