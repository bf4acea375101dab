"""Heads of attention: shared keys and values, sizes, biases, norms and scale, against NumPy float64."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from gpt_mesh.meshes import (
    compat,  # before TensorFlow, which it keeps quiet
    cpu_matmul,
)
from gpt_mesh.models.attention import blocks, cudnn, linear
from gpt_mesh.models.attention.backend import View
from gpt_mesh.models.attention.kinds import state_tensors
from gpt_mesh.models.attention.slices import grouped_einsum
from gpt_mesh.models.dims import Dims
from tests.models.test_cache import cached_logits, needs_compiler
from tests.models.test_family import GRADIENT_KEYS, MLM, SMALL, check_gradients, logits_engine, shapes, types
from tests.models.test_local_attention import all_pairs
from tests.support import family
from tests.support.lives import check_decoding
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
    "grouped, memory, alibi": {
        **GROUPED, "num_mem_kv": 3, "pos_emb": "alibi", "attention_types": types("local", "global"),
    },
    "as Llama": LLAMA,
    "as Qwen 2": {**LLAMA, "use_bias_in_qkv": True},
    "as Qwen 3": {**LLAMA, **SINGLE, "qk_norm": True, "rotary_interleaved": True, "rotary_pct": 0.67},
}  # fmt: skip
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


# ---------------------------------------------------------------------------------------------------------------------
# Weights
# ---------------------------------------------------------------------------------------------------------------------

ATTENTION = {f"h0/attn/{name}": (8, 8) for name in "qkvo"} | {"h0/attn/compute_output_bias/o_b": (8,)}


@pytest.mark.parametrize(
    ("keys", "wanted"),
    [
        ({}, {}),
        ({"n_head": 4, "num_kv_heads": 2}, {"k": (8, 4), "v": (8, 4)}),
        ({"n_head": 4, "num_kv_heads": 1, "num_mem_kv": 3},
         {"k": (8, 2), "v": (8, 2), "mem_k": (3, 2), "mem_v": (3, 2)}),
        ({"head_dim": 5}, {"q": (8, 10), "k": (8, 10), "v": (8, 10), "o": (10, 8)}),
        ({"use_bias_in_attn_linear": False}, {"compute_output_bias/o_b": None}),
        ({"use_bias_in_attn_linear": True}, {"q_b": (8,), "k_b": (8,), "v_b": (8,)}),
        ({"use_bias_in_attn_linear": False, "use_bias_in_qkv": True, "n_head": 4, "num_kv_heads": 2},
         {"k": (8, 4), "v": (8, 4), "q_b": (8,), "k_b": (4,), "v_b": (4,), "compute_output_bias/o_b": None}),
        ({"qk_norm": True}, {"q_norm/g": (4,), "k_norm/g": (4,)}),
        ({"scale_attn_weights": True}, {}),
    ],
    ids=str,
)  # fmt: skip
def test_names_and_shapes_of_weights(keys, wanted):
    named = ATTENTION | {f"h0/attn/{name}": shape for name, shape in wanted.items()}
    found = {name: shape for name, shape in shapes(**keys).items() if "/attn/" in name}
    assert found == {name: shape for name, shape in named.items() if shape is not None}


@pytest.mark.parametrize(("scaled", "ratio"), [(True, 1.0), (False, 0.25)])
def test_queries_begin_with_what_logits_are_not_multiplied_by(scaled, ratio):
    """Logits of a new model have unit variance either way."""
    engine = make_engine(tiny_config(n_embd=128, n_head=8, scale_attn_weights=scaled), compiled=False)
    engine.create_variables(training=False)
    w = weights_of(engine)
    assert w["h0/attn/q"].std() / w["h0/attn/k"].std() == pytest.approx(ratio, rel=0.05)


@pytest.mark.parametrize("num_kv_heads", [1, 2])
@pytest.mark.parametrize(
    "more",
    [
        {"attention_types": types("global", "local")},
        {"attn_dropout": 0.3, "num_mem_kv": 2, "pos_emb": "alibi"},
        {"attention_types": types("linear", "linear"), "num_mem_kv": 2},
    ],
    ids=["softmax", "dropout, memory, bias", "linear"],
)
def test_shared_heads_equal_repeated_ones(num_kv_heads, more):
    """A model whose k and v repeat their columns for each head of queries, in losses and, summed, in gradients. Dropout
    draws the same weights.
    """
    keys = {**SMALL, **GRADIENT_KEYS, **more, "n_head": 4, "use_bias_in_attn_linear": True}
    found = []
    for heads in (num_kv_heads, 4):
        engine = make_engine(tiny_config(**keys, num_kv_heads=heads), compiled=False)
        engine.create_variables(training=True)
        if heads == num_kv_heads:
            enlarge_weights(engine)
            shared = weights_of(engine)
        else:
            for name, weight in shared.items():
                engine.store.masters[f"gpt2/{name}"].assign(repeated(name, weight, 4 // num_kv_heads))
        step = engine.train_step(token_batch(engine.config))
        moments = {name: engine.store.masters[f"gpt2/{name}/adam_m"].numpy() for name in shared}
        found.append((float(step["loss"]), moments))
    (loss, gradients), (wanted, separate) = found
    assert loss == pytest.approx(wanted, rel=1e-6)
    for name, gradient in gradients.items():
        np.testing.assert_allclose(gradient, summed(name, separate[name], gradient.shape), rtol=1e-4, atol=1e-6)


KV = ("k", "v", "k_b", "v_b", "mem_k", "mem_v")


def repeated(name: str, weight: np.ndarray, times: int) -> np.ndarray:
    """Each head of two features of a weight of keys or values, for all heads of queries that read it."""
    if name.split("/")[-1] not in KV:
        return weight
    by_head = weight.reshape(*weight.shape[:-1], -1, 2)
    return np.repeat(by_head, times, axis=-2).reshape(*weight.shape[:-1], -1)


def summed(name: str, gradient: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    if name.split("/")[-1] not in KV:
        return gradient
    return gradient.reshape(*shape[:-1], shape[-1] // 2, -1, 2).sum(-2).reshape(shape)


@pytest.mark.parametrize(
    "name", ["as Qwen 3", pytest.param("grouped, linear", marks=pytest.mark.slow),
             pytest.param("as Qwen 2", marks=pytest.mark.slow)]
)  # fmt: skip
def test_gradients_are_finite_differences_of_the_loss(name):
    check_gradients({**SMALL, **HEADS[name]})


# ---------------------------------------------------------------------------------------------------------------------
# Decoding
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("heads", [GROUPED, SINGLE], ids=["grouped", "single"])
def test_the_cache_holds_the_heads_of_keys_and_values_alone(heads):
    model = tiny_config(**{**SMALL, **heads, "attention_types": types("global", "linear")}).model
    kept = [tensor.shape.to_integer_list for tensor in state_tensors(model, Dims.of(model, 3, 1, 12))]
    n = heads["num_kv_heads"]
    assert kept == [[3, n, 12, 2], [3, n, 12, 2], [3, n, 2, 2], [3, n, 2]]


@needs_compiler
@pytest.mark.parametrize("name", ["as Llama", "as Qwen 3"])
def test_cached_logits_compiled_for_a_cpu(name, monkeypatch):
    monkeypatch.setattr(cpu_matmul, "MIN_ELEMENTS", 1)
    monkeypatch.setattr(cpu_matmul, "MIN_ELEMENTS_BATCHED", 1)
    read, few_rows = [], cpu_matmul.few_rows

    def counted(rows, matrices, *rest):
        read.append((rows.shape.as_list(), matrices.shape.as_list()))
        return few_rows(rows, matrices, *rest)

    monkeypatch.setattr(cpu_matmul, "few_rows", counted)
    engine = make_engine(tiny_config(**{**SMALL, **HEADS[name]}), compiled=True)
    function, tokens = cached_logits(engine, 9, tf.float32), token_batch(engine.config, rows=2, width=12)
    function.traced(tf.TensorSpec(tokens.shape, tf.int32))
    enlarge_weights(engine)
    wanted = family.logits(weights_of(engine), tokens, engine.config)
    np.testing.assert_allclose(function(tokens), wanted, rtol=1e-5, atol=1e-5)
    model = engine.config.model
    n, group = model.num_kv_heads, model.heads_per_kv_head
    old = [batched for batched in read if batched[1] == [2, n, 6, 9]]
    assert [rows for rows, _ in old] == [[2, n, group, 6]] * (2 * 3), "each head is read once for all of its group"


@pytest.mark.parametrize("precision", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["as Llama", pytest.param("as Qwen 3", marks=pytest.mark.slow)])
def test_greedy_tokens_are_the_likeliest_of_a_full_pass(name, precision):
    engine = make_engine(tiny_config(**{**SMALL, **HEADS[name], "precision": precision}), compiled=False)
    engine.create_variables(training=False)
    enlarge_weights(engine)
    check_decoding(engine)


# ---------------------------------------------------------------------------------------------------------------------
# Layouts
# ---------------------------------------------------------------------------------------------------------------------

LAYOUTS = ["batch:a", "heads:a,intermediate_expanded:a", "embd:a,memory_length:a", "sequence:a"]


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("as Qwen 2", "heads:a,intermediate_expanded:a"),
        ("as Qwen 3", "heads:a,intermediate_expanded:a"),
        ("as Qwen 3", "embd:a,memory_length:a"),
        ("single, linear", "heads:a"),
        *[
            pytest.param(name, layout, marks=[pytest.mark.slow, *([pytest.mark.exhaustive] if i % 3 else [])])
            for i, (name, layout) in enumerate(itertools.product(
                ("as Qwen 2", "as Qwen 3", "grouped, linear", "grouped, memory, alibi"), LAYOUTS))
        ],
    ],
)  # fmt: skip
def test_layouts_give_the_logits_of_one_device(name, layout):
    engine, logits, tokens = logits_engine(mesh_shape="a:2", layout=layout, **HEADS[name])
    wanted = family.logits(weights_of(engine), tokens, engine.config)
    np.testing.assert_allclose(logits(tokens), wanted, rtol=0, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["as Qwen 2", "as Qwen 3"])
def test_layouts_give_the_losses_and_gradients_of_one_device(name, layout):
    found = []
    for mesh in ({}, {"mesh_shape": "a:2", "layout": layout}):
        keys = {**SMALL, **HEADS[name], **mesh, "train_batch_size": 4, "attn_dropout": 0.1, "weight_decay": 0.1}
        engine = make_engine(tiny_config(**keys), compiled=False)
        engine.create_variables(training=True)
        enlarge_weights(engine)
        steps = [engine.train_step(token_batch(engine.config, seed)) for seed in range(3)]
        found.append([float(step[key]) for step in steps for key in ("loss", "nll", "grad_norm")])
    assert found[1] == pytest.approx(found[0], rel=2e-5)


def test_one_head_of_keys_is_split_by_its_queries():
    engine, logits, tokens = logits_engine(mesh_shape="a:4", layout="heads:a", **{**SINGLE, "num_mem_kv": 2})
    assert engine.plan.rules == {"heads": "a"}
    wanted = family.logits(weights_of(engine), tokens, engine.config)
    np.testing.assert_allclose(logits(tokens), wanted, rtol=0, atol=1e-9)


# ---------------------------------------------------------------------------------------------------------------------
# Parts
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("equation", "x", "y"),
    [
        ("bqhf,bkhf->bhqk", (2, 3, 6, 4), (2, 5, 2, 4)),
        ("bhqk,bkhf->bqhf", (2, 6, 3, 5), (2, 5, 2, 4)),
        ("bqhf,mhf->bhqm", (2, 3, 6, 4), (5, 1, 4)),
        ("bqhf,bhf->bqh", (2, 3, 6, 4), (2, 3, 4)),
        ("bqhf,bhf->bqh", (2, 3, 6, 4), (2, 6, 4)),
    ],
)
def test_grouped_einsum_equals_repeated_heads(equation, x, y):
    rng = np.random.default_rng(0)
    left, right = rng.standard_normal(x), rng.standard_normal(y)
    axes, shared = equation.split("->")[0].split(",")
    whole = np.repeat(right, x[axes.index("h")] // y[shared.index("h")], axis=shared.index("h"))
    found = grouped_einsum(equation, tf.constant(left), tf.constant(right))
    np.testing.assert_allclose(found, np.einsum(equation, left, whole), rtol=1e-12, atol=1e-12)


def test_attention_by_blocks_shares_heads():
    rng = np.random.default_rng(0)
    q = rng.standard_normal((2, 12, 6, 4))
    k, v = (rng.standard_normal((2, 12, 2, 4)) for _ in range(2))
    memory = [rng.standard_normal((3, 2, 4)) for _ in range(2)]
    learned = [tf.constant(x) for x in memory]
    view = View(True, 3)
    operands = tf.constant(q), tf.constant(k), tf.constant(v), learned
    found = blocks.attend(*operands, size=3, view=view, dtype=tf.float64)
    whole_k, whole_v, *whole_memory = (np.repeat(x, 3, axis=-2) for x in (k, v, *memory))
    np.testing.assert_allclose(found, all_pairs(q, whole_k, whole_v, whole_memory, 3, True), rtol=1e-12, atol=1e-12)


def test_cudnn_is_given_shared_heads_as_they_are(monkeypatch):
    asked = []

    def call(module: str, arguments: list[tf.Tensor], results: list[tf.TensorSpec], platform: str) -> list[tf.Tensor]:
        asked.append([x.shape[2] for x in arguments[:3]])
        return [tf.ones(result.shape, result.dtype) for result in results]

    monkeypatch.setattr(compat, "xla_call_module", call)
    q, kv, sums = (tf.zeros(shape, tf.bfloat16) for shape in ([2, 64, 6, 8], [2, 64, 2, 8], [2, 6, 64]))
    cudnn.attend(q, kv, kv, View(True, None))
    dq, dk, dv = cudnn.gradient(q, kv, kv, q, sums, q, View(True, None))
    assert asked == [[6, 2, 2]] * 2
    assert dq.shape == q.shape and dk.shape == dv.shape == kv.shape
