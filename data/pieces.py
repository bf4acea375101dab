"""Long documents in pieces that have the tokens of the whole."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

# Where a document may be cut: before white space that follows something else. U+180E was white space until Unicode 6.3.
_CUT = re.compile(r"[^\s\u180e][ \n]")


def cut(blocks: Iterable[str], size: int) -> Iterator[tuple[str, bool]]:
    """Pieces of about `size` characters of the document that `blocks` make up: (text, whether it is the last).

    A piece ends before white space that follows something else; it is longer where there is no such place.
    """
    held, searched = "", 0
    for block in blocks:
        held += block
        start = 0
        while (match := _CUT.search(held, max(start + size - 1, searched))) is not None:
            yield held[start : match.start() + 1], False
            start = searched = match.start() + 1
        searched = max(len(held) - 1, start) - start
        held = held[start:]
    yield held, True
