"""An answer that is one of a few texts: a trie over their tokens."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from promptdial.prompts.errors import UsageError
from promptdial.runtime.vocabulary import Vocabulary


@dataclass
class _Node:
    """A beginning of choices.

    Attributes:
        after: What may follow, by its token.
        whole: Whether the beginning is a choice itself.
    """

    after: dict[int, "_Node"] = field(default_factory=dict)
    whole: bool = False


class Choices:
    """Texts of which an answer is one. Safe to share among threads."""

    def __init__(self, texts: tuple[str, ...], vocabulary: Vocabulary) -> None:
        """Take the texts.

        Raises:
            UsageError: The tokenizer cannot write a text, or could not end it where
                another goes on.
        """
        self._root = _Node()
        self._vocabulary = vocabulary
        longest = 0
        for text in texts:
            tokens = vocabulary.encoder.token_ids(text)
            if not tokens or vocabulary.text(tokens) != text:
                raise UsageError(
                    f"choice {text[:64]!r}: the base's tokenizer writes it as "
                    f"{vocabulary.text(tokens)[:64]!r}",
                    "give it as the tokenizer writes it",
                )
            longest = max(longest, len(tokens))
            self._add(tokens)
        # The end token too: it is chosen where a choice goes on into another.
        self._longest = longest + 1
        if not vocabulary.ends:
            self._refuse_beginnings(texts)

    def begin(self) -> "ChoiceConstraint":
        """The start of an answer."""
        return ChoiceConstraint(self._root, self._vocabulary, self._longest)

    def _add(self, tokens: list[int]) -> None:
        node = self._root
        for token in tokens:
            node = node.after.setdefault(token, _Node())
        node.whole = True

    def _refuse_beginnings(self, texts: tuple[str, ...]) -> None:
        """Without an end token, a choice that begins another could never be chosen."""
        for text in texts:
            node = self._root
            for token in self._vocabulary.encoder.token_ids(text):
                node = node.after[token]
            if node.after:
                raise UsageError(
                    f"choice {text[:64]!r} begins another one, and the base has no end "
                    "token",
                    "leave one of them out",
                )


class ChoiceConstraint:
    """Where one answer stands in its choices; see constraint.Constraint."""

    def __init__(self, root: _Node, vocabulary: Vocabulary, longest: int) -> None:
        self._node = root
        self._vocabulary = vocabulary
        self.longest = longest

    @property
    def finished(self) -> bool:
        """Whether a choice is whole and none goes on from here."""
        return not self._node.after

    def allowed(self) -> NDArray[np.bool_]:
        """[V] whether a token may come next."""
        mask = np.zeros(self._vocabulary.size, np.bool_)
        mask[list(self._node.after)] = True
        if self._node.whole:
            mask[list(self._vocabulary.ends)] = True
        return mask

    def advance(self, token: int) -> None:
        """Take the token that was chosen; an end token leaves nothing to follow."""
        self._node = self._node.after.get(token) or _Node(whole=True)
