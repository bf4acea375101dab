"""What is written in C, beside NumPy's float64, in shapes that fill no vector, tile or block, and in some that do."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from gpt_mesh.meshes import cpu_matmul, native
from gpt_mesh.models import activations, norms
from gpt_mesh.models.attention import native as native_attention
from gpt_mesh.models.attention.backend import View

import tensorflow as tf  # isort: skip  (after compat, which quiets its start-up)

pytestmark = pytest.mark.skipif(not native.find_compiler(), reason="there is no C compiler")

Array = np.ndarray
RNG = np.random.default_rng(0)
BEGIN = RNG.bit_generator.state


@pytest.fixture(autouse=True)
def _the_same_numbers_in_any_order_of_tests() -> None:
    RNG.bit_generator.state = BEGIN


def drawn(*shape: int) -> Array:
    return RNG.standard_normal(shape).astype(np.float32)


def compiled(function: Callable[..., Any], *args: Any) -> list[Array]:
    assert native.known()
    found = tf.function(function, jit_compile=True, autograph=False)(*(tf.constant(x) for x in args))
    return [x.numpy() for x in (found if isinstance(found, (tuple, list)) else [found])]


def assert_near(found: Array, wanted: Array, tolerance: float) -> None:
    """To a part of the largest of them."""
    np.testing.assert_allclose(found, wanted, rtol=0, atol=tolerance * np.abs(wanted).max())


@pytest.mark.parametrize("transposed_x", [False, True])
@pytest.mark.parametrize("transposed_y", [False, True])
@pytest.mark.parametrize(
    "sizes",
    [(1, 1, 1), (5, 7, 3), (13, 300, 33), (64, 64, 64), (541, 5, 70), (129, 513, 65), (24, 1, 96), (700, 260, 8)],
)
def test_matmuls(sizes: tuple[int, int, int], transposed_x: bool, transposed_y: bool) -> None:
    rows, summed, columns = sizes
    x, y = drawn(rows, summed), drawn(summed, columns)
    given = np.ascontiguousarray(x.T) if transposed_x else x, np.ascontiguousarray(y.T) if transposed_y else y
    (found,) = compiled(lambda x, y: cpu_matmul.many_rows(x, y, transposed_x, transposed_y), *given)
    np.testing.assert_allclose(found, x.astype(np.float64) @ y, rtol=0, atol=4e-6 * summed**0.5)


def test_a_row_does_not_depend_on_others() -> None:
    x, y = drawn(600, 300), drawn(300, 130)
    (together,) = compiled(cpu_matmul.many_rows, x, y)
    for first, end in [(0, 1), (5, 100), (599, 600)]:
        (some,) = compiled(cpu_matmul.many_rows, x[first:end], y)
        np.testing.assert_array_equal(some, together[first:end])


def test_products_of_nothing() -> None:
    assert compiled(cpu_matmul.many_rows, drawn(0, 9), drawn(9, 5))[0].shape == (0, 5)
    np.testing.assert_array_equal(compiled(cpu_matmul.many_rows, drawn(3, 0), drawn(0, 5))[0], np.zeros((3, 5)))


def attention(
    q: Array, k: Array, v: Array, causal: bool, window: int | None, slopes: Array | None = None
) -> tuple[Array, Array]:
    """The attended and the weights, [batch, heads, queries, keys]."""
    places = np.arange(q.shape[1])
    distance = places[:, None] - places[None, :]
    seen = (distance >= 0) if causal else np.ones_like(distance, bool)
    if window is not None:
        seen &= np.abs(distance) < window
    logits = np.einsum("bqhf,bkhf->bhqk", q, k)
    if slopes is not None:
        logits = logits - slopes[:, None, None] * np.abs(distance)
    logits = np.where(seen, logits, -np.inf)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return np.einsum("bhqk,bkhf->bqhf", weights, v), weights


def check_attention(
    sizes: tuple[int, int, int, int], kv_heads: int, causal: bool, window: int | None, slopes: Array | None
) -> None:
    """Result and gradients, against float64."""
    batch, positions, heads, features = sizes
    shared = heads // kv_heads
    q, upstream = drawn(*sizes), drawn(*sizes)
    k, v = (drawn(batch, positions, kv_heads, features) for _ in range(2))
    q *= 0.5
    wide_q, wide_k, wide_v, dy = (x.astype(np.float64) for x in (q, k.repeat(shared, 2), v.repeat(shared, 2), upstream))
    wanted, weights = attention(wide_q, wide_k, wide_v, causal, window, slopes)
    view = View(causal, window)

    def both(q: tf.Tensor, k: tf.Tensor, v: tf.Tensor, upstream: tf.Tensor, *slopes: tf.Tensor) -> tuple[Any, ...]:
        found = native_attention.attend(q, k, v, view, *slopes)
        return *found, *native_attention.gradient(q, k, v, *found, upstream, view, *slopes)

    given = [q, k, v, upstream, *([] if slopes is None else [slopes])]
    attended, log_sums, dq, dk, dv = compiled(both, *given)
    assert_near(attended, wanted, 2e-6)
    own = np.einsum("bqhf,bqhf->bhq", wide_q, wide_k)  # a query sees its own key: the sum's logarithm follows from that
    assert_near(log_sums, own - np.log(np.einsum("bhqq->bhq", weights)), 3e-6)
    by_weights = np.einsum("bqhf,bkhf->bhqk", dy, wide_v)
    by_logits = weights * (by_weights - (by_weights * weights).sum(-1, keepdims=True))
    scale = np.abs(dy).max()  # a query that sees one key alone has a gradient of zero
    by_group = [
        np.einsum("bhqk,bqhf->bkhf", x, y).reshape(batch, positions, kv_heads, shared, features).sum(3)
        for x, y in ((by_logits, wide_q), (weights, dy))
    ]
    for found, exact in zip((dq, dk, dv), [np.einsum("bhqk,bkhf->bqhf", by_logits, wide_k), *by_group], strict=True):
        np.testing.assert_allclose(found, exact, rtol=0, atol=1e-5 * max(scale, np.abs(exact).max()))


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("window", [None, 1, 50])
@pytest.mark.parametrize("sizes", [(2, 1, 1, 8), (1, 40, 3, 5), (2, 64, 2, 16), (1, 200, 2, 64), (1, 131, 1, 70)])
def test_attention(sizes: tuple[int, int, int, int], causal: bool, window: int | None) -> None:
    check_attention(sizes, sizes[2], causal, window, None)


# With few heads of keys and values and with many, that is with and without gradients that are sums of parts.
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("window", [None, 50])
@pytest.mark.parametrize(
    ("sizes", "kv_heads", "sloped"),
    [
        ((2, 120, 6, 16), 2, False),
        ((2, 120, 6, 16), 2, True),
        ((1, 200, 3, 8), 1, True),
        ((1, 131, 3, 70), 3, True),
        ((9, 40, 4, 8), 2, True),
        ((1, 40, 40, 8), 1, False),
    ],
)
def test_attention_of_grouped_heads_and_with_slopes(
    sizes: tuple[int, int, int, int], kv_heads: int, sloped: bool, causal: bool, window: int | None
) -> None:
    slopes = np.array([2.0 ** -(i + 1) for i in range(sizes[2])], np.float32) if sloped else None
    check_attention(sizes, kv_heads, causal, window, slopes)


def test_attention_over_many_positions() -> None:
    """More than a block of queries has room for scores with."""
    sizes = (1, 9000, 1, 4)
    q, k, v = (drawn(*sizes) for _ in range(3))
    attended, _ = compiled(lambda q, k, v: native_attention.attend(q, k, v, View(True, None)), q, k, v)
    for position in (0, 4095, 8999):
        scores = (q[0, position, 0].astype(np.float64) * k[0, : position + 1, 0]).sum(-1)
        weights = np.exp(scores - scores.max())
        assert_near(attended[0, position, 0], weights @ v[0, : position + 1, 0] / weights.sum(), 3e-6)


@pytest.mark.parametrize("window", [None, 50])
def test_gradients_of_attention_over_many_positions(window: int | None) -> None:
    """Blocks shorter than others are, beside a block of scores in NumPy: of the last positions alone."""
    sizes, last = (1, 3500, 1, 4), 100
    q, k, v = (drawn(*sizes) for _ in range(3))
    upstream = np.zeros(sizes, np.float32)
    upstream[:, -last:] = drawn(1, last, 1, 4)

    def both(q: tf.Tensor, k: tf.Tensor, v: tf.Tensor, upstream: tf.Tensor) -> tuple[tf.Tensor, ...]:
        found = native_attention.attend(q, k, v, View(True, window))
        return native_attention.gradient(q, k, v, *found, upstream, View(True, window))

    found = compiled(both, q, k, v, upstream)
    wide_q, wide_k, wide_v, dy = (x[0, :, 0].astype(np.float64) for x in (q, k, v, upstream))
    distance = np.arange(sizes[1])[-last:, None] - np.arange(sizes[1])[None, :]
    seen = (distance >= 0) & (distance < (window or sizes[1]))
    scores = np.where(seen, wide_q[-last:] @ wide_k.T, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    by_weights = dy[-last:] @ wide_v.T
    by_scores = weights * (by_weights - (by_weights * weights).sum(-1, keepdims=True))
    dq = np.zeros_like(wide_q)
    dq[-last:] = by_scores @ wide_k
    for x, exact in zip(found, [dq, by_scores.T @ wide_q[-last:], weights.T @ dy[-last:]], strict=True):
        np.testing.assert_allclose(x[0, :, 0], exact, rtol=0, atol=1e-5 * np.abs(exact).max())


def vocabulary_loss(
    x: Array, weight: Array, labels: Array, shares: Array, bias: Array, z_loss: float, cap: float
) -> tuple[float, float, Array, Array, Array]:
    raw = x.astype(np.float64) @ weight.T.astype(np.float64) + bias
    scores = cap * np.tanh(raw / cap) if cap else raw
    peak = scores.max(-1, keepdims=True)
    log_z = (peak + np.log(np.exp(scores - peak).sum(-1, keepdims=True)))[:, 0]
    nll = log_z - scores[np.arange(len(x)), labels]
    probabilities = np.exp(scores - log_z[:, None])
    by_scores = probabilities * (shares * (1 + 2 * z_loss * log_z))[:, None]
    by_scores[np.arange(len(x)), labels] -= shares
    by_scores *= 1 / np.cosh(raw / cap) ** 2 if cap else 1.0
    objective = (shares * (nll + z_loss * log_z**2)).sum()
    return objective, (shares * nll).sum(), by_scores @ weight, by_scores.T @ x, by_scores.sum(0)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(
    ("tokens", "width", "vocab", "chunk"), [(1, 3, 5, 1), (70, 20, 300, 70), (70, 70, 33, 32), (301, 65, 1100, 100)]
)
@pytest.mark.parametrize(("biased", "cap"), [(False, 0.0), (True, 0.0), (False, 5.0), (True, 5.0)])
def test_the_loss_over_a_vocabulary(
    tokens: int, width: int, vocab: int, chunk: int, transposed: bool, biased: bool, cap: float
) -> None:
    x, weight, shares = drawn(tokens, width), drawn(vocab, width), RNG.random(tokens).astype(np.float32)
    labels, bias = RNG.integers(0, vocab, tokens).astype(np.int32), 2 * drawn(vocab) * biased
    shapes = [[], [], x.shape, weight.shape[::-1] if transposed else weight.shape, *[[vocab]] * biased]
    shapes += [[chunk, vocab // 16 * 16 + 16], [chunk, width], [4, tokens]]

    def loss(*given: tf.Tensor) -> list[tf.Tensor]:
        results = [tf.TensorSpec(shape, tf.float32) for shape in shapes]
        settings = {"z_loss": 0.1, "transposed": transposed, "cap": cap}
        return native.call("vocabulary_loss", given, results, settings)[:-3]

    given_weight = np.ascontiguousarray(weight.T) if transposed else weight
    objective, nll, dx, dweight, *dbias = compiled(loss, x, given_weight, labels, shares, *[bias] * biased)
    wanted = vocabulary_loss(x, weight, labels, shares, bias, 0.1, cap)
    gradients = [dx, dweight.T if transposed else dweight, *dbias]
    for found, exact in zip([objective, nll, *gradients], wanted[: 4 + biased], strict=True):
        assert_near(found, np.asarray(exact), 5e-6)


@pytest.mark.parametrize("bits", [0x7FC00000, 0x7FC00001, 0xFFFFFFFF])
@pytest.mark.parametrize("place", ["x", "weight"])
def test_what_is_no_number_stays_no_number(place: str, bits: int) -> None:
    x, weight, labels = drawn(8, 16), drawn(40, 16), np.zeros(8, np.int32)
    (x if place == "x" else weight).view(np.uint32)[3, 2] = bits
    shapes = [[], [], x.shape, weight.shape, [8, 48], [8, 16], [4, 8]]
    results = [tf.TensorSpec(shape, tf.float32) for shape in shapes]
    for cap in (0.0, 5.0):
        how = {"cap": cap}
        found = compiled(
            lambda *given, how=how: native.call("vocabulary_loss", given, results, how)[:2], x, weight, labels, x[:, 0]
        )
        assert np.isnan(found).all()
    q = drawn(1, 8, 1, 16)
    q[0, 3] = np.nan
    attended, _ = compiled(lambda q: native_attention.attend(q, q, q, View(True, None)), q)
    assert np.isnan(attended[0, 3:]).all()


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (65, 64), (200, 100), (2, 3, 16)])
@pytest.mark.parametrize(
    ("centred", "biased"), [(True, True), (True, False), (False, False)], ids=["layer", "layer, no bias", "RMS"]
)
def test_norms(shape: tuple[int, ...], centred: bool, biased: bool) -> None:
    x, dy, gain, bias = 3 * drawn(*shape) + 2, drawn(*shape), drawn(shape[-1]), drawn(shape[-1])
    epsilon = 1e-3
    forward, backward = norms._by_native(epsilon, centred)

    def both(x: tf.Tensor, dy: tf.Tensor, *weights: tf.Tensor) -> tuple[tf.Tensor, ...]:
        y = forward(x, *weights)
        return y, *backward(x, *weights, y, dy)

    wide = x.astype(np.float64)
    wide -= wide.mean(-1, keepdims=True) * centred
    inverse = 1 / np.sqrt((wide**2).mean(-1, keepdims=True) + epsilon)
    normal, scaled = wide * inverse, dy * gain.astype(np.float64)
    along = (scaled * normal).mean(-1, keepdims=True)
    dx = inverse * (scaled - scaled.mean(-1, keepdims=True) * centred - normal * along)
    rows = tuple(range(len(shape) - 1))
    y, *gradients = compiled(both, x, dy, gain, *[bias] * biased)
    assert_near(y, normal * gain + bias * biased, 2e-6)
    wanted = [dx, (dy * normal).sum(rows), *[dy.astype(np.float64).sum(rows)] * biased]
    for found, exact in zip(gradients, wanted, strict=True):
        np.testing.assert_allclose(found, exact, rtol=0, atol=5e-6 * max(inverse.max(), np.abs(exact).max()))


def gelu(x: Array) -> Array:
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (65, 64), (200, 100), (2, 3, 16)])
def test_gelu(shape: tuple[int, ...]) -> None:
    x, dy, bias = 3 * drawn(*shape), drawn(*shape), drawn(shape[-1])

    def both(x: tf.Tensor, bias: tf.Tensor, dy: tf.Tensor) -> tuple[tf.Tensor, ...]:
        y = activations._native_gelu(x, bias)
        return y, *activations._native_gelu_gradient(x, bias, y, dy)

    wide, step = x.astype(np.float64) + bias, 1e-6
    dx = dy * (gelu(wide + step) - gelu(wide - step)) / (2 * step)
    y, *gradients = compiled(both, x, bias, dy)
    assert_near(y, gelu(wide), 1e-6)
    for found, exact in zip(gradients, [dx, dx.sum(tuple(range(len(shape) - 1)))], strict=True):
        np.testing.assert_allclose(found, exact, rtol=0, atol=2e-6 * np.abs(dx).max() * x.shape[0])


def test_gelu_of_what_is_large_small_and_no_number() -> None:
    x = np.array([[-1e30, -200.0, -12.0, -1e-30, 0.0, 1e-30, 12.0, 200.0, 1e30, np.nan]], np.float32)

    def both(x: tf.Tensor) -> tuple[tf.Tensor, ...]:
        zero = tf.zeros([x.shape[-1]])
        return activations._native_gelu(x, zero), activations._native_gelu_gradient(x, zero, x, tf.ones_like(x))[0]

    y, slope = compiled(both, x)
    np.testing.assert_allclose(y, [[0, 0, 0, -5e-31, 0, 5e-31, 12, 200, 1e30, np.nan]], rtol=1e-6, atol=1e-37)
    np.testing.assert_allclose(slope, [[0, 0, 0, 0.5, 0.5, 0.5, 1, 1, 1, np.nan]], rtol=1e-6, atol=1e-37)


@pytest.mark.parametrize("shape", [(1,), (5, 7), (16384,), (3, 7001)])
def test_sums_of_squares(shape: tuple[int, ...]) -> None:
    x = drawn(*shape)
    (found,) = compiled(lambda x: native.call("sum_of_squares", [x], [tf.TensorSpec([], tf.float32)]), x)
    np.testing.assert_allclose(found, (x.astype(np.float64) ** 2).sum(), rtol=1e-6)


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("shape", [(3,), (70, 501)])
def test_adam(shape: tuple[int, ...], decay: float) -> None:
    w, g, m, v, lr, scale = drawn(*shape), drawn(*shape), drawn(*shape), drawn(*shape) ** 2, 0.01, 0.7
    variables = [tf.Variable(x) for x in (w, m, v)]

    def step(g: tf.Tensor, lr: tf.Tensor, scale: tf.Tensor) -> None:
        w, m, v = variables
        operands = [w.read_value(), g, m.read_value(), v.read_value(), lr, scale]
        constants = {"beta1": 0.9, "beta2": 0.95, "epsilon": 1e-8, "decay": decay}
        found = native.call("adam", operands, [tf.TensorSpec(shape, tf.float32)] * 3, constants, {0: 0, 1: 2, 2: 3})
        for variable, value in zip(variables, found, strict=True):
            variable.assign(value)

    assert native.known()
    tf.function(step, jit_compile=True, autograph=False)(*(tf.constant(x, tf.float32) for x in (g, lr, scale)))
    scaled = g.astype(np.float64) * scale
    mean, square = 0.9 * m + 0.1 * scaled, 0.95 * v + 0.05 * scaled**2
    wanted = w - lr * (mean / (np.sqrt(square) + 1e-8) + decay * w)
    for found, exact in zip(variables, (wanted, mean, square), strict=True):
        assert_near(found.numpy(), exact, 1e-6)


ATTENTION = [(1, 4, 2, 8)] * 2
LOSS = [(6, 4), (9, 4), (6,), (6,), (), (), (6, 4), (9, 4), (6, 16), (6, 4), (4, 6)]


@pytest.mark.parametrize(
    ("target", "operands", "results"),
    [
        ("matmul", [(4, 5), (6, 7)], [(4, 7)]),
        ("matmul", [(4, 5), (5, 7)], [(4, 8)]),
        ("matmul", [(4, 5), (5, 7)], [(4, 7), (4, 7)]),
        ("attend", [*ATTENTION, (1, 4, 2, 9)], [(1, 4, 2, 8), (1, 2, 4)]),
        ("attend", [*ATTENTION, (1, 4, 2, 8)], [(1, 4, 2, 8), (1, 4, 2)]),
        ("attend_gradient", [*ATTENTION, (1, 4, 2, 8), (1, 4, 2, 8), (1, 2, 4), (1, 4, 2, 7)], [(1, 4, 2, 8)] * 3),
        ("norm", [(3, 5), (4,)], [(3, 5)]),
        ("norm_gradient", [(3, 5), (5,), (3, 4)], [(3, 5), (5,)]),
        ("gelu", [(3, 5), (4,)], [(3, 5)]),
        ("gelu_gradient", [(3, 5), (5,), (3, 4)], [(3, 5), (5,)]),
        ("adam", [(3, 5)] * 4 + [(), (1,)], [(3, 5)] * 3),
        ("adam", [(3, 5)] * 4 + [(), ()], [(3, 5), (3, 5), (5, 3)]),
        ("vocabulary_loss", [*LOSS[:2], (5,), (6,)], LOSS[4:]),  # the labels are no integers, and too few
        ("vocabulary_loss", LOSS[:4], [*LOSS[4:8], (6, 8), *LOSS[9:]]),  # no room for scores
    ],
)
def test_what_does_not_fit_is_refused(target: str, operands: list[Any], results: list[Any]) -> None:
    specs = [tf.TensorSpec(shape, tf.float32) for shape in results]
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"expected|do not match|are not|must be"):
        compiled(lambda *given: native.call(target, given, specs), *(drawn(*shape) for shape in operands))


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the options are for x86-64")
@pytest.mark.parametrize(
    "options", ["-mno-avx512f", pytest.param("-mno-avx512f -mno-avx", marks=pytest.mark.slow)], ids=["AVX2", "SSE"]
)
def test_processors_with_narrower_vectors(options: str, tmp_path: Any) -> None:
    command = " ".join([*native.find_compiler(), options])
    environment = {**os.environ, "CC": command, "GPT_MESH_CACHE": str(tmp_path)}
    tests = [__file__, os.path.join(os.path.dirname(__file__), "test_cpu_matmul.py")]
    run = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "not narrower", *tests]
    done = subprocess.run(run, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]
    assert list((tmp_path / "native").glob("gpt_mesh-*.so"))
