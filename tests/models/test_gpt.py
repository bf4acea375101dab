"""The model's numbers, names and initial weights."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from gpt_mesh import model_fns
from tests.support import reference
from tests.support.models import (
    ONE_LAYER,
    enlarge_weights,
    is_weight,
    make_engine,
    mesh_of,
    tiny_config,
    token_batch,
    weights_of,
)

LARGE = {"n_embd": 64, "n_head": 4, "n_layer": 4, "attention_types": [[["global", "local"], 2]]}


def logits_in(dtype: tf.DType, config, width: int):
    """Logits of a model with large weights, those weights and the tokens."""
    engine = make_engine(config, compiled=False)
    function = engine.function(lambda tokens: model_fns.build_logits(tokens, config, engine.mesh_impl, dtype))
    tokens = token_batch(config, rows=2, width=width)
    function.traced(tf.TensorSpec(tokens.shape, tf.int32))
    enlarge_weights(engine)
    return function(tokens).numpy(), weights_of(engine), tokens


# n_ctx is 16 and the window 5: 3 positions fit into the window, 16 fill the context, and between the two positions are
# looked up one by one.
@pytest.mark.parametrize("width", [3, 11, 16])
@pytest.mark.parametrize("activation", ["gelu", "relu"])
def test_float64_logits_are_those_of_the_reference(width, activation):
    config = tiny_config(activation_function=activation)
    found, weights, tokens = logits_in(tf.float64, config, width)
    wanted = reference.logits(weights, tokens, config.model)
    assert wanted.std() > 0.5, "weights so small would hide a mistake"
    assert found.dtype == np.float64
    # TensorFlow's GELU rounds its constant 0.044715 to float32.
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-9 if activation == "relu" else 2e-8)


@pytest.mark.parametrize("radius", [1, 2, 15, 16, 40])
def test_a_window_of_any_size_is_that_of_the_reference(radius):
    config = tiny_config(local_attention_radius=radius, attention_types=[[["local"], 2]], activation_function="relu")
    found, weights, tokens = logits_in(tf.float64, config, 16)
    np.testing.assert_allclose(found, reference.logits(weights, tokens, config.model), rtol=0, atol=1e-9)


def test_float32_logits_are_those_of_the_reference():
    config = tiny_config()
    found, weights, tokens = logits_in(tf.float32, config, 16)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, reference.logits(weights, tokens, config.model), rtol=0, atol=1e-4)


def test_compiled_logits_are_those_of_the_reference():
    config = tiny_config()
    engine = make_engine(config)
    assert engine.compiled
    engine.create_variables(training=False)
    enlarge_weights(engine)
    tokens = token_batch(config, width=16)
    wanted = reference.logits(weights_of(engine), tokens, config.model)
    np.testing.assert_allclose(engine.logits(tokens), wanted, rtol=0, atol=1e-4)


# Positions have three names, which a layout may split along different mesh dimensions.
@pytest.mark.parametrize("layout", ["sequence:a,memory_length:b", "memory_length:a,sequence:b,embed_sequence:a"])
def test_logits_on_a_mesh_that_splits_positions_are_those_of_the_reference(layout):
    config = tiny_config(**ONE_LAYER, mesh_shape="a:2,b:2", layout=layout)
    engine = make_engine(config)
    engine.create_variables(training=False)
    enlarge_weights(engine, scale=0.2)
    tokens = token_batch(config, rows=2, width=16)
    wanted = reference.logits(weights_of(engine), tokens, config.model)
    np.testing.assert_allclose(engine.logits(tokens), wanted, rtol=0, atol=1e-4)


def test_a_position_sees_no_later_token():
    config = tiny_config()
    engine = make_engine(config, compiled=False)
    engine.create_variables(training=False)
    enlarge_weights(engine)
    tokens = token_batch(config, width=16)
    changed = tokens.copy()
    changed[:, 9:] = (changed[:, 9:] + 1) % config.model.n_vocab
    before, after = engine.logits(tokens).numpy(), engine.logits(changed).numpy()
    np.testing.assert_array_equal(before[:, :9], after[:, :9])
    assert np.abs(before[:, 9:] - after[:, 9:]).max() > 0.1


def test_names_and_shapes_are_those_of_published_checkpoints():
    config = tiny_config(n_embd=24, n_vocab=50)
    engine = make_engine(config)
    engine.create_variables(training=False)
    wanted = {"wte": [50, 24], "wpe": [16, 24], "ln_f/g": [24], "ln_f/b": [24]}
    for i in range(2):
        wanted |= {f"h{i}/norm_{n}/{part}": [24] for n in (1, 2) for part in "gb"}
        wanted |= {f"h{i}/attn/{part}": [24, 24] for part in "qkvo"}
        wanted |= {f"h{i}/attn/compute_output_bias/o_b": [24]}
        wanted |= {f"h{i}/mlp/conv1d_main/c_fc/kernel": [24, 96], f"h{i}/mlp/conv1d_main/c_fc/bias": [96]}
        wanted |= {f"h{i}/mlp/conv1d_main/c_proj/kernel": [96, 24], f"h{i}/mlp/conv1d_main/c_proj/bias": [24]}
    found = {name: v.shape.as_list() for name, v in engine.store.masters.items()}
    assert found == {f"gpt2/{name}": shape for name, shape in wanted.items()} | {"global_step": []}
    assert all(v.dtype == tf.float32 for name, v in engine.store.masters.items() if is_weight(name))


def initial_weights(**keys):
    engine = make_engine(tiny_config(**LARGE, **keys))
    engine.create_variables(training=False)
    return weights_of(engine)


@pytest.mark.parametrize(
    ("scale_by_depth", "scale_by_in"), [(True, False), (False, False), (True, True), (False, True)]
)
def test_initial_standard_deviations(scale_by_depth, scale_by_in):
    width, features, layers = 64, 16, 4
    stddevs = {
        "wte": 0.02,
        "wpe": 0.01,
        "q": (width * features) ** -0.5,
        "k": width**-0.5,
        "v": width**-0.5,
        "o": (4 * features) ** -0.5,
        "c_fc/kernel": 0.02 * (width**-0.5 if scale_by_in else 1),
        "c_proj/kernel": 0.02 * (layers**-0.5 if scale_by_depth else 1) * ((4 * width) ** -0.5 if scale_by_in else 1),
    }
    weights = initial_weights(scale_by_depth=scale_by_depth, scale_by_in=scale_by_in, n_vocab=200, n_ctx=64)
    checked = 0
    for name, array in weights.items():
        if array.ndim == 1:
            np.testing.assert_array_equal(array, 1.0 if name.endswith("/g") else 0.0, err_msg=name)
            continue
        [wanted] = [stddev for ending, stddev in stddevs.items() if name.endswith(ending)]
        error = 1 / np.sqrt(2 * array.size)  # relative standard error of a normal sample's standard deviation
        assert abs(array.std() / wanted - 1) < 4 * error, (name, array.std(), wanted)
        assert abs(array.mean()) < 4 * wanted / np.sqrt(array.size), name
        assert np.abs(array).max() > 2.5 * wanted, f"{name} is not normal: its tails are cut"
        checked += 1
    assert checked == 2 + 6 * layers


def test_initial_weights_are_a_function_of_seed_and_name():
    first, again, other = initial_weights(), initial_weights(), initial_weights(seed=2)
    for name, array in first.items():
        np.testing.assert_array_equal(array, again[name], err_msg=name)
        assert array.ndim == 1 or not np.allclose(array, other[name]), name
    matrices = {name: array for name, array in first.items() if array.shape == (64, 64)}
    names = sorted(matrices)
    for i, a in enumerate(names):
        for b in names[:i]:
            correlation = np.corrcoef(matrices[a].ravel(), matrices[b].ravel())[0, 1]
            assert abs(correlation) < 0.08, f"{a} and {b} are drawn from the same numbers"


def test_initial_weights_do_not_depend_on_the_mesh_or_on_what_creates_them_first():
    on_one = initial_weights()
    engine = make_engine(tiny_config(**LARGE, mesh_shape="x:2,y:2", layout="embd:x,heads:y,vocab:y"))
    engine.create_variables(training=False)
    # Slices are copies of the masters: write them back to see what the devices hold.
    engine.store.gather()
    on_four = weights_of(engine)
    assert on_one.keys() == on_four.keys()
    for name, array in on_one.items():
        np.testing.assert_array_equal(array, on_four[name], err_msg=name)


def test_a_context_knows_which_dimensions_its_mesh_splits():
    config = tiny_config()
    ctx = model_fns.make_context(config, mesh_of("x:2,y:1", "batch:x,vocab:y"), 4, 16)
    assert set(ctx.axes) == {"batch"}, "a mesh dimension of size 1 splits nothing"
    assert ctx.is_whole(ctx.dims.vocab, ctx.dims.embd)
    assert not ctx.is_whole(ctx.dims.vocab, ctx.dims.batch)
