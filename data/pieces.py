"""Long documents in pieces that have the tokens of the whole."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from gpt_mesh.errors import InputError

LONGEST = 1 << 24
"""Characters that a document may have without a place to cut it: each takes some 200 bytes of memory to encode."""

# GPT-2's pattern ends a token before white space that follows something else (U+180E was white space until Unicode
# 6.3), and where letters or digits end. Only letters that all versions of Unicode know: Latin, kana, Han.
_LETTER = "[A-Za-z\u3041-\u3094\u30a1-\u30fa\u4e00-\u9fa5]"
CUT = re.compile(
    rf"[^\s\u180e](?=[ \t\r\n])|{_LETTER}(?=[!-@\[-`{{-~\u3001\u3002\uff01\uff0c\uff1a\uff1b\uff1f])|[0-9](?=[!-/:-~])"
)
"""The character after which text may be cut."""


def cut(blocks: Iterable[str], size: int, where: str) -> Iterator[tuple[str, bool]]:
    """Pieces of about `size` characters of the document that `blocks` make up: (text, whether it is the last).

    A piece is longer where it cannot be cut. Raises InputError, naming the document as `where`, when that is too long.
    """
    held, searched = "", 0
    for block in blocks:
        held += block
        start = 0
        while (match := CUT.search(held, max(start + size - 1, searched))) is not None:
            yield held[start : match.end()], False
            start = searched = match.end()
        searched = max(len(held) - 1, start) - start
        held = held[start:]
        if len(held) > max(LONGEST, 2 * size):
            raise InputError(
                f"{where}: goes on for {len(held):,} characters without white space or punctuation, which is no text; "
                "break it up, or leave it out"
            )
    yield held, True
