"""Splitting a text into words for token tasks, with their places."""

import re

Place = tuple[int, int]
_WORD = re.compile(r"\w+(?:['\u2019]\w+)*|[^\w\s]")
"""Letters, digits and inner apostrophes together; any other sign is a word."""


def split_words(text: str) -> tuple[list[str], tuple[Place, ...]]:
    """Words and the (start, end) characters of each."""
    found = list(_WORD.finditer(text))
    return [match.group() for match in found], tuple(match.span() for match in found)


def join_words(words: list[str]) -> tuple[str, tuple[Place, ...]]:
    """The text of words that were split by the caller, joined by blanks."""
    places: list[Place] = []
    start = 0
    for word in words:
        places.append((start, start + len(word)))
        start += len(word) + 1
    return " ".join(words), tuple(places)
