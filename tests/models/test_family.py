"""The block variants against NumPy float64: logits, gradients, names of weights, decoding, and layouts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from gpt_mesh import model_fns
from gpt_mesh.engine.engine import DeviceEngine
from gpt_mesh.models.attention import linear
from gpt_mesh.objectives.registry import objective_of
from tests.models.test_cache import cached_logits
from tests.support import family
from tests.support.models import LLAMA, enlarge_weights, make_engine, tiny_config, token_batch, weights_of


def types(*names: str) -> list[Any]:
    """attention_types of one layer each."""
    return [[list(names), 1]]


# TensorFlow's GELU has float32 constants, in float64 too.
SMALL = {"activation_function": "relu", "n_embd": 8, "n_head": 2, "n_ctx": 12, "n_vocab": 24, "train_batch_size": 2}
MLM = {"mlm_training": True, "mlm_mask_id": 3, "mlm_mask_prob": 0.5}
COMBINED: dict[str, Any] = {
    "attention_types": types("linear", "global"),
    "num_mem_kv": 2,
    "axial_pos_emb": [3, 4],
    "mlp_glu": True,
    "macaron": True,
    "rezero": True,
}
ROTARY: dict[str, Any] = {"pos_emb": "rotary", "n_head": 1, "rotary_emb_base": 50}
SHORTER = {"original_max_position_embeddings": 8}
LLAMA3 = {"rope_type": "llama3", "factor": 4, "low_freq_factor": 0.2, "high_freq_factor": 1, **SHORTER}
# Every variant at least once, alone and beside others.
VARIANTS: dict[str, dict[str, Any]] = {
    "linear": {"attention_types": types("linear", "global")},
    "linear, memory": {"attention_types": types("linear", "linear"), "num_mem_kv": 3},
    "none": {"attention_types": types("none", "local")},
    "memory": {"num_mem_kv": 3},
    "axial": {"axial_pos_emb": [3, 4]},
    "rotary": {"rotary_emb": True},
    "rotary, linear": {"rotary_emb": True, "attention_types": types("linear", "local")},
    "rotary, share": {"pos_emb": "rotary", "rotary_pct": 0.5, "n_head": 1, "rotary_emb_base": 100},
    "rotary, interleaved": {"pos_emb": "rotary", "rotary_interleaved": True, "rotary_pct": 0.75, "n_head": 1},
    "rotary, linear scaling": {**ROTARY, "rope_scaling": {"rope_type": "linear", "factor": 2}},
    "rotary, dynamic scaling": {**ROTARY, "rope_scaling": {"rope_type": "dynamic", "factor": 2, **SHORTER}},
    "rotary, llama3 scaling": {**ROTARY, "rope_scaling": LLAMA3},
    "rotary, yarn scaling": {**ROTARY, "rope_scaling": {"rope_type": "yarn", "factor": 4, **SHORTER}},
    "alibi": {"pos_emb": "alibi", "attention_types": types("global", "local")},
    "alibi, memory": {"pos_emb": "alibi", "n_head": 3, "n_embd": 12, "num_mem_kv": 2},
    "no positions": {"pos_emb": "none"},
    "glu": {"mlp_glu": True},
    "rezero": {"rezero": True},
    "macaron": {"macaron": True},
    "macaron, rezero, none": {"macaron": True, "rezero": True, "attention_types": types("none", "global")},
    "shared": {"share_parameters": True},
    "untied": {"no_weight_tie": True},
    "scalenorm": {"scalenorm": True},
    "combined": COMBINED,
    "rms": {"norm": "rmsnorm", "norm_epsilon": 0.01},
    "no norm": {"norm": "none"},
    "layer norm, no bias": {"use_bias_in_norms": False, "norm_epsilon": 0.01},
    "norms after": {"norm": "rmsnorm", "norm_placement": "post"},
    "norms before and after": {"norm_placement": "both", "macaron": True},
    "narrow": {"intermediate_size": 6, "use_bias_in_mlp": False, "activation_function": "gelu_exact"},
    "gated, separate": {"mlp_glu": True, "glu_columns": "separate", "intermediate_size": 6},
    "parallel": {"gpt_j_residual": True},
    "parallel, one norm": {"gpt_j_residual": True, "gpt_j_tied": True, "lm_head_bias": True, "no_weight_tie": True},
    "parallel, none": {"gpt_j_residual": True, "gpt_j_tied": True, "attention_types": types("none", "global")},
    "parallel, macaron, rezero": {"gpt_j_residual": True, "macaron": True, "rezero": True, "norm": "rmsnorm"},
    "embedding": {"embedding_scale": 2.5, "embed_norm": True, "norm_epsilon": 0.01},
    "embedding scale": {"embedding_scale": 2.5, "share_parameters": True, "norm_placement": "both"},
    "bounded logits": {"final_logit_softcapping": 3.0, "lm_head_bias": True},
    "llama": {**LLAMA, "attention_types": types("global", "global")},
    "all": {
        "attention_types": [[["linear", "global", "local", "none"], 1]],
        "n_layer": 4,
        "num_mem_kv": 2,
        "rotary_emb": True,
        "mlp_glu": True,
        "macaron": True,
        "share_parameters": True,
        "no_weight_tie": True,
        "scalenorm": True,
    },
}
BOTH_WAYS = ["linear", "linear, memory", "memory", "rotary, linear", "alibi, memory", "all"]


def logits_engine(*, scale: float = 0.5, **keys: Any) -> tuple[DeviceEngine, Any, np.ndarray]:
    """An engine with large float64 weights, its logits as a function of tokens, and tokens [batch, n_ctx]."""
    engine = make_engine(tiny_config(**{**SMALL, **keys}), compiled=False)
    tokens = token_batch(engine.config, width=engine.config.model.n_ctx)

    def build(tokens: tf.Tensor) -> tf.Tensor:
        return model_fns.build_logits(tokens, engine.config, engine.mesh_impl, tf.float64)

    function = engine.function(build)
    function.traced(tf.TensorSpec(tokens.shape, tf.int32))
    enlarge_weights(engine, scale=scale)
    return engine, function, tokens


# ---------------------------------------------------------------------------------------------------------------------
# Forward pass
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "keys",
    [*VARIANTS.values(), *[{**VARIANTS[name], **MLM} for name in BOTH_WAYS], MLM],
    ids=[*VARIANTS, *[f"{name}, both ways" for name in BOTH_WAYS], "both ways"],
)
def test_logits_are_those_of_the_reference(keys, monkeypatch):
    monkeypatch.setattr(linear, "CHUNK", 5)  # 12 positions: two chunks and a rest
    engine, logits, tokens = logits_engine(**keys)
    found, wanted = logits(tokens).numpy(), family.logits(weights_of(engine), tokens, engine.config)
    assert np.abs(wanted).max() > 1
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-9)


@pytest.mark.parametrize("memory", [0, 4])
@pytest.mark.parametrize(("chunk", "positions"), [(128, 150), (128, 128), (5, 17), (5, 3)])
def test_causal_linear_attention_of_any_length(chunk, positions, memory, monkeypatch):
    monkeypatch.setattr(linear, "CHUNK", chunk)
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((2, positions, 3, 4)) for _ in range(3))
    learned = [rng.standard_normal((memory, 3, 4)) for _ in range(2)]
    given = [tf.constant(t) for t in learned if memory]
    found = linear._causal(tf.constant(q), tf.constant(k), tf.constant(v), given)
    keys, values = (np.concatenate([np.stack([m, m]), t], 1) for m, t in zip(learned, (k, v), strict=True))
    wanted = np.zeros_like(q)
    for row, head, position in np.ndindex(2, 3, positions):
        seen = slice(memory + position + 1)
        wanted[row, position, head] = family.linear_causal(
            q[row, position, head], keys[row, seen, head], values[row, seen, head]
        )
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-11)


def test_causal_models_do_not_see_the_future_and_others_do():
    for keys, sees in (({}, False), (MLM, True)):
        _, logits, tokens = logits_engine(attention_types=types("linear", "global"), **keys)
        changed = tokens.copy()
        changed[:, 7] = (tokens[:, 7] + 1) % 24
        difference = np.abs(logits(tokens).numpy() - logits(changed).numpy()).max((0, 2))
        assert (difference[:7].max() > 1e-3) == sees, keys
        assert difference[7:].min() > 1e-6


# ---------------------------------------------------------------------------------------------------------------------
# Weights
# ---------------------------------------------------------------------------------------------------------------------


def shapes(**keys: Any) -> dict[str, tuple[int, ...]]:
    """Of the weights of a model of one layer, by name."""
    values = {**SMALL, "n_layer": 1, "attention_types": types("global"), **keys}
    engine = make_engine(tiny_config(**values), compiled=False)
    engine.create_variables(training=False)
    return {name: w.shape for name, w in weights_of(engine).items()}


MAC = {
    "h0/mlp_mac/conv1d_main/c_fc/kernel": (8, 32),
    "h0/mlp_mac/conv1d_main/c_fc/bias": (32,),
    "h0/mlp_mac/conv1d_main/c_proj/kernel": (32, 8),
    "h0/mlp_mac/conv1d_main/c_proj/bias": (8,),
}
NORM_1 = {"h0/norm_1/g": (8,), "h0/norm_1/b": (8,)}
NORM_2 = {"h0/norm_2/g": (8,), "h0/norm_2/b": (8,)}
AFTER = {f"h0/norm_{i}_post/{part}": (8,) for i in (1, 2) for part in "gb"}
FC, GATE, PROJ = (f"h0/mlp/conv1d_main/{part}" for part in ("c_fc", "c_gate", "c_proj"))


@pytest.mark.parametrize(
    ("keys", "fewer", "more"),
    [
        ({"attention_types": types("linear")}, {}, {}),
        ({"num_mem_kv": 3}, {}, {"h0/attn/mem_k": (3, 8), "h0/attn/mem_v": (3, 8)}),
        ({"axial_pos_emb": [3, 4]}, {"wpe": (12, 8)}, {"axial_wpe_1": (3, 8), "axial_wpe_2": (4, 8)}),
        ({"rotary_emb": True}, {"wpe": (12, 8)}, {}),
        ({"pos_emb": "alibi"}, {"wpe": (12, 8)}, {}),
        (
            {"mlp_glu": True},
            {f"{FC}/kernel": (8, 32), f"{FC}/bias": (32,)},
            {f"{FC}/kernel": (8, 64), f"{FC}/bias": (64,)},
        ),
        ({"rezero": True}, {**NORM_1, **NORM_2}, {"h0/norm_rezero_1/g": (), "h0/norm_rezero_2/g": ()}),
        ({"macaron": True}, {}, {**MAC, "h0/norm_mac/g": (8,), "h0/norm_mac/b": (8,)}),
        ({"no_weight_tie": True}, {}, {"linear_out/kernel": (8, 24)}),
        ({"norm": "rmsnorm"}, {"h0/norm_1/b": (8,), "h0/norm_2/b": (8,), "ln_f/b": (8,)}, {}),
        ({"norm": "none"}, {**NORM_1, **NORM_2, "ln_f/g": (8,), "ln_f/b": (8,)}, {}),
        ({"use_bias_in_norms": False}, {"h0/norm_1/b": (8,), "h0/norm_2/b": (8,), "ln_f/b": (8,)}, {}),
        ({"norm_placement": "post"}, {**NORM_1, **NORM_2}, AFTER),
        ({"norm_placement": "both"}, {}, AFTER),
        ({"gpt_j_residual": True}, {}, {}),
        ({"gpt_j_residual": True, "gpt_j_tied": True}, NORM_2, {}),
        ({"embed_norm": True}, {}, {"embed_norm/g": (8,), "embed_norm/b": (8,)}),
        ({"lm_head_bias": True}, {}, {"linear_out/bias": (24,)}),
        ({"embedding_scale": 2.0, "final_logit_softcapping": 3.0}, {}, {}),
        (
            {"intermediate_size": 6},
            {f"{FC}/kernel": (8, 32), f"{FC}/bias": (32,), f"{PROJ}/kernel": (32, 8)},
            {f"{FC}/kernel": (8, 6), f"{FC}/bias": (6,), f"{PROJ}/kernel": (6, 8)},
        ),
        ({"use_bias_in_mlp": False}, {f"{FC}/bias": (32,), f"{PROJ}/bias": (8,)}, {}),
        ({"mlp_glu": True, "glu_columns": "separate"}, {}, {f"{GATE}/kernel": (8, 32), f"{GATE}/bias": (32,)}),
        ({"share_parameters": True, "n_layer": 2, "attention_types": types("global", "local")}, {}, {}),
    ],
    ids=lambda value: next(iter(value), "") if isinstance(value, dict) else "",
)
def test_names_and_shapes_of_weights(keys, fewer, more):
    plain, found = shapes(), shapes(**keys)
    assert fewer.items() <= plain.items()
    assert found == {name: shape for name, shape in plain.items() if name not in fewer} | more


def test_a_layer_without_attention_has_no_weights_of_it():
    found = shapes(attention_types=types("none"))
    assert not [name for name in found if "attn" in name or "norm_1" in name]


def test_the_gains_of_rezero_begin_at_zero():
    engine = make_engine(tiny_config(**SMALL, rezero=True, macaron=True), compiled=False)
    engine.create_variables(training=False)
    gains = [float(w) for name, w in weights_of(engine).items() if "rezero" in name]
    assert gains == [0.0] * 6


# ---------------------------------------------------------------------------------------------------------------------
# Gradients
# ---------------------------------------------------------------------------------------------------------------------

# With beta1 = 0 and no clipping, Adam's first moment is the gradient; in a warm-up, step 0 changes no weight.
GRADIENT_KEYS = {"beta1": 0.0, "gradient_clipping": None, "warmup_steps": 10, "z_loss": 0.01}


@pytest.mark.parametrize(
    "keys",
    [
        COMBINED,
        {**MLM, "attention_types": types("linear", "global"), "rotary_emb": True, "rezero": True, "num_mem_kv": 2},
        pytest.param(
            {"share_parameters": True, "rotary_emb": True, "no_weight_tie": True, "scalenorm": True},
            marks=pytest.mark.slow,
        ),
        {
            "recompute_grad": True,
            "tokens_per_mb_per_replica": 12,
            "share_parameters": True,
            "attention_types": types("linear", "linear"),
            "res_dropout": 0.2,
            "attn_dropout": 0.2,
        },
    ],
    ids=["combined", "both ways, rotary, rezero", "shared, rotary, untied", "recomputed in parts"],
)
def test_gradients_are_finite_differences_of_the_loss(keys, monkeypatch):
    monkeypatch.setattr(linear, "CHUNK", 5)
    engine = make_engine(tiny_config(**{**SMALL, **GRADIENT_KEYS, **keys}), compiled=False)
    tokens = token_batch(engine.config)

    def build(tokens: tf.Tensor) -> tf.Tensor:
        step = tf.constant(0, tf.int64)  # the same masks each time
        features = objective_of(engine.config).features(tokens, 7)
        return model_fns.build_train(features, engine.config, engine.mesh_impl, step, tf.float64).loss

    function = engine.function(build)
    function.traced(tf.TensorSpec(tokens.shape, tf.int32))
    enlarge_weights(engine)
    function(tokens)
    gradients = {name: engine.store.masters[f"gpt2/{name}/adam_m"].numpy() for name in weights_of(engine)}
    rng, width = np.random.default_rng(0), 1e-5
    for name, gradient in gradients.items():
        variable = engine.store.masters[f"gpt2/{name}"]
        whole, direction = variable.numpy(), rng.standard_normal(gradient.shape)
        sides = []
        for sign in (1, -1):
            variable.assign(whole + sign * width * direction)
            sides.append(float(function(tokens)))
        variable.assign(whole)
        slope = (sides[0] - sides[1]) / (2 * width)
        assert float((gradient * direction).sum()) == pytest.approx(slope, rel=1e-5, abs=1e-8), name
        assert np.abs(gradient).max() > 1e-7, name


# ---------------------------------------------------------------------------------------------------------------------
# Decoding
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("read", "name"),
    [
        (7, "combined"),
        (10, "all"),
        *[pytest.param(4, name, marks=pytest.mark.slow) for name in VARIANTS if name not in ("combined", "all")],
    ],
)
def test_cached_logits_are_those_of_a_full_pass(read, name):
    engine = make_engine(tiny_config(**{**SMALL, **VARIANTS[name]}), compiled=False)
    function, tokens = cached_logits(engine, read, tf.float64), token_batch(engine.config, width=12)
    function.traced(tf.TensorSpec(tokens.shape, tf.int32))
    enlarge_weights(engine, scale=0.5)
    wanted = family.logits(weights_of(engine), tokens, engine.config)
    np.testing.assert_allclose(function(tokens), wanted, rtol=0, atol=1e-9)


# ---------------------------------------------------------------------------------------------------------------------
# Layouts
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "layout",
    [
        "batch:a",
        "heads:a,intermediate_expanded:a",
        "embd:a,memory_length:a",
        pytest.param("sequence:a", marks=pytest.mark.slow),
        pytest.param("embed_sequence:a,vocab:a", marks=pytest.mark.slow),
    ],
)
def test_layouts_give_the_logits_of_one_device(layout):
    engine, logits, tokens = logits_engine(mesh_shape="a:2", layout=layout, **COMBINED)
    wanted = family.logits(weights_of(engine), tokens, engine.config)
    np.testing.assert_allclose(logits(tokens), wanted, rtol=0, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize(
    "layout",
    [
        pytest.param("batch:a", marks=pytest.mark.exhaustive),
        "heads:a,intermediate_expanded:a",
        pytest.param("embd:a,memory_length:a", marks=pytest.mark.exhaustive),
    ],
)
@pytest.mark.parametrize("more", [{}, {**MLM, "recompute_grad": True, "tokens_per_mb_per_replica": 12}])
def test_layouts_give_the_losses_and_gradients_of_one_device(layout, more):
    found = []
    # Each replica has microbatches of its own: with a split batch they are others, and so are their dropout masks.
    rate = 0.0 if more and layout == "batch:a" else 0.1
    for mesh in ({}, {"mesh_shape": "a:2", "layout": layout}):
        keys = {**SMALL, **COMBINED, **more, **mesh, "train_batch_size": 4, "res_dropout": rate, "attn_dropout": rate}
        engine = make_engine(tiny_config(**keys), compiled=False)
        engine.create_variables(training=True)
        enlarge_weights(engine)
        steps = [engine.train_step(token_batch(engine.config, seed)) for seed in range(2)]
        found.append([float(step[name]) for step in steps for name in ("loss", "nll", "grad_norm")])
    assert found[1] == pytest.approx(found[0], rel=2e-5)
