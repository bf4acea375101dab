"""Merges of a byte-pair encoding, from a vocabulary that only orders its tokens (SentencePiece, tiktoken)."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

MAX_WORK = 1 << 26  # the sum of the squared lengths of all tokens; Llama 3's is about a tenth of it


def last_merge(parts: Sequence[str], order: Mapping[str, float]) -> tuple[str, str] | None:
    """The two tokens that encoding merges last to make a token; None if it does not end with that token alone.

    Encoding repeatedly merges the two neighbours whose concatenation comes first in `order`, the leftmost of equals.
    Inside a longer text, the merges within a token's range are the same: those across its ends were not made, or the
    token would not be there. So this is the only pair that ever makes the token.

    Args:
        parts: the characters of the token.
        order: of all tokens, smallest first.
    """
    left = list(parts)
    while len(left) > 2:
        places = [order.get(a + b) for a, b in itertools.pairwise(left)]
        known = [(rank, place) for place, rank in enumerate(places) if rank is not None]
        if not known:
            return None
        place = min(known)[1]
        left[place : place + 2] = [left[place] + left[place + 1]]
    return (left[0], left[1]) if len(left) == 2 and left[0] in order and left[1] in order else None


def merges_of(order: Mapping[str, float]) -> list[tuple[str, str]] | None:
    """The merges that make the tokens of a vocabulary, in order; None if its tokens are too long for one.

    Args:
        order: the tokens, as strings of the characters that encoding starts from, with their order.
    """
    if sum(len(token) ** 2 for token in order) > MAX_WORK:
        return None
    ordered = sorted((token for token in order if len(token) > 1), key=order.__getitem__)
    found = (last_merge(token, order) for token in ordered)
    return [pair for pair in found if pair is not None]
