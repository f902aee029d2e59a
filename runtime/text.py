"""Text to token ids and back to characters.

The window: a text longer than the base's positions keeps its beginning (of a pair that
is one input the longer part gives way first; texts that are read apart have a window
each) and the answer says `truncated`. A prompt costs no
positions, since text positions are not shifted by it. What lies far behind the window
is never tokenized: 5 MB of text would take 3 s and 700 MB.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

from promptdial.runtime.text_stream import PANIC, TextPieces
from promptdial.runtime.tokenizer_rules import TokenizerRefused, check_tokenizer

_CHARS_PER_TOKEN = 16
"""Characters tried for each token of the window; twice what most texts need."""


_PROBE = "A b1, \u00e9\u4e2d  \u2581\n"


class TextInvalid(ValueError):
    """The text cannot be encoded; the message says why."""


@dataclass(frozen=True)
class Encoded:
    """One encoded input of T tokens.

    Attributes:
        ids: [T] int64 token ids, special tokens included.
        type_ids: [T] int64 segment: 0 first text, 1 second.
        words: [T] int64 index of the word a token came from, -1 for special tokens.
        offsets: (start, end) in characters of the text a token came from.
        truncated: Whether tokens were dropped to fit the window.
        apart: Whether the two segments are texts of their own, each with a window of
            its own, that no forward pass reads together.
    """

    ids: NDArray[np.int64]
    type_ids: NDArray[np.int64]
    words: NDArray[np.int64]
    offsets: tuple[tuple[int, int], ...]
    truncated: bool
    apart: bool = False

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def passes(self) -> tuple["Encoded", ...]:
        """What the model reads of it at a time: itself, or its two texts."""
        if not self.apart:
            return (self,)
        end = int(np.count_nonzero(self.type_ids == 0))
        return self._part(slice(0, end)), self._part(slice(end, None))

    def _part(self, place: slice) -> "Encoded":
        """One of the texts; as a text alone, its segment is 0."""
        return Encoded(
            ids=self.ids[place],
            type_ids=np.zeros_like(self.type_ids[place]),
            words=self.words[place],
            offsets=self.offsets[place],
            truncated=self.truncated,
        )


class TextEncoder:
    """Encodes texts for one base model. Safe to share among threads."""

    def __init__(self, tokenizer_json: str, max_tokens: int) -> None:
        """Take the tokenizer.

        Args:
            tokenizer_json: The text of tokenizer.json.
            max_tokens: Longest result, special tokens included.

        Raises:
            TextInvalid: tokenizer.json cannot be read, or holds what no bundle may
                (tokenizer_rules.py).
        """
        try:
            check_tokenizer(tokenizer_json)
            tokenizer = Tokenizer.from_str(tokenizer_json)
            # Some broken tables are found by their first use only.
            tokenizer.encode(_PROBE)
        except TokenizerRefused as error:
            raise TextInvalid(f"tokenizer.json: {error}") from None
        except BaseException as error:
            raise _mapped(error, "tokenizer.json") from None
        # sentence-transformers ships tokenizers that cut at 128 and pad to 128.
        tokenizer.no_padding()
        tokenizer.enable_truncation(max_tokens, strategy="longest_first")
        self._tokenizer = tokenizer
        self.max_tokens = max_tokens

    @property
    def vocab_size(self) -> int:
        """Number of tokens, added ones included."""
        return int(self._tokenizer.get_vocab_size(with_added_tokens=True))

    def encode(self, text: str, text_pair: str | None = None) -> Encoded:
        """Encode one text, or a pair of texts as two segments.

        Raises:
            TextInvalid: A text is no string, blank, or holds a lone surrogate.
        """
        check_text(text)
        if text_pair is not None:
            check_text(text_pair)
            text_pair = self._beginning(text_pair)
        try:
            return _encoded(self._tokenizer.encode(self._beginning(text), text_pair))
        except BaseException as error:
            raise _mapped(error, "the tokenizer failed") from None

    def encode_apart(self, text: str, text_pair: str) -> Encoded:
        """Encode a pair as two texts that the model does not read together.

        Raises:
            TextInvalid: A text is no string, blank, or holds a lone surrogate.
        """
        one, two = self.encode(text), self.encode(text_pair)
        return Encoded(
            ids=np.concatenate([one.ids, two.ids]),
            type_ids=np.concatenate(
                [np.zeros_like(one.type_ids), np.ones_like(two.type_ids)]
            ),
            words=np.concatenate([one.words, two.words]),
            offsets=one.offsets + two.offsets,
            truncated=one.truncated or two.truncated,
            apart=True,
        )

    def encode_words(self, words: list[str]) -> Encoded:
        """Encode a text that is already split; `offsets` are then within a word.

        Raises:
            TextInvalid: No word, or one that is no valid text.
        """
        if not words:
            raise TextInvalid("no words")
        for word in words:
            check_text(word)
        count = 2 * self.max_tokens
        while True:
            # A word may have no tokens at all, so the window may want more of them.
            try:
                encoding = self._tokenizer.encode(words[:count], is_pretokenized=True)
            except BaseException as error:
                raise _mapped(error, "the tokenizer failed") from None
            if encoding.overflowing or count >= len(words):
                return _encoded(encoding)
            count *= 4

    def token_ids(self, text: str) -> list[int]:
        """Token ids of a text without special tokens, uncut."""
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        parts = [encoding, *encoding.overflowing]
        return [token for part in parts for token in part.ids]

    def _beginning(self, text: str) -> str:
        """As much of a text as surely fills the window; all of a text that does not."""
        size = _CHARS_PER_TOKEN * self.max_tokens
        while size < len(text):
            end = size
            while end and not text[end].isspace():
                end -= 1
            # Without any blank, as in Chinese, words are short: any place will do.
            head = text[: end or size]
            if self._tokenizer.encode(head, add_special_tokens=False).overflowing:
                return head
            size *= 4
        return text

    def pieces(self) -> TextPieces:
        """Text of tokens that are to come one by one."""
        return TextPieces(self._tokenizer)

    def tokenizer_json(self) -> str:
        """tokenizer.json as the library writes it, for another one that reads it."""
        return str(self._tokenizer.to_str())

    def special_token(self, text: str) -> int | None:
        """Id of a special token by its text; None where it is no such token."""
        for token, added in self._tokenizer.get_added_tokens_decoder().items():
            if added.special and added.content == text:
                return int(token)
        return None

    def token_text(self, token_id: int) -> str:
        """The token as it stands in the vocabulary."""
        return str(self._tokenizer.id_to_token(token_id))


def check_text(text: object) -> None:
    """Refuse what no tokenizer can take.

    Raises:
        TextInvalid: Not a string, nothing but blanks, or a lone surrogate.
    """
    if not isinstance(text, str):
        raise TextInvalid(f"text is {type(text).__name__}, not str")
    if not text.strip():
        raise TextInvalid("text is empty")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise TextInvalid(f"lone surrogate at character {error.start}") from None


def _mapped(error: BaseException, what: str) -> BaseException:
    """Tokenizers raises bare Exception, and panics; KeyboardInterrupt is neither."""
    if isinstance(error, Exception) or type(error).__name__ == PANIC:
        return TextInvalid(f"{what}: {error}")
    return error


def _encoded(encoding: Encoding) -> Encoded:
    words = [-1 if word is None else word for word in encoding.word_ids]
    return Encoded(
        ids=np.array(encoding.ids, np.int64),
        type_ids=np.array(encoding.type_ids, np.int64),
        words=np.array(words, np.int64),
        offsets=tuple(encoding.offsets),
        truncated=bool(encoding.overflowing),
    )
