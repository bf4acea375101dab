"""Products of matrices, compiled for a CPU, beside float64's."""

from __future__ import annotations

import concurrent.futures
from unittest.mock import Mock

import numpy as np
import pytest

from gpt_mesh.meshes import cpu_matmul, native
from tests.support.models import make_engine, tiny_config

import tensorflow as tf  # isort: skip  (after compat, which quiets its start-up)

needs_compiler = pytest.mark.skipif(not native.find_compiler(), reason="there is no C compiler")


def compiled(function, *args):
    return tf.function(function, jit_compile=True, autograph=False)(*args)


def drawn(*shapes: tuple[int, ...], dtype=tf.float32) -> list[tf.Tensor]:
    rng = np.random.default_rng(0)
    return [tf.cast(rng.standard_normal(shape), dtype) for shape in shapes]


def exact(equation: str, *factors: tf.Tensor) -> np.ndarray:
    return np.einsum(equation, *(tf.cast(x, tf.float64).numpy() for x in factors))


@pytest.mark.parametrize(
    ("equation", "rows", "matrix"),
    [
        ("ab,bc->ac", (1, 768), (768, 96)),
        ("abc,cd->abd", (1, 1, 770), (770, 96)),  # two parts
        ("abc,cd->abd", (1, 1, 769), (769, 96)),  # one
        ("abc,cd->abd", (8, 1, 769), (769, 97)),
        ("abc,cd->abd", (2, 3, 769), (769, 97)),
        ("ab,cb->ac", (1, 96), (769, 96)),
        ("abc,dc->abd", (1, 1, 96), (769, 96)),
        ("abc,dc->abd", (5, 1, 96), (769, 96)),
    ],
)
@pytest.mark.parametrize("known", [pytest.param(True, marks=needs_compiler), False])
@pytest.mark.parametrize("dtype", [tf.float32, tf.bfloat16])
def test_a_few_rows_times_a_matrix(equation: str, rows, matrix, known: bool, dtype, monkeypatch) -> None:
    if not known:
        monkeypatch.setattr(native, "known", lambda: False)
    factors = drawn(rows, matrix, dtype=dtype)
    found, wanted = compiled(lambda x, w: cpu_matmul.einsum(equation, x, w), *factors), exact(equation, *factors)
    assert found.dtype == dtype
    tolerance = 1e-6 if dtype == tf.float32 else 2e-2
    np.testing.assert_allclose(tf.cast(found, tf.float64), wanted, rtol=0, atol=tolerance * np.abs(wanted).max())


@needs_compiler
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("rows", [1, 2, 3, 7, 8, 9, 16])
@pytest.mark.parametrize(
    ("batch", "summed", "columns"),
    [((), 100, 33), ((), 3, 1030), ((), 9, 9000), ((2, 3), 65, 130), ((96,), 5, 9), ((64,), 64, 65)],
)
def test_few_rows_of_any_shape(batch, rows: int, summed: int, columns: int, transposed: bool) -> None:
    x, w = drawn((*batch, rows, summed), (*batch, columns, summed) if transposed else (*batch, summed, columns))
    assert native.known()
    found = compiled(lambda x, w: cpu_matmul.few_rows(x, w, "_transposed" * transposed), x, w)
    wanted = exact("...rs,...cs->...rc" if transposed else "...rs,...sc->...rc", x, w)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-6 * summed**0.5)


@needs_compiler
def test_what_does_not_fit_is_refused() -> None:
    assert native.known()
    for shapes in [((4, 300), (256, 256)), ((4, 256), (2, 256, 256)), ((2, 4, 256), (3, 256, 256))]:
        x, w = drawn(*shapes)
        with pytest.raises(tf.errors.InvalidArgumentError, match="do not match"):
            compiled(cpu_matmul.few_rows, x, w)
    with pytest.raises(ValueError, match=r"[Dd]imension"):
        compiled(lambda x, w: cpu_matmul.einsum("ab,bc->ac", x, w), *drawn((4, 300), (256, 256)))
    x, w = drawn((2, 1, 1, 64), (2, 3, 64, 64))
    np.testing.assert_allclose(compiled(cpu_matmul.matmul, x, w), x @ w, rtol=0, atol=1e-5)
    assert compiled(cpu_matmul.few_rows, *drawn((0, 256), (256, 256))).shape == (0, 256)
    assert compiled(cpu_matmul.few_rows, *drawn((4, 256), (256, 0))).shape == (4, 0)
    np.testing.assert_array_equal(compiled(cpu_matmul.few_rows, *drawn((4, 0), (0, 9))), np.zeros((4, 9)))


@needs_compiler
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("limits", [[0, 1, 130], [64, 32, 129], [33, 200, 66]])
def test_only_what_is_known_is_read(rows: int, limits: list[int]) -> None:
    """What is not known is not a number, but within the last steps and columns that are read at once."""
    x, keys = drawn((3, 2, rows, 18), (3, 2, 18, 130))
    weights, values = drawn((3, 2, rows, 130), (3, 2, 130, 18))
    known = np.arange(130) < np.array(limits)[:, None]  # [batch, positions]
    read = np.arange(130) < np.array(limits)[:, None] // 32 * 32 + 32
    keys = tf.where(read[:, None, None, :], keys, np.nan)
    weights = tf.where(known[:, None, None, :], weights, 0.0)
    values = tf.where(read[:, None, :, None], values, np.nan)
    assert native.known()
    of = tf.constant(limits, tf.int32)
    scores = compiled(lambda x, y, of: cpu_matmul.matmul(x, y, kept=of), x, keys, of)
    wanted = np.where(known[:, None, None, :], x @ keys, 0.0)
    np.testing.assert_allclose(np.where(known[:, None, None, :], scores, 0.0), wanted, rtol=0, atol=1e-5)
    assert np.isfinite(scores).all()
    attended = compiled(lambda x, y, of: cpu_matmul.matmul(x, y, summed=of), weights, values, of)
    wanted = weights @ tf.where(known[:, None, :, None], values, 0.0)
    np.testing.assert_allclose(attended, wanted, rtol=0, atol=1e-5)


