"""Marks on token ids, which leave room for ids below 2^24.

* Tokens that are read and not learned are stored with inverted bits, as negative numbers.
* In a window that holds several samples, bit 30 is set in the first token of each (before its bits are inverted).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

BEGINS = 1 << 30


def marked(ids: ArrayLike, learned: ArrayLike) -> NDArray[np.int32]:
    """Ids in which those that are not learned are inverted: int32, of the shape of both."""
    tokens = np.asarray(ids, np.int32)
    return np.where(np.asarray(learned, bool), tokens, ~tokens)


def unmarked(ids: NDArray[np.integer]) -> NDArray[np.integer]:
    """The ids themselves, of the same shape and type."""
    return np.maximum(ids, -1 - ids) & (BEGINS - 1)


def beginning(ids: NDArray[np.int32]) -> NDArray[np.int32]:
    """Tokens as the first ones of samples, which nothing predicts: not learned."""
    return ~(unmarked(ids) | np.int32(BEGINS))
