"""From tokens to text, piece by piece: whole characters, nothing past a stop string.

A token may be a part of a character, and the beginning of a stop string may turn out to
be none: pieces are held back until they are certain.
"""

from tokenizers import Tokenizer

from promptdial.runtime.errors import BundleInvalid

PANIC = "PanicException"
"""A panic of the library's Rust code: no Exception, and of a class with no import."""

_UNKNOWN = "\ufffd"
_LONGEST_WAIT = 16
"""Tokens that may wait for a whole character: bytes that never make one must not."""


class TextPieces:
    """The text of tokens that come one by one.

    The pieces together are what decoding all tokens at once gives, but for bytes that
    make no characters. Each step decodes the last few tokens alone, with those before
    them for the blanks between (the library's DecodeStream raises on broken bytes).
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._tokens: list[int] = []
        # Text is written up to `_written`; what comes next is read from `_before` on.
        self._before = 0
        self._written = 0

    def push(self, token: int) -> str:
        """What is certain after one more token; "" where it ends within a character."""
        self._tokens.append(token)
        piece, waiting = self._rest(), len(self._tokens) - self._written
        if not piece or (piece.endswith(_UNKNOWN) and waiting < _LONGEST_WAIT):
            return ""
        self._before, self._written = self._written, len(self._tokens)
        return piece

    def finish(self) -> str:
        """What was held back: half a character is the replacement character."""
        return self._rest()

    def _rest(self) -> str:
        context = self._decode(self._tokens[self._before : self._written])
        return self._decode(self._tokens[self._before :])[len(context) :]

    def _decode(self, tokens: list[int]) -> str:
        try:
            return str(self._tokenizer.decode(tokens, skip_special_tokens=True))
        except BaseException as error:
            # A decoder of tokenizer.json may panic, which is no Exception.
            if isinstance(error, Exception) or type(error).__name__ == PANIC:
                raise BundleInvalid(f"tokenizer.json: {error}") from None
            raise


class StopStrings:
    """Cuts a text before the first stop string in it."""

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = stops
        self._held = ""
        self.found = False

    def push(self, piece: str) -> str:
        """What is certain to stand before any stop string."""
        if self.found or not self._stops:
            return "" if self.found else piece
        text = self._held + piece
        places = [text.find(stop) for stop in self._stops]
        places = [place for place in places if place >= 0]
        if places:
            self.found, self._held = True, ""
            return text[: min(places)]
        held = max(self._beginning(text, stop) for stop in self._stops)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def finish(self) -> str:
        """What was held back and is no stop string after all."""
        held, self._held = self._held, ""
        return held

    @staticmethod
    def _beginning(text: str, stop: str) -> int:
        """Length of the longest end of the text that begins the stop string."""
        for length in range(min(len(stop) - 1, len(text)), 0, -1):
            if text.endswith(stop[:length]):
                return length
        return 0
