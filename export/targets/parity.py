"""The side of a comparison that runs a variant of static graphs.

It runs them as the device does, on the CPU where nothing else is asked for: the fixed
ranges are the same there, and an accelerator's simulator takes seconds for a text.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from promptdial.export.sides import Batch, Floats, State
from promptdial.runtime.accelerator import CPU
from promptdial.runtime.manifest import Dims, GraphVariant
from promptdial.runtime.profiles import PROFILES
from promptdial.runtime.static_session import StaticEncoderSession


@dataclass(frozen=True)
class StaticSide:
    """A variant of static graphs over a token table [V, H]."""

    session: StaticEncoderSession
    dims: Dims
    table: Floats

    def state(self, rows: Floats) -> State:
        """See `Side`."""
        parts = self.session.state_of(rows)
        return list(zip(parts[0::2], parts[1::2], strict=True))

    def hidden(self, batch: Batch, state: State) -> Floats:
        """See `Side`; each row at its own length, as the device's batches have it."""
        parts = tuple(part for pair in state for part in pair)
        prefix = parts[0].shape[2] if parts else 0
        found = np.zeros((*batch.ids.shape, self.dims.hidden), np.float32)
        for row, length in enumerate(batch.mask.sum(axis=1)):
            one = (slice(row, row + 1), slice(length))
            found[one] = self.session.hidden(
                self.table[batch.ids[one]],
                np.ones((1, prefix + length), np.int64),
                np.arange(length)[None] + self.dims.position_offset,
                batch.type_ids[one],
                parts or self.session.no_prompt,
            )
        return found


def static_side(
    folder: Path,
    variant: GraphVariant,
    dims: Dims,
    table: Floats,
    providers: Sequence[str] = (CPU,),
) -> StaticSide:
    """Open a bundle's variant of static graphs.

    Args:
        folder: The bundle's.
        variant: The variant.
        dims: The base's sizes.
        table: Token table [V, H].
        providers: What runs the graphs.

    Raises:
        RuntimeFailure, MissingExtra: As `StaticEncoderSession`.
    """
    profile = PROFILES["battery"]
    session = StaticEncoderSession(folder, variant, dims, profile, 0, providers)
    return StaticSide(session, dims, table)
