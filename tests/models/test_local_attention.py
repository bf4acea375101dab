"""Attention by blocks, against every pair of positions in NumPy float64 and the plain operations in training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import tensorflow as tf

from gpt_mesh.models.attention import blocks
from gpt_mesh.models.attention.backend import View
from tests.support.models import enlarge_weights, make_engine, tiny_config, token_batch

BATCH, HEADS, FEATURES, LEARNED = 2, 3, 4, 2


def sees(query: Any, key: Any, window: int, causal: bool) -> Any:
    distance = query - key
    return (distance >= 0) & (distance < window) if causal else abs(distance) < window


def all_pairs(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, memory: Sequence[np.ndarray], window: int, causal: bool
) -> np.ndarray:
    places = np.arange(q.shape[1])
    scores = np.einsum("bqhf,bkhf->bhqk", q, k)
    scores = np.where(sees(places[:, None], places[None, :], window, causal), scores, -np.inf)
    if memory:
        scores = np.concatenate([np.einsum("bqhf,mhf->bhqm", q, memory[0]), scores], -1)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    learned = weights.shape[-1] - k.shape[1]
    found = np.einsum("bhqk,bkhf->bqhf", weights[..., learned:], v)
    return found + np.einsum("bhqm,mhf->bqhf", weights[..., :learned], memory[1]) if memory else found


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("learned", [0, LEARNED])
@pytest.mark.parametrize(("positions", "window", "size"), [(12, 3, 3), (13, 3, 4), (10, 1, 2), (9, 4, 4)])
def test_equals_every_pair_in_view(causal: bool, learned: int, positions: int, window: int, size: int) -> None:
    rng = np.random.default_rng(positions)
    q, k, v, upstream = (rng.standard_normal((BATCH, positions, HEADS, FEATURES)) for _ in range(4))
    memory = [rng.standard_normal((learned, HEADS, FEATURES)) for _ in range(2)] if learned else []
    given = [tf.constant(x) for x in (q, k, v, *memory)]

    def value(q: tf.Tensor, k: tf.Tensor, v: tf.Tensor, *memory: tf.Tensor) -> tf.Tensor:
        return blocks.attend(q, k, v, memory, size=size, view=View(causal, window), dtype=tf.float64)

    with tf.GradientTape() as tape:
        tape.watch(given)
        found = value(*given)
    np.testing.assert_allclose(found, all_pairs(q, k, v, memory, window, causal), rtol=1e-12, atol=1e-13)
    gradients = tape.gradient(found, given, upstream)
    directions = [rng.standard_normal(x.shape) for x in given]

    def moved(h: float) -> float:
        operands = [x.numpy() + h * d for x, d in zip(given, directions, strict=True)]
        q, k, v, *memory = operands
        return float((upstream * all_pairs(q, k, v, memory, window, causal)).sum())

    slope = sum(float((g.numpy() * d).sum()) for g, d in zip(gradients, directions, strict=True))
    assert slope == pytest.approx((moved(1e-6) - moved(-1e-6)) / 2e-6, rel=1e-6)


def test_blocks_are_used_where_they_save_something() -> None:
    assert blocks.block_size(4096, 256, True) == 256
    assert blocks.block_size(256, 4, True) == blocks.MIN_BLOCK
    assert blocks.block_size(512, 256, True) is None
    assert blocks.block_size(513, 256, True) == 256
    assert blocks.block_size(700, 256, False) is None


@pytest.mark.parametrize(
    "keys",
    [
        {"num_mem_kv": 2},
        pytest.param({"rotary_emb": True, "mesh_shape": "a:2", "layout": "heads:a"}, marks=pytest.mark.slow),
        pytest.param({"mlm_training": True, "mlm_mask_id": 3, "local_attention_radius": 3}, marks=pytest.mark.slow),
    ],
    ids=["memory keys", "rotary, split heads", "masked"],
)
def test_training_is_that_of_the_plain_operations(keys: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "MIN_BLOCK", 1)  # or none would be short enough here
    attend = Mock(wraps=blocks.attend)
    monkeypatch.setattr(blocks, "attend", attend)

    def numbers(**more: Any) -> list[float]:
        config = tiny_config(n_layer=1, attention_types=[[["local"], 1]], **keys, **more)
        engine = make_engine(config, compiled=False)
        engine.create_variables(training=True)
        enlarge_weights(engine)
        steps = [engine.train_step(token_batch(engine.config, seed)) for seed in range(2)]
        return [float(step[name]) for step in steps for name in ("loss", "grad_norm")]

    plain = numbers(fused_ops=False)
    assert not attend.called
    np.testing.assert_allclose(numbers(), plain, rtol=2e-5)
    assert attend.called
