"""What an answer may be: the masks that a request puts over its tokens.

A text is constrained by a list of choices (choices.py), a JSON schema or a regular
expression (grammar.py). What is made of one is kept and shared by requests; where an
answer stands in it belongs to one request.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from promptdial.runtime.choices import Choices
from promptdial.runtime.generation_options import GenerationOptions
from promptdial.runtime.grammar import Grammar, GrammarCompiler
from promptdial.runtime.vocabulary import Vocabulary

MAX_KEPT = 32
"""Constraints kept ready. One holds its own text and tokens, or a compiled grammar."""


_Key = tuple[str, str | tuple[str, ...]]
"""Option and its value."""


class Constraint(Protocol):
    """Where one answer stands. Not to be shared among requests or threads."""

    @property
    def finished(self) -> bool:
        """Whether the answer is whole and nothing may follow, an end token neither."""
        ...

    @property
    def longest(self) -> int | None:
        """Tokens of the longest whole answer; None where there is no such bound."""
        ...

    def allowed(self) -> NDArray[np.bool_]:
        """[V] whether a token may come next; at least one may.

        Raises:
            UsageError: Nothing may, or looking for it takes too much.
        """
        ...

    def advance(self, token: int) -> None:
        """Take the token that was chosen.

        Raises:
            UsageError: As `allowed`.
        """
        ...


class Constraints:
    """Constraints that requests asked for, those used last kept ready.

    Safe to share among threads. Two may make the same one at once; both are right.
    """

    def __init__(self) -> None:
        self._kept: OrderedDict[_Key, Choices | Grammar] = OrderedDict()
        self._compiler: GrammarCompiler | None = None
        self._lock = threading.Lock()
        self._opening = threading.Lock()

    def begin(
        self, options: GenerationOptions, vocabulary: Vocabulary
    ) -> Constraint | None:
        """The start of an answer; None where the options leave it free.

        Raises:
            UsageError: The constraint cannot be met, or cannot be read.
            CannotConstrain: The bundle's tokenizer cannot be constrained so.
            MissingExtra: A schema or an expression, and llguidance is not installed.
        """
        made: Choices | Grammar
        if options.choices:
            made = self._made(
                ("choices", options.choices),
                lambda: Choices(options.choices, vocabulary),
            )
        elif options.schema:
            made = self._made(
                ("schema", options.schema),
                lambda: self._opened(vocabulary).schema(options.schema),
            )
        elif options.regex:
            made = self._made(
                ("regex", options.regex),
                lambda: self._opened(vocabulary).regex(options.regex),
            )
        else:
            return None
        return made.begin()

    def __len__(self) -> int:
        return len(self._kept)

    def _made(
        self, key: _Key, make: Callable[[], Choices | Grammar]
    ) -> Choices | Grammar:
        with self._lock:
            found = self._kept.get(key)
            if found is not None:
                self._kept.move_to_end(key)
                return found
        made = make()
        with self._lock:
            self._kept[key] = made
            while len(self._kept) > MAX_KEPT:
                self._kept.popitem(last=False)
        return made

    def _opened(self, vocabulary: Vocabulary) -> GrammarCompiler:
        """The compiler, made by the first request: it reads the whole tokenizer."""
        with self._opening:
            if self._compiler is None:
                self._compiler = GrammarCompiler(vocabulary)
            return self._compiler
