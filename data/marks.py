"""Tokens that are read and not learned: their ids are stored with inverted bits, as negative numbers."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def marked(ids: ArrayLike, learned: ArrayLike) -> NDArray[np.int32]:
    """Ids in which those that are not learned are inverted: int32, of the shape of both."""
    tokens = np.asarray(ids, np.int32)
    return np.where(np.asarray(learned, bool), tokens, ~tokens)


def unmarked(ids: NDArray[np.integer]) -> NDArray[np.integer]:
    """The ids themselves, of the same shape and type."""
    return np.maximum(ids, -1 - ids)
