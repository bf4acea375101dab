"""Attention by a stream of blocks, against all pairs of positions in NumPy float64 and, in training, against the plain
operations; and the size of what it holds.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from gpt_mesh.meshes.compat import mtf

import numpy as np
import pytest
import tensorflow as tf

from gpt_mesh.engine.engine import DeviceEngine
from gpt_mesh.models.attention import native, streaming
from gpt_mesh.models.attention.backend import View
from gpt_mesh.models.attention.streaming import Streaming, Streams
from gpt_mesh.models.positions import Bias
from tests.support.models import enlarge_weights, make_engine, tiny_config, token_batch

BATCH, FEATURES, LEARNED = 2, 4, 2
Array = np.ndarray


def all_pairs(
    q: Array, k: Array, v: Array, memory: Sequence[Array], slopes: Array | None, view: View
) -> tuple[Array, Array]:
    """The attended, and the logarithms of the denominators; slopes: of a bias that is negative and linear."""
    shared, places = q.shape[2] // k.shape[2], np.arange(q.shape[1])
    k, v, *memory = (x.repeat(shared, -2) for x in (k, v, *memory))
    distance = places[:, None] - places[None, :]
    window = view.window or len(places)
    seen = (distance < window) & (distance >= 0) if view.causal else abs(distance) < window
    logits = np.einsum("bqhf,bkhf->bhqk", q, k)
    if slopes is not None:
        logits = logits - slopes[:, None, None] * abs(distance)
    logits = np.where(seen, logits, -np.inf)
    if memory:
        logits = np.concatenate([np.einsum("bqhf,mhf->bhqm", q, memory[0]), logits], -1)
        v = np.concatenate([np.stack([memory[1]] * len(v)), v], 1)
    log_sums = np.log(np.exp(logits).sum(-1))
    return np.einsum("bhqk,bkhf->bqhf", np.exp(logits - log_sums[..., None]), v), log_sums


def linear(query: tf.Tensor, key: tf.Tensor, slopes: tf.Tensor) -> tf.Tensor:
    return -slopes[:, None, None] * tf.cast(tf.abs(query - key), slopes.dtype)


def differentiated(
    streams: Streams, given: Sequence[tf.Tensor], learned: int, upstream: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor, tuple[tf.Tensor, ...]]:
    q, k, v, *rest = given
    memory, operands = rest[:learned], rest[learned:]
    attended, log_sums = streams.attend(q, k, v, memory, operands)
    return attended, log_sums, streams.gradient(q, k, v, memory, operands, attended, log_sums, upstream)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(
    ("positions", "window", "block", "heads", "kv_heads", "learned", "biased"),
    [
        (12, None, 4, 3, 3, 0, False),
        (13, None, 4, 4, 2, 2, True),
        (13, 3, 4, 2, 2, 2, False),
        (16, 6, 4, 3, 1, 0, True),
        (9, 1, 2, 1, 1, 0, False),
        (11, 5, 4, 2, 1, 0, True),
        (5, None, 8, 2, 2, 2, True),
    ],
)
def test_equals_every_pair_in_view(
    positions: int, window: int | None, block: int, heads: int, kv_heads: int, learned: int, biased: bool,
    causal: bool, compiled: bool,
) -> None:  # fmt: skip
    rng, view = np.random.default_rng(positions), View(causal, window)
    q, upstream = (rng.standard_normal((BATCH, positions, heads, FEATURES)) for _ in range(2))
    k, v = (rng.standard_normal((BATCH, positions, kv_heads, FEATURES)) for _ in range(2))
    memory = [rng.standard_normal((LEARNED, kv_heads, FEATURES)) for _ in range(learned)]
    slopes = [rng.standard_normal(heads)] if biased else []
    given = [q, k, v, *memory, *slopes]
    streams = Streams(view, tf.float64, block, Bias(linear) if biased else None)

    def run(*given: tf.Tensor) -> Any:
        return differentiated(streams, given, learned, tf.constant(upstream))

    found, log_sums, gradients = tf.function(run, autograph=False, jit_compile=compiled)(*map(tf.constant, given))

    def attended(given: Sequence[Array]) -> tuple[Array, Array]:
        q, k, v, *rest = given
        return all_pairs(q, k, v, rest[:learned], rest[learned] if biased else None, view)

    for ours, wanted in zip((found, log_sums), attended(given), strict=True):
        np.testing.assert_allclose(ours, wanted, rtol=1e-12, atol=1e-13)
    assert [g.shape for g in gradients] == [x.shape for x in given]
    for number, gradient in enumerate(gradients):
        direction = rng.standard_normal(given[number].shape)

        def moved(h: float, number: int = number, direction: Array = direction) -> float:
            operands = [x + h * direction if i == number else x for i, x in enumerate(given)]
            return float((upstream * attended(operands)[0]).sum())

        slope = (moved(1e-6) - moved(-1e-6)) / 2e-6
        assert float((gradient.numpy() * direction).sum()) == pytest.approx(slope, rel=1e-6, abs=1e-7), number


@pytest.fixture
def short_streams(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """Streams for short sequences too; returns one entry for each layer that they attend in."""
    monkeypatch.setattr(streaming, "MIN_POSITIONS", 2)
    monkeypatch.setattr(streaming, "BLOCK", 5)
    used: list[None] = []
    attend = Streaming.attend

    def counted(self: Streaming, problem: Any) -> Any:
        used.append(None)
        return attend(self, problem)

    monkeypatch.setattr(Streaming, "attend", counted)
    return used


def numbers(**keys: Any) -> list[float]:
    engine = make_engine(tiny_config(**keys), compiled=False)
    engine.create_variables(training=True)
    enlarge_weights(engine)
    steps = [engine.train_step(token_batch(engine.config, seed)) for seed in range(2)]
    return [float(step[name]) for step in steps for name in ("loss", "grad_norm")]


@pytest.mark.parametrize(
    "keys",
    [
        {"pos_emb": "alibi", "num_mem_kv": 2},
        {"mlm_training": True, "mlm_mask_id": 3, "pos_emb": "rotary"},
        pytest.param({"recompute_grad": True, "tokens_per_mb_per_replica": 16}, marks=pytest.mark.slow),
        {"pos_emb": "alibi", "mesh_shape": "a:2,b:2", "layout": "batch:a,heads:b"},
    ],
    ids=["alibi, memory", "both ways", "recomputed in parts", "mesh"],
)
def test_training_is_that_of_the_plain_operations(keys: dict[str, Any], short_streams: list[None]) -> None:
    plain = numbers(**keys, fused_ops=False)
    assert not short_streams
    np.testing.assert_allclose(numbers(**keys), plain, rtol=2e-5)
    assert short_streams


def test_bfloat16_is_summed_in_float32() -> None:
    rng, view = np.random.default_rng(0), View(True, None)
    q, k, v = (tf.cast(rng.standard_normal((1, 40, 2, 8)), tf.bfloat16) for _ in range(3))
    attended, log_sums = Streams(view, tf.float32, 16).attend(q, k, v, [], [])
    wide_q, wide_k, wide_v = (tf.cast(x, tf.float64).numpy() for x in (q, k, v))
    wanted = all_pairs(wide_q, wide_k, wide_v, [], None, view)
    assert attended.dtype == tf.bfloat16
    np.testing.assert_allclose(tf.cast(attended, tf.float64), wanted[0], rtol=2**-8, atol=1e-6)
    np.testing.assert_allclose(log_sums, wanted[1], rtol=1e-6)


def largest(run: Callable[..., Any], positions: int) -> int:
    """Elements of the largest tensor of the program that XLA makes of a forward and a backward pass."""
    spec = tf.TensorSpec([1, positions, 2, 8], tf.float32)
    function = tf.function(run, autograph=False, jit_compile=True)
    program = function.experimental_get_compiler_ir(spec, spec, spec)(stage="optimized_hlo")
    shapes = re.findall(r"f32\[([\d,]*)\]", program)
    return max(int(np.prod([int(n) for n in shape.split(",") if n])) for shape in shapes)


def by_streams(q: tf.Tensor, k: tf.Tensor, v: tf.Tensor) -> Any:
    return differentiated(Streams(View(True, None), tf.float32, 64), [q, k, v], 0, q)


def by_pairs(q: tf.Tensor, k: tf.Tensor, v: tf.Tensor) -> Any:
    return tf.einsum("bhqk,bkhf->bqhf", tf.nn.softmax(tf.einsum("bqhf,bkhf->bhqk", q, k)), v)


def test_memory_is_linear_in_the_context() -> None:
    assert largest(by_pairs, 1024) >= 1024**2  # which this test would notice
    short, long = largest(by_streams, 1024), largest(by_streams, 4096)
    assert short < 1024 * 64 and long <= 4 * short


@pytest.mark.parametrize(
    ("keys", "streams"),
    [
        ({"n_ctx": 2048}, True),
        ({"n_ctx": 2047}, False),
        ({"n_ctx": 2048, "fused_ops": False}, False),
        ({"n_ctx": 2048, "attn_dropout": 0.1}, False),
        ({"n_ctx": 2048, "attention_types": [[["local"], 1]]}, False),  # in blocks
        ({"n_ctx": 2048, "attention_types": [[["local"], 1]], "local_attention_radius": 2000}, True),
    ],
    ids=lambda x: ", ".join(x) if isinstance(x, dict) else None,
)
def test_long_contexts_are_streamed(keys: dict[str, Any], streams: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[Any] = []
    monkeypatch.setattr(native, "fits", lambda dtype: False)

    def attend(self: Streaming, problem: Any) -> Any:
        used.append(problem)
        return problem.heads.q + mtf.rename_dimension(problem.k + problem.v, "memory_length", "sequence")

    monkeypatch.setattr(Streaming, "attend", attend)
    one_layer = {"n_layer": 1, "attention_types": [[["global"], 1]], "train_batch_size": 1}
    engine: DeviceEngine = make_engine(tiny_config(**{**one_layer, **keys}), compiled=False)
    used.clear()
    engine.create_variables(training=True)
    assert bool(used) == streams
