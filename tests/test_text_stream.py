"""Streamed text: whole characters, stop strings wherever the pieces end."""

from itertools import pairwise
from pathlib import Path

from decoders import make_tokenizer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from promptdial.runtime.text_stream import StopStrings, TextPieces

TOKENIZER = make_tokenizer()
FAMILY = "\U0001f469\u200d\U0001f469\u200d\U0001f467"
WORDS = ("the film was", "Zürich", "日本語", FAMILY, "café", "ab\ufffdc", " ", "\n")


def pieces_of(tokenizer: Tokenizer, tokens: list[int]) -> list[str]:
    pieces = TextPieces(tokenizer)
    return [*(pieces.push(token) for token in tokens), pieces.finish()]


def check(tokenizer: Tokenizer, tokens: list[int]) -> None:
    text, found = tokenizer.decode(tokens), "".join(pieces_of(tokenizer, tokens))
    if "\ufffd" not in text:
        assert found == text


@given(st.lists(st.sampled_from(WORDS), max_size=6))
def test_pieces_of_texts_are_the_text(words: list[str]) -> None:
    text = " ".join(words)
    tokens = TOKENIZER.encode(text, add_special_tokens=False).ids
    assert "".join(pieces_of(TOKENIZER, tokens)) == TOKENIZER.decode(tokens)


@given(st.lists(st.integers(0, TOKENIZER.get_vocab_size() - 1), max_size=30))
def test_pieces_of_any_tokens_are_what_decoding_gives(tokens: list[int]) -> None:
    """Special tokens among them; broken characters may be fewer or more."""
    check(TOKENIZER, tokens)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tokens=st.lists(st.integers(0, 511), max_size=30))
def test_pieces_of_byte_fallback_tokens(tokens: list[int], shared_models: Path) -> None:
    """Llama's kind: blanks as `▁`, the first one dropped, bytes as tokens."""
    file = shared_models / "tinystories-260k-llama" / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(file))
    check(tokenizer, tokens)


def test_no_piece_holds_half_a_character() -> None:
    text = f"日本語 {FAMILY} Zürich"
    tokens = TOKENIZER.encode(text, add_special_tokens=False).ids
    assert len(tokens) > len(text)
    for piece in pieces_of(TOKENIZER, tokens):
        assert "\ufffd" not in piece


@given(
    st.text("ab", max_size=24),
    st.lists(st.text("ab", min_size=1, max_size=4), max_size=3),
    st.lists(st.integers(0, 24), max_size=8),
)
def test_stop_strings_cut_the_same_wherever_pieces_end(
    text: str, stops: list[str], cuts: list[int]
) -> None:
    places = sorted({0, len(text), *(cut for cut in cuts if cut <= len(text))})
    pieces = [text[a:b] for a, b in pairwise(places)]
    cutter, written = StopStrings(tuple(stops)), ""
    for piece in pieces:
        written += cutter.push(piece)
        if cutter.found:
            break
    written += cutter.finish()
    ends = [text.find(stop) for stop in stops if stop in text]
    # Pieces end before the text does: a stop string found early ends it there.
    assert cutter.found == bool(ends)
    if ends:
        assert text.startswith(written)
        assert not any(stop in written for stop in stops)
        assert any(text.startswith(stop, len(written)) for stop in stops)
    else:
        assert written == text
