"""Heads of attention: shared keys and values, sizes, biases, norms and scale, against NumPy float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from gpt_mesh.meshes import cpu_matmul, native
from gpt_mesh.models.attention import linear
from gpt_mesh.models.attention.slices import grouped_einsum
from gpt_mesh.models.dims import Dims
from gpt_mesh.planning.metrics import flops_per_token
from gpt_mesh.sample import Row
from tests.models.test_cache import cached_logits, needs_compiler
from tests.models.test_family import GRADIENT_KEYS, MLM, SMALL, logits_engine, shapes, types
from tests.support import family
from tests.support.decoding import generate
from tests.support.models import enlarge_weights, make_engine, tiny_config, token_batch, weights_of

GROUPED: dict[str, Any] = {"n_head": 4, "num_kv_heads": 2}
SINGLE: dict[str, Any] = {"n_head": 4, "num_kv_heads": 1}  # multi-query
LLAMA = {
    **GROUPED, "head_dim": 6, "use_bias_in_attn_linear": False, "scale_attn_weights": True, "rotary_emb": True,
    "attention_types": types("global", "local"),
}  # fmt: skip
HEADS: dict[str, dict[str, Any]] = {
    "grouped": GROUPED,
    "single": SINGLE,
    "wide heads": {"head_dim": 6},
    "narrow heads": {"n_head": 3, "head_dim": 2},  # 3 does not divide n_embd
    "no biases": {"use_bias_in_attn_linear": False},
    "all biases": {"use_bias_in_attn_linear": True},
    "biases of q, k, v": {"use_bias_in_attn_linear": False, "use_bias_in_qkv": True},
    "normalised": {"qk_norm": True, "norm_epsilon": 0.1},
    "scaled": {"scale_attn_weights": True},
    "grouped, linear": {**GROUPED, "attention_types": types("linear", "local"), "num_mem_kv": 3},
    "single, linear": {**SINGLE, "attention_types": types("linear", "linear"), "num_mem_kv": 2, "head_dim": 3},
    "grouped, memory, alibi": {**GROUPED, "num_mem_kv": 3, "pos_emb": "alibi", "attention_types": types("local", "global")},
    "as Llama": LLAMA,
    "as Qwen 2": {**LLAMA, "use_bias_in_qkv": True},
    "as Qwen 3": {**LLAMA, **SINGLE, "qk_norm": True, "rotary_interleaved": True, "rotary_pct": 0.67},
}
BOTH_WAYS = ["grouped", "single, linear", "as Qwen 3"]


@pytest.mark.parametrize(
    "keys",
    [*HEADS.values(), *[{**HEADS[name], **MLM} for name in BOTH_WAYS]],
    ids=[*HEADS, *[f"{name}, both ways" for name in BOTH_WAYS]],
)
def test_logits_are_those_of_the_reference(keys, monkeypatch):
    monkeypatch.setattr(linear, "CHUNK", 5)  # 12 positions: two chunks and a rest
    engine, logits, tokens = logits_engine(**keys)
    found, wanted = logits(tokens).numpy(), family.logits(weights_of(engine), tokens, engine.config)
    assert np.abs(wanted).max() > 1
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("read", "name"),
    [
        (7, "as Llama"),
        (10, "as Qwen 3"),
        (3, "grouped, memory, alibi"),
        (5, "grouped, linear"),
        *[
            pytest.param(4, name, marks=pytest.mark.slow)
            for name in HEADS
            if name not in ("as Llama", "as Qwen 3", "grouped, memory, alibi", "grouped, linear")
        ],
    ],
)
def test_cached_logits_are_those_of_a_full_pass(read, name):
    engine = make_engine(tiny_config(**{**SMALL, **HEADS[name]}), compiled=False)
    function, tokens = cached_logits(engine, read, tf.float64), token_batch(engine.config, width=12)
    function.traced(tf.TensorSpec(tokens.shape, tf.int32))
    enlarge_weights(engine, scale=0.5)
    wanted = family.logits(weights_of(engine), tokens, engine.config)
    np.testing.assert_allclose(function(tokens), wanted, rtol=0, atol=1e-9)
