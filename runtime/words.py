"""Splitting a text into words for token tasks, with their places."""

import re

Place = tuple[int, int]
_WORD = re.compile(r"\w+(?:['\u2019]\w+)*|[^\w\s]")
"""Letters, digits and inner apostrophes together; any other sign is a word."""


def split_words(text: str) -> tuple[list[str], tuple[Place, ...]]:
    """Words and the (start, end) characters of each."""
    found = list(_WORD.finditer(text))
    # A list first: CPython keeps up to 2,000 freed tuples of each length, and a tuple
    # filled from a generator is freed at another length than it was taken from, so
    # that a long-lived process would fill all of these lists (some 5 MB).
    places = [match.span() for match in found]
    return [match.group() for match in found], tuple(places)


def join_words(words: list[str]) -> tuple[str, tuple[Place, ...]]:
    """The text of words that were split by the caller, joined by blanks."""
    places: list[Place] = []
    start = 0
    for word in words:
        places.append((start, start + len(word)))
        start += len(word) + 1
    return " ".join(words), tuple(places)
