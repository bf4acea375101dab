"""In which proportion, and in which order, weighted datasets are mixed."""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

from gpt_mesh.data.permutation import derive_key, permute

BLOCK = 10_000


def block_quotas(weights: list[float], block: int = BLOCK) -> NDArray[np.int64]:
    """How many of every `block` samples come from each dataset: int64 [datasets], summing to `block`.

    In proportion to the weights by largest remainders; a positive weight gets at least one sample in a block, so that
    no dataset is listed and never read.
    """
    shares = np.asarray(weights, dtype=np.float64)
    assert shares.size and (shares >= 0).all() and 0 < np.count_nonzero(shares) <= block, weights
    exact = shares / shares.sum() * block
    quotas = np.maximum(np.floor(exact).astype(np.int64), shares > 0)
    while (missing := block - int(quotas.sum())) != 0:
        # Raised minimums can overshoot by a few; they are taken back where the excess is largest.
        eligible = np.flatnonzero(shares > 0 if missing > 0 else quotas > 1)
        order = eligible[np.argsort(-np.sign(missing) * (exact - quotas)[eligible], kind="stable")]
        quotas[order[: abs(missing)]] += np.sign(missing)
    return quotas


class Mixture:
    """The fixed, seeded interleaving of several datasets.

    Sample positions fall into blocks of `block`; every block holds exactly `quotas[d]` samples of dataset d, in an
    order of its own. Which dataset a position belongs to, and how many samples of that dataset came before it, follow
    from (seed, position) alone.
    """

    def __init__(self, weights: list[float], seed: int, block: int = BLOCK) -> None:
        self.block = block
        self.quotas = block_quotas(weights, block)
        self._seed = seed
        # Consecutive batches touch one or two blocks; more are only needed for random access.
        self._order = functools.lru_cache(maxsize=4)(self._compute_order)

    def locate(self, positions: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The dataset of each position and the sample's rank within that dataset: two int64 arrays like `positions`."""
        datasets, ranks = np.empty_like(positions), np.empty_like(positions)
        blocks, offsets = np.divmod(positions, self.block)
        for number in np.unique(blocks):
            here = blocks == number
            members, earlier = self._order(int(number))
            datasets[here] = members[offsets[here]]
            ranks[here] = number * self.quotas[datasets[here]] + earlier[offsets[here]]
        return datasets, ranks

    def _compute_order(self, number: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """For each place in block `number`: its dataset, and how many places of that dataset come before it."""
        slots = permute(np.arange(self.block), self.block, derive_key("mixture", self._seed, number))
        members = np.searchsorted(np.cumsum(self.quotas), slots, side="right").astype(np.int64)
        earlier = np.empty_like(members)
        for dataset, quota in enumerate(self.quotas):
            earlier[members == dataset] = np.arange(quota)
        return members, earlier
