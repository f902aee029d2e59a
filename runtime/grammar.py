"""Answers by a JSON schema or a regular expression: the seam to llguidance.

llguidance is an optional extra. It reads the bundle's tokenizer.json, so it takes the
tokenizers whose tokens are plain bytes of the text: byte-level BPE (GPT-2, Llama 3,
Qwen), and SentencePiece-like BPE with byte fallback (Llama 2, Gemma).

Llama 2's answers begin with a blank that its decoder takes away, and so do the targets
of training: on such a tokenizer a grammar begins with that blank.
"""

import json
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from promptdial.prompts.errors import MissingExtra, UsageError
from promptdial.runtime.errors import CannotConstrain
from promptdial.runtime.text_stream import PANIC
from promptdial.runtime.vocabulary import Vocabulary

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLParserLimits, LLTokenizer

PACKAGE = "llguidance"
_PROBE = " Ab 7, \u00e9\u4e2d\U0001f642"
"""The blank in front tells whether the decoder takes one away."""

_MAX_LEXER_STATES = 20_000
"""Of one answer, at 1 to 2 KB each. The library's own 250,000 are half a gigabyte."""
_MAX_GRAMMAR_SIZE = 100_000
_SHOWN = 200

_JSON_STYLE = {
    # Blanks without end would be JSON too, and a small model may well write them.
    "whitespace_flexible": False,
    "item_separator": ", ?",
    "key_separator": ": ?",
    # A keyword that is not enforced is refused.
    "lenient": False,
}
"""Within separators a blank or none: as `json.dumps` writes, or compact."""


class GrammarCompiler:
    """Schemas and expressions to grammars over one bundle's tokens.

    Safe to share among threads.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        """Read the tokenizer: about a second where it is large.

        Raises:
            MissingExtra: llguidance is not installed.
            CannotConstrain: It cannot read the tokenizer, or the base has no end token.
        """
        try:
            import llguidance
        except ImportError as error:
            if (error.name or "").split(".")[0] == PACKAGE:
                raise MissingExtra("a schema or regex", "constrained") from error
            raise
        self._library = llguidance
        self._vocabulary = vocabulary
        if not vocabulary.ends:
            raise CannotConstrain("schema and regex need a base with an end token")
        try:
            self._tokens: LLTokenizer = llguidance.LLTokenizer(
                vocabulary.encoder.tokenizer_json(),
                n_vocab=vocabulary.size,
                eos_token=sorted(vocabulary.ends),
            )
        except BaseException as error:
            # The library may panic, which is no Exception.
            if isinstance(error, Exception) or type(error).__name__ == PANIC:
                raise _unread(str(error)) from None
            raise
        self._leading_blank = self._decoder_takes_a_blank()

    def regex(self, expression: str) -> "Grammar":
        """The grammar of a regular expression, which an answer matches as a whole.

        Raises:
            UsageError: It cannot be read, or matches nothing.
        """
        matcher = self._library.LLMatcher
        # By itself first: `a)|(b` must not become right by what is put around it.
        plain = self._checked("regex", matcher.grammar_from_regex(expression))
        if not self._leading_blank:
            return plain
        led = matcher.grammar_from_regex(f"[ ](?:{expression})")
        return self._checked("regex", led)

    def schema(self, schema: str) -> "Grammar":
        """The grammar of a JSON schema, given as text.

        Raises:
            UsageError: It is no schema, uses a keyword that is not enforced, or no
                value fits it.
        """
        body = json.loads(schema)
        if isinstance(body, dict):
            body = {**body, "x-guidance": _JSON_STYLE}
        elif body is True:
            body = {"x-guidance": _JSON_STYLE}
        matcher = self._library.LLMatcher
        plain = matcher.grammar_from_json_schema(json.dumps(body))
        if not self._leading_blank:
            return self._checked("schema", plain)
        # For its messages, which are clearer without the rest of a grammar.
        self._checked("schema", plain)
        led = f'start: " " value\nvalue: %json {json.dumps(body)}'
        return self._checked("schema", matcher.grammar_from_lark(led))

    def _checked(self, what: str, grammar: str) -> "Grammar":
        matcher = self._library.LLMatcher(
            self._tokens, grammar, log_level=0, limits=self._limits()
        )
        if matcher.is_error():
            raise UsageError(
                f"{what}: {_reason(matcher.get_error())}", "give another one"
            )
        found = Grammar(matcher, what, self._vocabulary.size)
        found.begin().allowed()  # some that no answer can fit are found here only
        return found

    def _limits(self) -> "LLParserLimits":
        return self._library.LLParserLimits(
            max_lexer_states=_MAX_LEXER_STATES,
            max_grammar_size=_MAX_GRAMMAR_SIZE,
            verbose_errors=False,  # those show what was written
        )

    def _decoder_takes_a_blank(self) -> bool:
        """Compare the library's bytes of tokens with the text that answers show.

        Raises:
            CannotConstrain: They differ by more than the blank in front.
        """
        tokens = self._vocabulary.encoder.token_ids(_PROBE)
        seen = self._tokens.decode_bytes(tokens)
        text = self._vocabulary.text(tokens).encode()
        if seen not in (text, b" " + text):
            raise _unread("its tokens are not plain bytes of the text")
        return seen != text


class Grammar:
    """A compiled grammar. Safe to share among threads."""

    def __init__(self, matcher: "LLMatcher", what: str, size: int) -> None:
        self._matcher = matcher
        self._what = what
        self._size = size

    def begin(self) -> "GrammarConstraint":
        """The start of an answer."""
        return GrammarConstraint(self._matcher.deep_copy(), self._what, self._size)


class GrammarConstraint:
    """Where one answer stands in its grammar; see constraint.Constraint."""

    longest = None

    def __init__(self, matcher: "LLMatcher", what: str, size: int) -> None:
        self._matcher = matcher
        self._what = what
        self._size = size

    @property
    def finished(self) -> bool:
        """Whether the answer fits and nothing may follow."""
        return self._matcher.is_stopped()

    def allowed(self) -> NDArray[np.bool_]:
        """[V] whether a token may come next.

        Raises:
            UsageError: None may, or looking for one takes too much.
        """
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        mask = np.unpackbits(bits, count=self._size, bitorder="little").view(np.bool_)
        if not self._matcher.is_error() and mask.any():
            return mask
        raise self._dead_end()

    def advance(self, token: int) -> None:
        """Take the token that was chosen.

        Raises:
            UsageError: The grammar grew past its limits.
        """
        if not self._matcher.consume_token(token):
            raise self._dead_end()

    def _dead_end(self) -> UsageError:
        reason = _reason(self._matcher.get_error())
        # The library's name for having found nothing that could follow.
        if not reason or reason.startswith("NoExtension"):
            reason = "no token of the base can go on from here: it allows no answer"
        return UsageError(f"{self._what}: {reason}", "give another one")


def _unread(reason: Any) -> CannotConstrain:
    return CannotConstrain(
        f"schema and regex cannot be used on this bundle's tokenizer: {reason[:_SHOWN]}"
    )


def _reason(message: str) -> str:
    """What is wrong, in one line of the library's many."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    named = [line for line in lines if line.startswith("error: ")]
    return [*named, *lines, ""][0].removeprefix("error: ")[:_SHOWN]
