"""The random numbers of dropout and sampling, and dropout itself."""

from __future__ import annotations

from gpt_mesh.meshes.compat import mtf

import numpy as np
import pytest
import tensorflow as tf

from gpt_mesh.models.dropout import _strides, dropout, mixed_key, step_seed, uniform
from tests.support.models import Dim, on_mesh
from tests.support.statistics import chi_square_z

ROWS, COLUMNS = Dim("rows", 64), Dim("columns", 96)
SHAPE = (64, 96)


def draws(shape=(1000, 1000), key=1234):
    """Uniform numbers for a whole tensor."""
    strides = _strides(mtf.Shape([Dim(f"d{i}", size) for i, size in enumerate(shape)]))
    return uniform(list(shape), [0] * len(shape), strides, tf.constant(key, tf.uint32)).numpy()


@pytest.mark.parametrize("key", [0, 1, 2, 0x80000000, 0xFFFFFFFF])
def test_draws_are_uniform(key):
    u = draws(key=key)
    assert u.dtype == np.float32
    assert u.min() >= 0.0 and u.max() < 1.0
    for bins in (10, 256, 1000):
        counts = np.histogram(u, bins=bins, range=(0, 1))[0]
        assert abs(chi_square_z(counts, np.full(bins, u.size / bins))) < 4, bins


def test_each_bit_is_fair_and_independent_of_its_neighbours():
    bits = (draws() * 2**24).astype(np.uint32).ravel()
    noise = 0.5 / np.sqrt(bits.size)
    for i in range(24):
        bit = (bits >> i) & 1
        assert abs(bit.mean() - 0.5) < 5 * noise, i
        for distance in (1, 2, 1000):  # the next element, the next but one, the one in the next row
            assert abs((bit[distance:] ^ bit[:-distance]).mean() - 0.5) < 5 * noise, (i, distance)
        for j in range(i):
            assert abs((bit ^ ((bits >> j) & 1)).mean() - 0.5) < 5 * noise, (i, j)


def test_neighbouring_draws_and_neighbouring_keys_are_independent():
    first, second = draws(key=7), draws(key=8)
    for a, b in [(first[:, 1:], first[:, :-1]), (first[1:], first[:-1]), (first, second)]:
        counts = np.histogram2d(a.ravel(), b.ravel(), bins=16, range=[[0, 1], [0, 1]])[0]
        assert abs(chi_square_z(counts.ravel(), np.full(256, a.size / 256))) < 4


def test_a_slice_draws_its_part_of_the_whole():
    whole, key = draws((6, 10, 14)), tf.constant(1234, tf.uint32)
    part = uniform([3, 5, 7], [3, 5, 7], [140, 14, 1], key)
    np.testing.assert_array_equal(part, whole[3:, 5:, 7:])


def test_indices_beyond_32_bits_wrap_without_an_error():
    # 2**17 rows of 2**16: a stride that does not fit int32, rows whose index does not fit uint32.
    far = uniform([2, 3], [2**16, 0], [2**16, 1], tf.constant(9, tf.uint32)).numpy()
    near = uniform([2, 3], [0, 0], [2**16, 1], tf.constant(9, tf.uint32)).numpy()
    np.testing.assert_array_equal(far, near)
    assert np.unique(uniform([4], [0], [2**31 + 1], tf.constant(9, tf.uint32)).numpy()).size == 4


def test_keys_differ_between_steps_seeds_and_counts():
    steps = {int(step_seed(seed, tf.constant(step, tf.int64))) for seed in range(30) for step in range(30)}
    assert len(steps) == 900
    seeds = tf.repeat(tf.range(40), 40)
    keys = mixed_key(seeds, tf.tile(tf.range(40), [40])).numpy()
    assert np.unique(keys).size == 1600


def drop(rate, seed=3, site="h0/attn", layout="", mesh_shape="", compiled=False, x=None, dtype=np.float32):
    """Dropout of ones (or x), and the gradient of its sum weighted by 1, 2, 3, …"""
    x = np.ones(SHAPE, dtype) if x is None else x
    weights = np.arange(x.size, dtype=dtype).reshape(SHAPE) + 1

    def build(x, weights, seed):
        y = dropout(x, rate, seed, site)
        return [y, *mtf.gradients([mtf.reduce_sum(y * weights)], [x])]

    dims = [ROWS, COLUMNS]
    operands = [(x, dims), (weights, dims), (np.int32(seed), [])]
    return on_mesh(build, operands, mesh_shape, layout, compiled=compiled)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_rate_and_scale(rate):
    y, _ = drop(rate)
    assert set(np.unique(y)) == {np.float32(0), np.float32(1 / (1 - rate))}
    spread = np.sqrt(rate * (1 - rate) / y.size)
    assert abs((y == 0).mean() - rate) < 4 * spread
    assert abs(y.mean() - 1) < 4 * spread / (1 - rate), "the expectation is the input"


def test_the_rate_holds_for_every_row_and_column():
    y, _ = drop(0.25)
    for axis in (0, 1):
        rows, n = (y > 0).sum(axis), SHAPE[axis]
        z = (rows - 0.75 * n) / np.sqrt(0.75 * 0.25 * n)
        assert np.abs(z).max() < 4.5
        assert 0.6 < (z**2).mean() < 1.4, "more alike, or less, than independent draws"


def test_rate_zero_is_the_identity():
    x = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)
    y, gradient = drop(0.0, x=x)
    np.testing.assert_array_equal(y, x)
    assert (gradient > 0).all()


def test_values_are_scaled_not_replaced():
    x = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)
    y, _ = drop(0.5, x=x)
    mask, _ = drop(0.5)
    np.testing.assert_array_equal(y, x * mask)


def test_the_gradient_has_the_same_mask():
    y, gradient = drop(0.3)
    weights = np.arange(y.size, dtype=np.float32).reshape(SHAPE) + 1
    np.testing.assert_allclose(gradient, weights * y, rtol=1e-6)


@pytest.mark.parametrize(
    ("mesh_shape", "layout"),
    [("a:2", "rows:a"), ("a:4", "columns:a"), ("a:2,b:2", "rows:a,columns:b"), ("a:2,b:2", "rows:b")],
)
def test_a_mesh_of_any_shape_draws_the_same_mask(mesh_shape, layout):
    for found, wanted in zip(drop(0.3, mesh_shape=mesh_shape, layout=layout), drop(0.3), strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_compiled_draws_the_same_mask():
    # A negative seed as well: keys are unsigned.
    for seed in (3, -3):
        np.testing.assert_array_equal(drop(0.3, seed=seed, compiled=True)[0], drop(0.3, seed=seed)[0])


def test_masks_differ_between_seeds_and_sites():
    masks = [drop(0.5, seed=seed, site=site)[0] > 0 for seed in (3, 4, -3) for site in ("h0/attn", "h1/attn", "embed")]
    noise = 0.5 / np.sqrt(masks[0].size)
    for i, a in enumerate(masks):
        for b in masks[:i]:
            assert abs((a == b).mean() - 0.5) < 5 * noise
