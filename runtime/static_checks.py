"""What sessions of fixed sizes check when they open, and what they try a graph on."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from promptdial.runtime.errors import BundleInvalid
from promptdial.runtime.manifest import GraphVariant
from promptdial.runtime.session import Floats
from promptdial.runtime.static_feed import BIAS_NAME, EMBEDS_NAME

Sizes = Mapping[str, tuple[int, ...]]

_DEVIATIONS = 16
"""Standard deviations from end to end of a range, most of which is headroom."""


class Likely:
    """Inputs such as a graph was calibrated for, the same in the same order."""

    def __init__(self, ranges: Mapping[str, tuple[float, float]]) -> None:
        """Draw from some ranges, by input."""
        self._ranges = ranges
        self._rng = np.random.default_rng(0)

    def values(self, name: str, *shape: int) -> Floats:
        """Values of an input, within its range."""
        low, high = self._ranges[name]
        found = self._rng.normal(0.0, (high - low) / _DEVIATIONS, shape)
        return np.asarray(np.clip(found, low, high), np.float32)


def inputs_of(session: Any) -> dict[str, list[object]]:
    """Sizes of a session's inputs, by name."""
    return {item.name: item.shape for item in session.get_inputs()}


def outputs_of(session: Any) -> dict[str, list[object]]:
    """Sizes of a session's outputs, by name."""
    return {item.name: item.shape for item in session.get_outputs()}


def check_ranges(variant: GraphVariant, past: Sequence[str]) -> None:
    """Check that rows, bias and state have ranges.

    Raises:
        BundleInvalid: One has none.
    """
    for name in (EMBEDS_NAME, BIAS_NAME, *past):
        low, high = variant.ranges.get(name, (0.0, 0.0))
        if not low < high:
            raise BundleInvalid(
                f"{name} has the range {low:.4g} to {high:.4g} in the manifest, "
                "allowed: one that ascends",
                "export the variant again",
            )


def check_sizes(file: str, session: Any, inputs: Sizes, outputs: Sizes) -> None:
    """Check that a graph has some inputs and no others, and some outputs.

    Raises:
        BundleInvalid: One is missing, unknown or of other sizes.
    """
    for what, wanted, given in (
        ("input", inputs, inputs_of(session)),
        ("output", outputs, outputs_of(session)),
    ):
        unknown = set(given) - set(wanted) if what == "input" else set()
        for name in sorted({*wanted, *unknown}):
            sizes = given.get(name)
            if sizes is None or list(wanted.get(name, ())) != list(sizes):
                raise BundleInvalid(
                    f"{file}: {what} {name} has sizes {sizes}, the manifest "
                    f"{list(wanted.get(name, ()))}",
                    "export the variant again",
                )
