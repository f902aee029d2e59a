"""What class vectors of few rows read: the last level, or the middle one as well.

The last level of a base has pooled away what the base was not trained for; half way up
it is still there. Few rows cannot teach a mix of levels, so the mixes are fixed, and
folds choose one.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

LAST_ALONE = (1.0, 0.0)
_BLENDED = (0.65, 0.35)
_MIDDLE = (0.0, 1.0)
_COMPUTED = (LAST_ALONE, _BLENDED, _MIDDLE)
"""Weights of the last and the middle level; a pass over the texts gives them all."""


@dataclass(frozen=True)
class Reading:
    """One way to read.

    Attributes:
        name: In words.
        parts: Places in _COMPUTED [M].
    """

    name: str
    parts: tuple[int, ...]

    @property
    def head_levels(self) -> int:
        """What a blob has room for: M, or 0 where it needs no mix."""
        return 0 if self.parts == LAST.parts else len(self.parts)

    def mix(self, levels: int) -> Tensor | None:
        """Weights [M, L+1] of the levels; None for the last one alone."""
        return computed_mix(levels)[list(self.parts)] if self.head_levels else None

    def of(self, features: Tensor) -> Tensor:
        """Its features [N, M * H] of those of all readings."""
        blocks = features.chunk(len(_COMPUTED), dim=1)
        return torch.cat([blocks[part] for part in self.parts], dim=1)


LAST = Reading("the last level", (0,))
READINGS = (
    Reading("the last level and the middle one", (0, 2)),
    Reading("a blend of the last level and the middle one", (1,)),
    LAST,
)
"""The simplest one last: of equals it is taken."""


def computed_mix(levels: int) -> Tensor:
    """Weights [3, L+1] of what all readings together are made from.

    Args:
        levels: L + 1.
    """
    mix = torch.zeros(len(_COMPUTED), levels)
    for row, (last, middle) in zip(mix, _COMPUTED, strict=True):
        row[-1] += last
        row[(levels - 1) // 2] += middle
    return mix
