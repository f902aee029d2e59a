"""Whether a prompt is within what a static graph was calibrated for.

A static graph has fixed ranges, and cuts off what is outside them without a word. A
prompt that is outside is refused, and not scaled into them: keys decide how much each
row is seen, and the rows of a soft prompt are added to positions before they are
normalised, so that a scaled prompt is another prompt, whose answers nobody measured.
What refuses it says how to go on: calibrate with it, or use a graph without ranges.

Rows within their range may still lead to keys or values outside theirs. The graph that
makes them was given the same ranges, so that what it cut lies at the end of one.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from promptdial.prompts.blob import PromptBlob
from promptdial.runtime.errors import PromptRefused
from promptdial.runtime.graph_state import flat, past_names
from promptdial.runtime.manifest import DECODER, Dims, Manifest
from promptdial.runtime.session import Floats, PromptState
from promptdial.runtime.static_feed import EMBEDS_NAME

_STEPS = 65_535
_HINT = (
    "export the variant again with --calibrate and this prompt, or use another variant"
)
_LONGER = "export the variant again with a longer --window, or use another variant"


@dataclass(frozen=True)
class PromptLimits:
    """What a variant's graphs take.

    Attributes:
        rows: Most virtual tokens [P].
        ranges: (low, high) by the name of the input.
    """

    rows: int
    ranges: Mapping[str, tuple[float, float]]


def check_prompt(blob: PromptBlob, manifest: Manifest, limits: PromptLimits) -> None:
    """Check a blob's rows, or its keys and values.

    Raises:
        PromptRefused: It is too long, or outside the calibrated ranges.
    """
    task, count = blob.meta.task, blob.num_virtual_tokens
    if count > limits.rows:
        raise PromptRefused(
            f"{count} virtual tokens of {task!r}, the variant's graphs have room for "
            f"{limits.rows}",
            # A decoder's window is said at export, an encoder's prefix is its prompts'.
            _LONGER if manifest.family == DECODER else _HINT,
        )
    rows = blob.prompt_embeddings
    if rows is not None:
        check_rows(task, rows * np.float32(manifest.input_multiplier), limits)
    pairs = blob.past_key_values
    state = tuple(part for pair in pairs for part in pair)
    check_state(task, state, manifest.dims, limits)


def check_rows(task: str, rows: Floats, limits: PromptLimits) -> None:
    """Check prompt rows [P, H] as the graph takes them.

    Raises:
        PromptRefused: They are outside the calibrated range.
    """
    _check(task, EMBEDS_NAME, rows, limits)


def check_state(
    task: str, state: PromptState, dims: Dims, limits: PromptLimits
) -> None:
    """Check a prompt's keys and values; none where it has no rows.

    Raises:
        PromptRefused: They are outside the calibrated ranges, or were cut to them.
    """
    if state:
        names = flat(past_names(dims))
        for name, values in zip(names, state, strict=True):
            _check(task, name, values, limits)


def _check(task: str, name: str, values: Floats, limits: PromptLimits) -> None:
    low, high = limits.ranges[name]
    step = (high - low) / _STEPS
    least, most = float(values.min(initial=0.0)), float(values.max(initial=0.0))
    # At the very end of a range lies what was cut off.
    if not (low + step <= least and most <= high - step):
        raise PromptRefused(
            f"{name} of {task!r} is from {least:.4g} to {most:.4g}, the variant was "
            f"calibrated for {low:.4g} to {high:.4g}",
            _HINT,
        )
