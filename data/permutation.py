"""Keyed random numbers and permutations that need no state: element i is computed from (key, i) alone.

A training order built on these costs no memory however large the data, and the sample at any position can be found
again at once, which is what makes a run that was stopped continue with the very batch it would have seen.
"""

from __future__ import annotations

import hashlib
import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

UInts = NDArray[np.uint64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_ROUNDS = 8


def derive_key(*parts: str | int) -> int:
    """A 64-bit key from names and numbers; the same on every machine and in every process (unlike `hash`)."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def keyed_uint64(key: ArrayLike, counter: ArrayLike) -> UInts:
    """Random 64-bit numbers, one per (key, counter), broadcast against each other.

    Element `counter` of the SplitMix64 stream that starts at `key` (Steele, Lea & Flood, 2014: "Fast splittable
    pseudorandom number generators").
    """
    # At least one axis: NumPy warns of overflow on uint64 scalars, and here wrapping around is the point.
    keys, counters = np.atleast_1d(_as_uint64(key)), np.atleast_1d(_as_uint64(counter))
    z = keys + (counters + np.uint64(1)) * _GOLDEN
    z = (z ^ (z >> np.uint64(30))) * _MIX_1
    z = (z ^ (z >> np.uint64(27))) * _MIX_2
    return np.asarray(z ^ (z >> np.uint64(31)), dtype=np.uint64)


def permute(index: ArrayLike, size: int, key: ArrayLike) -> NDArray[np.int64]:
    """Where a random permutation of [0, size), chosen by `key`, sends `index`.

    index: integers in [0, size), any shape; key: one for all, or one per index. Returns int64 of the index's shape.

    A Feistel network over pairs (left, right) with left < a, right < b and a·b just above `size` (the alternating
    network of Black & Rogaway, 2002: "Ciphers with arbitrary finite domains"); an image that falls outside [0, size)
    is sent through again until it falls inside ("cycle walking"), which keeps the map one-to-one.
    """
    indices = np.asarray(index, dtype=np.int64)
    if indices.size and (indices.min() < 0 or indices.max() >= size):
        raise ValueError(f"index {indices.min()}..{indices.max()} is outside [0, {size})")
    a = max(1, math.isqrt(max(0, size - 1)) + 1)  # the least a with a·a >= size
    b = max(1, -(-size // a))
    # Drawn in the shape of `key`, which is often much smaller than that of `index`.
    drawn = [keyed_uint64(key, np.uint64(number)) for number in range(_ROUNDS)]
    round_keys = [np.broadcast_to(keys, np.atleast_1d(indices).shape).ravel() for keys in drawn]
    values = _feistel(_as_uint64(indices.ravel()), a, b, round_keys)
    while (outside := np.flatnonzero(values >= np.uint64(size))).size:
        values[outside] = _feistel(values[outside], a, b, [keys[outside] for keys in round_keys])
    return values.astype(np.int64).reshape(indices.shape)


def _feistel(values: UInts, a: int, b: int, round_keys: list[UInts]) -> UInts:
    """One pass: each round adds to one half a keyed function of the other, which any value of the other can undo."""
    left, right = values % np.uint64(a), values // np.uint64(a)
    for number, keys in enumerate(round_keys):
        if number % 2 == 0:
            left = (left + keyed_uint64(keys, right) % np.uint64(a)) % np.uint64(a)
        else:
            right = (right + keyed_uint64(keys, left) % np.uint64(b)) % np.uint64(b)
    return left + right * np.uint64(a)


def _as_uint64(values: ArrayLike) -> UInts:
    return np.asarray(values, dtype=np.uint64)
