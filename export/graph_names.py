"""Names of a graph's inputs and outputs, and its operator set."""

from promptdial.runtime.manifest import Dims

OPSET = 23  # the first with Attention, Gelu and LayerNormalization as single nodes
HIDDEN_NAME = "last_hidden_state"
LOGITS_NAME = "logits"
KEEP_NAME = "logits_to_keep"
VISIBLE_NAME = "visible_keys"


def past_names(dims: Dims) -> list[tuple[str, str]]:
    """(key, value) input names of every layer."""
    return _pairs("past_key_values", dims)


def present_names(dims: Dims) -> list[tuple[str, str]]:
    """(key, value) output names of every layer."""
    return _pairs("present", dims)


def _pairs(stem: str, dims: Dims) -> list[tuple[str, str]]:
    return [(f"{stem}.{i}.key", f"{stem}.{i}.value") for i in range(dims.layers)]
