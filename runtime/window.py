"""A text within the base's window: what does not fit is cut, the template never is."""

import numpy as np
from numpy.typing import NDArray

from promptdial.runtime.text import TextEncoder, check_text

_CHARS_PER_TOKEN = 16
"""Characters of a text that are looked at for each token of room."""


class NoRoom(ValueError):
    """Not even the first character of the text fits."""


def fitted(
    encoder: TextEncoder, before: str, text: str, after: str, room: int
) -> tuple[NDArray[np.int64], bool]:
    """Token ids of a text in its template, at most `room` of them.

    Args:
        encoder: The base's.
        before: The template's text in front.
        text: The input; its end gives way.
        after: The template's text behind.
        room: Tokens that fit, special tokens included.

    Returns:
        Ids [T], and whether the text was cut.

    Raises:
        NoRoom: Nothing of the text fits.
        TextInvalid: The text is none.
    """

    def encoded(length: int) -> NDArray[np.int64] | None:
        found = encoder.encode(f"{before}{text[:length]}{after}")
        fits = not found.truncated and len(found) <= room
        return found.ids if fits else None

    check_text(text)
    whole = encoded(len(text))
    if whole is not None:
        return whole, False
    fits, too_long = 0, min(len(text), _CHARS_PER_TOKEN * max(room, 0)) + 1
    found: NDArray[np.int64] | None = None
    while too_long - fits > 1:
        middle = (fits + too_long) // 2
        ids = encoded(middle) if text[:middle].strip() else None
        if ids is None and text[:middle].strip():
            too_long = middle
        else:
            fits, found = middle, ids if ids is not None else found
    if found is None:
        raise NoRoom
    return found, True
