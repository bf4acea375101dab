"""Products of a vector and a matrix, compiled for a CPU, beside float64's."""

from __future__ import annotations

import numpy as np
import pytest

from meshes import products
from tests.support.models import make_engine, tiny_config

import tensorflow as tf  # isort: skip  (after compat, which quiets its start-up)


@pytest.mark.parametrize(
    ("equation", "vector", "matrix"),
    [
        ("ab,bc->ac", (1, 768), (768, 96)),
        ("abc,cd->abd", (1, 1, 770), (770, 96)),  # two parts
        ("abc,cd->abd", (1, 1, 769), (769, 96)),  # one
        ("ab,cb->ac", (1, 96), (769, 96)),
        ("abc,dc->abd", (1, 1, 96), (769, 96)),
    ],
)
@pytest.mark.parametrize("dtype", [tf.float32, tf.bfloat16])
def test_a_vector_times_a_matrix(equation: str, vector: tuple[int, ...], matrix: tuple[int, ...], dtype) -> None:
    rng = np.random.default_rng(0)
    x, w = (tf.cast(rng.standard_normal(shape), dtype) for shape in (vector, matrix))
    function = tf.function(lambda x, w: products.einsum(equation, x, w), jit_compile=True, autograph=False)
    exact = np.einsum(equation, *(tf.cast(t, tf.float64).numpy() for t in (x, w)))
    found = function(x, w)
    assert found.dtype == dtype
    tolerance = 1e-6 if dtype == tf.float32 else 2e-2
    np.testing.assert_allclose(tf.cast(found, tf.float64), exact, rtol=0, atol=tolerance * np.abs(exact).max())


@pytest.mark.parametrize(
    ("equation", "shapes"),
    [
        ("ab,bc->ac", [(2, 768), (768, 96)]),  # two vectors
        ("ab,bc->ac", [(1, 16), (16, 96)]),  # a small matrix
        ("bc,ab->ac", [(768, 96), (1, 768)]),  # the matrix first
        ("ab,b->a", [(96, 768), (768,)]),
        ("ab,bc,cd->ad", [(1, 768), (768, 96), (96, 768)]),
        ("ab,ab->ab", [(1, 2**16), (1, 2**16)]),
    ],
)
def test_any_other_product_is_left_as_it_is(equation: str, shapes: list[tuple[int, ...]]) -> None:
    rng = np.random.default_rng(0)
    factors = [tf.constant(rng.standard_normal(shape), tf.float32) for shape in shapes]
    np.testing.assert_array_equal(products.einsum(equation, *factors), tf.einsum(equation, *factors))


def test_only_what_is_compiled_for_cpus_takes_it() -> None:
    for compiled in (True, False):
        assert make_engine(tiny_config(), compiled=compiled).mesh_impl.compiled_on_cpu is compiled
