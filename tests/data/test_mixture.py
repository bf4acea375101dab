"""The mixture of weighted datasets: exact quotas in every block, and ranks without gap or repeat."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt_mesh.data.mixture import BLOCK, Mixture, block_quotas


@settings(deadline=None)
@given(weights=st.lists(st.floats(1e-9, 1e9), min_size=1, max_size=30), block=st.integers(30, 10_000))
def test_quotas_fill_the_block_and_stay_near_the_weights(weights, block):
    quotas = block_quotas(weights, block)
    exact = np.array(weights) / np.sum(weights) * block
    assert quotas.sum() == block
    assert (quotas >= 1).all()
    assert (np.abs(quotas - exact) <= len(weights)).all()


@pytest.mark.parametrize(
    ("weights", "quotas"),
    [
        ([1.0], [10]),
        ([0.5, 0.25, 0.25], [5, 3, 2]),
        ([1, 1, 1], [4, 3, 3]),
        ([1e9, 1e-9], [9, 1]),
        ([2, 0, 2], [5, 0, 5]),
    ],
)
def test_quotas_by_largest_remainder(weights, quotas):
    assert block_quotas(weights, 10).tolist() == quotas


def test_ranks_of_each_dataset_count_up_without_gap():
    mixture = Mixture([0.7, 0.2, 0.1], seed=1, block=50)
    datasets, ranks = mixture.locate(np.arange(175))
    for dataset in range(3):
        assert np.array_equal(ranks[datasets == dataset], np.arange(np.count_nonzero(datasets == dataset)))


def test_every_block_has_its_quotas_in_its_own_order():
    mixture = Mixture([3, 1], seed=1)
    datasets, _ = mixture.locate(np.arange(3 * BLOCK))
    blocks = datasets.reshape(3, BLOCK)
    assert (np.count_nonzero(blocks, axis=1) == BLOCK // 4).all()
    assert not np.array_equal(blocks[0], blocks[1])


def test_any_position_is_found_directly():
    positions = np.array([3, 120, 99, 7, 1_000_049])
    together = Mixture([2, 1], seed=5, block=50).locate(positions)
    for i, position in enumerate(positions):
        alone = Mixture([2, 1], seed=5, block=50).locate(np.array([position]))
        assert (alone[0][0], alone[1][0]) == (together[0][i], together[1][i])


def test_seeds_give_different_orders():
    positions = np.arange(100)
    assert not np.array_equal(Mixture([1, 1], 1).locate(positions)[0], Mixture([1, 1], 2).locate(positions)[0])
