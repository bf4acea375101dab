"""The keyed permutation: one-to-one for any size, different for each key, and without visible order."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt_mesh.data.permutation import derive_key, keyed_uint64, permute

KEYS = st.integers(0, 2**64 - 1)


@settings(deadline=None, max_examples=200)
@given(size=st.integers(1, 5000), key=KEYS)
def test_every_element_of_any_size_is_hit_once(size, key):
    assert np.array_equal(np.sort(permute(np.arange(size), size, key)), np.arange(size))


@settings(deadline=None)
@given(size=st.integers(2**40, 2**62), key=KEYS, seed=st.integers(0, 1000))
def test_huge_sizes_stay_inside_and_apart(size, key, seed):
    indices = np.unique(np.random.default_rng(seed).integers(0, size, 100))
    images = permute(indices, size, key)
    assert images.min() >= 0 and images.max() < size
    assert len(np.unique(images)) == len(indices)


def test_a_key_per_element_equals_one_key_at_a_time():
    indices, keys = np.arange(12).reshape(3, 4), np.array([[5], [6], [7]])
    together = permute(indices, 50, keys)
    assert together.shape == (3, 4)
    assert np.array_equal(together, [permute(row, 50, int(key[0])) for row, key in zip(indices, keys, strict=True)])


@pytest.mark.parametrize("size", [1000, 1024, 4097])
def test_images_are_spread_evenly_over_keys(size):
    """Element 0 of 4000 keyed permutations: a chi-squared of 10 classes beyond 40 has a chance below 1e-5."""
    images = permute(np.zeros(4000, np.int64), size, keyed_uint64(derive_key("test", size), np.arange(4000)))
    counts = np.histogram(images, bins=10, range=(0, size))[0]
    expected = np.histogram(np.arange(size), bins=10, range=(0, size))[0] * 4000 / size
    assert ((counts - expected) ** 2 / expected).sum() < 40


def test_neighbours_do_not_stay_neighbours():
    order = permute(np.arange(10_000), 10_000, 3)
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.05
    assert abs(np.corrcoef(order, np.arange(10_000))[0, 1]) < 0.05
    assert np.count_nonzero(np.abs(np.diff(order)) == 1) < 20  # 2 expected


@pytest.mark.parametrize("size", [2, 3, 4, 5])
def test_every_order_of_a_few_elements_occurs(size):
    orders = {tuple(permute(np.arange(size), size, key)) for key in range(1200)}
    assert len(orders) == [0, 1, 2, 6, 24, 120][size]


@pytest.mark.parametrize("index", [-1, 5])
def test_an_index_outside_is_refused(index):
    with pytest.raises(ValueError, match="outside"):
        permute([index], 5, 0)


def test_keys_are_the_same_in_another_process():
    program = "from gpt_mesh.data.permutation import derive_key; print(derive_key('order', 1, 'pile'))"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert int(found) == derive_key("order", 1, "pile")


def test_keys_tell_parts_apart():
    assert len({derive_key("ab", "c"), derive_key("a", "bc"), derive_key("abc"), derive_key("1"), derive_key(1)}) == 5


def test_splitmix64_reference_values():
    """The first outputs of the SplitMix64 generator seeded with 1234567, as published with it."""
    assert keyed_uint64(1234567, np.arange(3)).tolist() == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
    ]
