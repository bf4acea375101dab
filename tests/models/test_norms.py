"""The norms against NumPy float64; derivatives by central differences."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gpt_mesh.meshes.compat import mtf

import numpy as np
import pytest
import tensorflow as tf

from gpt_mesh import model_fns
from gpt_mesh.meshes import native
from gpt_mesh.meshes.variables import VariableStore
from gpt_mesh.models.norms import norm_of
from tests.support.models import mesh_of, tiny_config

BATCH, SEQUENCE, EMBD = 4, 6, 16
EPSILON = 1e-3


def layer_norm(x, g, b=0.0):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + EPSILON) * g + b


def rms_norm(x, g):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + EPSILON) * g


def scale_norm(x, g):
    return g * x / np.sqrt((x**2).sum(-1, keepdims=True))


RNG = np.random.default_rng(0)
X, UPSTREAM = RNG.standard_normal((2, BATCH, SEQUENCE, EMBD)) * 3 + 1
GAIN, BIAS = RNG.standard_normal((2, EMBD))
# By name: keys of the config, the function, and its weights.
NORMS: dict[str, tuple[dict[str, Any], Callable[..., np.ndarray], dict[str, Any]]] = {
    "layer": ({}, layer_norm, {"g": GAIN, "b": BIAS}),
    "layer, no bias": ({"use_bias_in_norms": False}, layer_norm, {"g": GAIN}),
    "RMS": ({"norm": "rmsnorm"}, rms_norm, {"g": GAIN}),
    "scale": ({"scalenorm": True}, scale_norm, {"g": 1.7}),
}
each_norm = pytest.mark.parametrize("name", NORMS)
LAYOUTS = {"": "", "x:2,y:2": "batch:x,embd:y"}


def run(
    name: str, x: np.ndarray, mesh_shape: str = "", *, dtype: tf.DType = tf.float64, assign: bool = True, **more: Any
) -> dict[str, np.ndarray]:
    """The norm of x as `value`, the gradients of `x`, `g` and `b`, and the weights themselves as `weight/...`."""
    keys, _, values = NORMS[name]
    config, store = tiny_config(**{"norm_epsilon": EPSILON, **keys, **more}), VariableStore("/device:CPU:0")
    implementation = mesh_of(mesh_shape, LAYOUTS[mesh_shape], store)

    def build(x: tf.Tensor, dy: tf.Tensor) -> dict[str, tf.Tensor]:
        with store.scope():
            ctx = model_fns.make_context(config, implementation, BATCH, SEQUENCE, dtype)
            shape = mtf.Shape([ctx.dims.batch, ctx.dims.sequence, ctx.dims.embd])
            x, dy = (mtf.import_tf_tensor(ctx.mesh, t, shape) for t in (x, dy))
            y = norm_of(config.model).apply(ctx, x, "ln_f")
            assert (y.shape, y.dtype) == (x.shape, x.dtype)
            weights = ctx.mesh.graph.trainable_variables
            gradients = mtf.gradients([mtf.reduce_sum(y * dy)], [x, *[w.value for w in weights]])
            names = ["value", "x", *[w.name.removeprefix("gpt2/ln_f/") for w in weights]]
            lowering = mtf.Lowering(ctx.mesh.graph, {ctx.mesh: implementation}, autostack=False)
            return {n: lowering.export_to_tf_tensor(t) for n, t in zip(names, [y, *gradients], strict=True)}

    operands = [tf.cast(x, dtype), tf.cast(UPSTREAM, dtype)]
    function = tf.function(build, autograph=False, jit_compile=dtype == tf.float32 or None)
    function = function.get_concrete_function(*operands)
    weights = {name.removeprefix("gpt2/ln_f/"): v for name, v in store.masters.items()}
    assert weights.keys() == values.keys()
    if assign:
        for weight, value in values.items():
            weights[weight].assign(value)
        store.scatter()
    found = {name: tf.cast(t, tf.float64).numpy() for name, t in function(*operands).items()}
    return found | {f"weight/{name}": v.numpy() for name, v in weights.items()}


@pytest.mark.parametrize("mesh_shape", LAYOUTS)
@each_norm
def test_values_and_gradients_in_float64(name, mesh_shape):
    found = run(name, X, mesh_shape)
    _, function, weights = NORMS[name]
    np.testing.assert_allclose(found["value"], function(X, **weights), rtol=0, atol=1e-9)

    def slope(direction: np.ndarray, name: str) -> float:
        """Of the upstream-weighted sum of values when one operand moves."""
        h, operands = 1e-5, {"x": X, **weights}
        values = [function(**{**operands, name: operands[name] + s * direction}) for s in (h, -h)]
        return float((UPSTREAM * (values[0] - values[1])).sum() / (2 * h))

    for operand in ["x", *weights]:
        for seed in range(10, 13):
            direction = np.random.default_rng(seed).standard_normal(np.shape(found[operand]))
            assert (found[operand] * direction).sum() == pytest.approx(slope(direction, operand), rel=1e-6), operand


@each_norm
def test_bfloat16_values_are_rounded_only_at_the_end(name):
    x = tf.cast(tf.cast(X, tf.bfloat16), tf.float64).numpy()
    _, function, weights = NORMS[name]
    found, wanted = run(name, x, dtype=tf.bfloat16)["value"], function(x, **weights)
    # Gain and bias of the others are narrow, and so is what is between them.
    narrow = name != "scale"
    np.testing.assert_allclose(found, wanted, rtol=2.0**-6 if narrow else 2.0**-8, atol=0.03 if narrow else 0)


@pytest.mark.parametrize("name", ["layer", "layer, no bias", "RMS"])
def test_float32_on_a_cpu_is_what_plain_operations_give(name, monkeypatch):
    """In C there, values and gradients."""
    found = run(name, X, dtype=tf.float32)
    monkeypatch.setattr(native, "known", lambda: False)
    wanted = run(name, X, dtype=tf.float32)
    for operand, value in wanted.items():
        np.testing.assert_allclose(found[operand], value, rtol=0, atol=1e-5, err_msg=operand)


def test_scalenorm_begins_with_the_gain_that_keeps_unit_variance():
    found = run("scale", X, assign=False)
    assert found["weight/g"] == 4.0
    np.testing.assert_allclose((found["value"] ** 2).mean(-1), 1, rtol=1e-12)


@each_norm
@pytest.mark.parametrize("size", [0.0, 1e-30])
def test_vectors_of_no_length_are_harmless(name, size):
    found = run(name, np.full((BATCH, SEQUENCE, EMBD), size), dtype=tf.float32, norm_epsilon=1e-5)
    assert all(np.isfinite(array).all() for array in found.values())
    assert np.abs(found["value"]).max() < 5
