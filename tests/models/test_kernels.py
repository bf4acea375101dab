"""Plain functions on slices, and embedding lookups: forward and gradient, for any layout."""

from __future__ import annotations

from gpt_mesh.meshes.compat import mtf

import numpy as np
import pytest
import tensorflow as tf

from gpt_mesh.models.kernels import embedding_lookup, kernel
from tests.support.models import Dim, on_mesh

BATCH, INNER, COLUMNS = Dim("batch", 8), Dim("inner", 6), Dim("columns", 4)
LAYOUTS = [
    ("", ""),
    ("a:2", "batch:a"),
    ("a:4", "batch:a"),
    ("a:2", "columns:a"),
    ("a:2,b:2", "batch:a,columns:b"),
    ("a:2,b:2", "batch:b"),
]


def random(*shape):
    return np.random.default_rng(sum(shape)).standard_normal(shape)


def affine(x: tf.Tensor, w: tf.Tensor, gain: tf.Tensor, shift: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """tanh(x·w)·gain + shift, and its square: a weight without `batch`, a gain without `inner`, a scalar."""
    y = tf.tanh(tf.einsum("bi,ic->bc", x, w)) * gain + shift
    return y, tf.square(y)


# XLA compiles for one device.
@pytest.mark.parametrize(("mesh_shape", "layout", "compiled"), [("", "", True)] + [(*case, False) for case in LAYOUTS])
def test_gradients_with_replicated_inputs_beside_split_ones(mesh_shape, layout, compiled):
    x, w, gain, shift = random(8, 6), random(6, 4), random(4), np.float64(0.3)
    weights = random(8, 4)

    def build(x, w, gain, shift, weights):
        shape = mtf.Shape([BATCH, COLUMNS])
        outputs = [(shape, tf.float64)] * 2
        y, square = kernel(affine, [x, w, gain, shift], outputs, [BATCH, COLUMNS], "affine")
        loss = mtf.reduce_sum(y * weights) + mtf.reduce_sum(square)
        return [y, square, *mtf.gradients([loss], [x, w, gain, shift])]

    operands = [
        (x, [BATCH, INNER]),
        (w, [INNER, COLUMNS]),
        (gain, [COLUMNS]),
        (shift, []),
        (weights, [BATCH, COLUMNS]),
    ]
    found = on_mesh(build, operands, mesh_shape, layout, compiled=compiled)

    inputs = [tf.constant(a) for a in (x, w, gain, shift)]
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        y, square = affine(*inputs)
        loss = tf.reduce_sum(y * weights) + tf.reduce_sum(square)
    wanted = [y, square, *tape.gradient(loss, inputs)]
    for name, a, b in zip(["y", "square", "dx", "dw", "dgain", "dshift"], found, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12, err_msg=name)


@pytest.mark.parametrize(("mesh_shape", "layout"), LAYOUTS[:3])
def test_an_output_that_nothing_uses_and_an_input_of_integers_have_no_gradient(mesh_shape, layout):
    x, ids = random(8, 6), np.arange(8, dtype=np.int32) % 6

    def pick(x: tf.Tensor, ids: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        chosen = tf.gather(x, ids, axis=1, batch_dims=1)
        return chosen, chosen * 7.0

    def build(x, ids):
        outputs = [(mtf.Shape([BATCH]), tf.float64)] * 2
        chosen, _ = kernel(pick, [x, ids], outputs, [BATCH], "pick")
        gradients = mtf.gradients([mtf.reduce_sum(mtf.square(chosen))], [x, ids])
        assert gradients[1] is None
        return [chosen, gradients[0]]

    chosen, gradient = on_mesh(build, [(x, [BATCH, INNER]), (ids, [BATCH])], mesh_shape, layout)
    wanted = np.zeros_like(x)
    wanted[np.arange(8), ids] = 2 * x[np.arange(8), ids]
    np.testing.assert_allclose(chosen, x[np.arange(8), ids])
    np.testing.assert_allclose(gradient, wanted)


@pytest.mark.parametrize(("mesh_shape", "layout"), [("", ""), ("a:2", "inner:a"), ("a:2,b:2", "inner:a,batch:b")])
def test_an_input_whose_sum_over_devices_is_pending(mesh_shape, layout):
    x, w = random(8, 6), random(6, 4)

    def build(x, w):
        product = mtf.einsum([x, w], output_shape=[BATCH, COLUMNS])  # `inner` is summed over devices, lazily
        [y] = kernel(tf.square, [product], [(product.shape, tf.float64)], [BATCH, COLUMNS], "square")
        return [y, *mtf.gradients([mtf.reduce_sum(y)], [x, w])]

    found = on_mesh(build, [(x, [BATCH, INNER]), (w, [INNER, COLUMNS])], mesh_shape, layout)
    for a, b in zip(found, [(x @ w) ** 2, 2 * (x @ w) @ w.T, x.T @ (2 * (x @ w))], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)


@pytest.mark.parametrize("recompute", [False, True])
def test_a_compiled_gradient_is_the_same_where_the_inside_is_computed_again(recompute):
    rows = Dim("rows", 6)
    x = np.random.default_rng(0).standard_normal(6)

    def build(x):
        (y,) = kernel(lambda x: tf.square(tf.tanh(x)), [x], [(x.shape, x.dtype)], [rows], "f", recompute=recompute)
        return [y, *mtf.gradients([y], [x])]

    y, dx = on_mesh(build, [(x, [rows])], compiled=True)
    np.testing.assert_allclose(y, np.tanh(x) ** 2, rtol=1e-12)
    np.testing.assert_allclose(dx, 2 * np.tanh(x) * (1 - np.tanh(x) ** 2), rtol=1e-10)


def test_a_split_dimension_that_must_be_whole_is_refused_by_name():
    def build(x):
        return kernel(tf.nn.softmax, [x], [(x.shape, x.dtype)], [BATCH], "softmax")

    operands = [(random(8, 6), [BATCH, INNER])]
    np.testing.assert_allclose(on_mesh(build, operands, "a:2", "batch:a")[0].sum(-1), 1)
    with pytest.raises(ValueError, match=r"softmax: dimension .*inner.* is split, but this operation needs it whole"):
        on_mesh(build, operands, "a:2", "inner:a")


ROWS, SEQUENCE, FEATURES = Dim("rows", 12), Dim("sequence", 5), Dim("features", 4)


def lookup_reference(table, ids, weights):
    """Rows by id and the gradient of their weighted sum; ids out of range give zeros and none."""
    out, gradient = np.zeros((*ids.shape, table.shape[1])), np.zeros_like(table)
    for place in np.ndindex(ids.shape):
        if 0 <= ids[place] < len(table):
            out[place] = table[ids[place]]
            gradient[ids[place]] += weights[place]
    return out, gradient


@pytest.mark.parametrize(
    ("mesh_shape", "layout", "compiled"),
    [
        ("", "", True),
        ("", "", False),
        ("a:2", "batch:a", False),
        ("a:4", "rows:a", False),
        ("a:2,b:2", "batch:a,rows:b", False),
        ("a:2,b:2", "batch:a,features:b", False),
        ("a:2,b:2,c:2", "batch:a,rows:b,features:c", False),
        ("a:2,b:2", "batch:b", False),
    ],
)
def test_embedding_lookup(mesh_shape, layout, compiled):
    table, weights = random(12, 4), random(8, 5, 4)
    ids = np.random.default_rng(0).integers(0, 12, (8, 5)).astype(np.int32)
    ids[0, 0], ids[1, 1], ids[2, 2], ids[7, 4] = -1, 12, 2**31 - 1, -(2**31)
    ids[3] = 7  # one row many times

    def build(table, ids, weights):
        out = embedding_lookup(table, ids, ROWS)
        return [out, *mtf.gradients([mtf.reduce_sum(out * weights)], [table])]

    dims = [BATCH, SEQUENCE, FEATURES]
    operands = [(table, [ROWS, FEATURES]), (ids, dims[:2]), (weights, dims)]
    out, gradient = on_mesh(build, operands, mesh_shape, layout, compiled=compiled)
    wanted, wanted_gradient = lookup_reference(table, ids, weights)
    np.testing.assert_array_equal(out, wanted)
    np.testing.assert_allclose(gradient, wanted_gradient, rtol=1e-12, atol=1e-12)


def test_embedding_lookup_of_positions():
    table, ids = random(12, 4), np.array([11, 0, 3, 3, 5], np.int32)
    [out] = on_mesh(lambda t, i: [embedding_lookup(t, i, ROWS)], [(table, [ROWS, FEATURES]), (ids, [SEQUENCE])])
    np.testing.assert_array_equal(out, table[ids])
