"""Trained numbers as the blob will hold them, with gradients straight through.

What is trained at the end is then what is written: rounding to int8 or int4 in the
forward pass, the identity backwards (straight-through estimator, Bengio et al. 2013,
arXiv:1308.3432). The torch side of prompts/quantised_rows.py and int4_rows.py, number
by number; a test compares them.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from promptdial.prompts.int4_rows import LEVELS as INT4_LEVELS

_LEVELS = 127.0


@dataclass(frozen=True)
class Storage:
    """How numbers are rounded, as promptdial.prompts.blob.make_blob does it.

    Attributes:
        precision: `int8`, `f16` or `f32`; "" for no rounding at all.
        vector_levels: Largest level of class vectors in int8; a pack's have int4's.
    """

    precision: str
    vector_levels: float = _LEVELS

    def rows(self, rows: Tensor) -> Tensor:
        """Embedding rows [P, H] as stored: int8 has a scale a row."""
        return rows if self.precision == "f32" else self._scaled(rows, _LEVELS)

    def vectors(self, rows: Tensor) -> Tensor:
        """Class vectors [C, M * H] as stored: the format has no float32 ones."""
        return self._scaled(rows, self.vector_levels)

    def halves(self, values: Tensor) -> Tensor:
        """Queries as stored: float16 whatever the precision, for they are few."""
        return _halves(values) if self.precision else values

    def tokens(self, array: Tensor) -> Tensor:
        """Keys or values [K, P, D] as stored: int8 has a float16 scale a token."""
        if self.precision == "int8":
            largest = array.detach().abs().amax((0, 2), keepdim=True)
            scale = (largest / _LEVELS).half().float()
            return _straight(array, _levels(array, scale) * scale)
        return _halves(array) if self.precision else array

    def _scaled(self, rows: Tensor, most: float) -> Tensor:
        """Rows with a scale each, of levels up to `most`; or float16."""
        if self.precision == "int8":
            scale = rows.detach().abs().amax(1, keepdim=True) / most
            return _straight(rows, _levels(rows, scale, most) * scale)
        return _halves(rows) if self.precision else rows


EXACT = Storage("")
IN_PACKS = Storage("int8", vector_levels=INT4_LEVELS)
"""What packs hold class vectors in (prompts/int4_rows.py)."""


def _halves(values: Tensor) -> Tensor:
    return _straight(values, values.detach().half().float())


def _levels(values: Tensor, scale: Tensor, most: float = _LEVELS) -> Tensor:
    safe = torch.where(scale > 0, scale, torch.ones_like(scale))
    return (values.detach() / safe).round().clamp(-most, most)


def _straight(values: Tensor, rounded: Tensor) -> Tensor:
    """The rounded values, bit for bit, with the gradient of the values themselves."""
    return _StraightThrough.apply(values, rounded)  # type: ignore[no-untyped-call, no-any-return]


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, values: Tensor, rounded: Tensor) -> Tensor:
        return rounded

    @staticmethod
    def backward(ctx: object, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None
