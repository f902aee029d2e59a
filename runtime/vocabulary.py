"""The tokens of a base as a constraint sees them."""

from collections.abc import Sequence
from dataclasses import dataclass

from promptdial.runtime.text import TextEncoder


@dataclass(frozen=True)
class Vocabulary:
    """What an answer can be written with.

    Attributes:
        encoder: Text to tokens and back.
        size: V, the width of the logits.
        ends: Tokens that end an answer.
    """

    encoder: TextEncoder
    size: int
    ends: frozenset[int]

    def text(self, tokens: Sequence[int]) -> str:
        """The text of tokens as an answer of them would read.

        Raises:
            BundleInvalid: The tokenizer's decoder fails.
        """
        pieces = self.encoder.pieces()
        return "".join([*map(pieces.push, tokens), pieces.finish()])