@needs_compiler
@pytest.mark.parametrize("transposed", [False, True])
def test_a_row_is_the_same_beside_any_others(transposed: bool) -> None:
    x, w = drawn((16, 770), (515, 770) if transposed else (770, 515))
    assert native.known()
    together = compiled(lambda x, w: cpu_matmul.few_rows(x, w, "_transposed" * transposed), x, w).numpy()
    for first, end in [(0, 1), (3, 10), (4, 8), (1, 16)]:
        some = compiled(lambda x, w: cpu_matmul.few_rows(x, w, "_transposed" * transposed), x[first:end], w)
        np.testing.assert_array_equal(some, together[first:end])


@needs_compiler
def test_many_at_once_end_and_are_right() -> None:
    """More callers than XLA has threads, each of which needs several."""
    x, *matrices = drawn((8, 512), *[(512, 512)] * 8)

    def chain(x, *matrices):
        for w in matrices * 4:
            x = cpu_matmul.einsum("ab,bc->ac", x, w) / 32.0
        return x

    function = tf.function(chain, jit_compile=True, autograph=False)
    wanted = function(x, *matrices).numpy()
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        for found in pool.map(lambda _: function(x, *matrices).numpy(), range(64)):
            np.testing.assert_array_equal(found, wanted)


@needs_compiler
@pytest.mark.parametrize(
    ("equation", "left", "right"),
    [
        ("ab,bc->ac", (17, 768), (768, 96)),
        ("ab,cb->ac", (9, 96), (768, 96)),
        ("bc,ab->ac", (768, 96), (3, 768)),  # the matrix first
        ("abc,cd->abd", (3, 50, 70), (70, 33)),
        ("abc,dc->abd", (3, 50, 70), (33, 70)),
        ("abc,abd->cd", (3, 50, 70), (3, 50, 33)),  # as gradients of weights
        ("abc,cde->abde", (3, 50, 70), (70, 3, 11)),
        ("abcd,ecd->abe", (2, 30, 7, 11), (29, 7, 11)),
    ],
)
def test_many_rows(equation: str, left, right, monkeypatch) -> None:
    factors, many_rows = drawn(left, right), Mock(wraps=cpu_matmul.many_rows)
    monkeypatch.setattr(cpu_matmul, "many_rows", many_rows)
    found = compiled(lambda x, y: cpu_matmul.einsum(equation, x, y), *factors)
    np.testing.assert_allclose(found, exact(equation, *factors), rtol=0, atol=1e-4)
    assert many_rows.call_count == 1


@pytest.mark.parametrize("shapes", [[(17, 768), (700, 96)], [(3, 17, 768), (96, 700)]])
def test_factors_that_do_not_fit_are_refused_by_tensorflow(shapes) -> None:
    equation = "ab,bc->ac" if len(shapes[0]) == 2 else "abc,dc->abd"
    with pytest.raises(ValueError, match=r"[Dd]imension"):
        compiled(lambda x, y: cpu_matmul.einsum(equation, x, y), *drawn(*shapes))


@pytest.mark.parametrize(
    ("equation", "shapes"),
    [
        ("ab,cb->ac", [(9, 16), (96, 16)]),  # small matrices
        ("ab,bc->ac", [(1, 16), (16, 96)]),
        ("abc,bcd->abd", [(9, 8, 96), (8, 96, 96)]),  # a batch
        ("abc,adc->abd", [(9, 8, 96), (9, 96, 96)]),
        ("abc,cad->bd", [(9, 16, 96), (96, 9, 96)]),  # what is summed in another order
        ("abc,cd->bad", [(9, 16, 96), (96, 96)]),  # the result in another order
        ("ab,bc->a", [(96, 768), (768, 96)]),
        ("ab,c->abc", [(96, 768), (96,)]),
        ("ab,b->a", [(96, 768), (768,)]),
        ("ab,bc,cd->ad", [(1, 768), (768, 96), (96, 768)]),
        ("ab,ab->ab", [(1, 2**16), (1, 2**16)]),
    ],
)
def test_any_other_product_is_left_as_it_is(equation: str, shapes: list[tuple[int, ...]]) -> None:
    factors = drawn(*shapes)
    np.testing.assert_array_equal(cpu_matmul.einsum(equation, *factors), tf.einsum(equation, *factors))


def test_products_of_batches_are_matmuls() -> None:
    for shapes in [((2, 3, 1, 64), (2, 3, 64, 32)), ((2, 17, 64), (2, 64, 32)), ((2, 1, 8), (2, 8, 8))]:
        x, w = drawn(*shapes)
        found = compiled(cpu_matmul.matmul, x, w)
        np.testing.assert_allclose(found, exact("...rs,...sc->...rc", x, w), rtol=0, atol=2e-5)


def test_only_what_is_compiled_for_cpus_takes_it() -> None:
    for keys, is_compiled in (({}, True), ({}, False), ({"fused_ops": False}, True)):
        mesh = make_engine(tiny_config(**keys), compiled=is_compiled).mesh_impl
        assert mesh.cpu_kernels is (is_compiled and not keys)
