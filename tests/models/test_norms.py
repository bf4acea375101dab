"""Layer norm and ScaleNorm against NumPy float64; derivatives by central differences."""

from __future__ import annotations

from typing import Any

from gpt_mesh.meshes.compat import mtf

import numpy as np
import pytest
import tensorflow as tf

from gpt_mesh import model_fns
from gpt_mesh.meshes.variables import VariableStore
from gpt_mesh.models.norms import norm_of
from tests.support.models import mesh_of, tiny_config

BATCH, SEQUENCE, EMBD = 4, 6, 16


def layer_norm(x, g, b):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * g + b


def scale_norm(x, g):
    return g * x / np.sqrt((x**2).sum(-1, keepdims=True))


RNG = np.random.default_rng(0)
X, UPSTREAM = RNG.standard_normal((2, BATCH, SEQUENCE, EMBD)) * 3 + 1
WEIGHTS: dict[bool, dict[str, Any]] = {  # by scalenorm
    False: {"g": RNG.standard_normal(EMBD), "b": RNG.standard_normal(EMBD)},
    True: {"g": 1.7},
}
LAYOUTS = {"": "", "x:2,y:2": "batch:x,embd:y"}


def run(
    scalenorm: bool, x: np.ndarray, mesh_shape: str = "", *, dtype: tf.DType = tf.float64, assign: bool = True
) -> dict[str, np.ndarray]:
    """The norm of x as `value`, the gradients of `x`, `g` and `b`, and the weights themselves as `weight/...`."""
    config, store = tiny_config(scalenorm=scalenorm), VariableStore("/device:CPU:0")
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
    function = tf.function(build, autograph=False).get_concrete_function(*operands)
    weights = {name.removeprefix("gpt2/ln_f/"): v for name, v in store.masters.items()}
    if assign:
        for name, value in WEIGHTS[scalenorm].items():
            weights[name].assign(value)
        store.scatter()
    found = {name: tf.cast(t, tf.float64).numpy() for name, t in function(*operands).items()}
    return found | {f"weight/{name}": v.numpy() for name, v in weights.items()}


@pytest.mark.parametrize("mesh_shape", LAYOUTS)
@pytest.mark.parametrize(("scalenorm", "function"), [(False, layer_norm), (True, scale_norm)])
def test_values_and_gradients_in_float64(scalenorm, function, mesh_shape):
    found = run(scalenorm, X, mesh_shape)
    weights = WEIGHTS[scalenorm]
    np.testing.assert_allclose(found["value"], function(X, **weights), rtol=0, atol=1e-9)

    def slope(direction: np.ndarray, name: str) -> float:
        """Of the upstream-weighted sum of values when one operand moves."""
        h, operands = 1e-5, {"x": X, **weights}
        values = [function(**{**operands, name: operands[name] + s * direction}) for s in (h, -h)]
        return float((UPSTREAM * (values[0] - values[1])).sum() / (2 * h))

    for name in ["x", *weights]:
        for seed in range(10, 13):
            direction = np.random.default_rng(seed).standard_normal(np.shape(found[name]))
            assert (found[name] * direction).sum() == pytest.approx(slope(direction, name), rel=1e-6), name


@pytest.mark.parametrize("scalenorm", [False, True])
def test_bfloat16_values_are_rounded_only_at_the_end(scalenorm):
    x = tf.cast(tf.cast(X, tf.bfloat16), tf.float64).numpy()
    found = run(scalenorm, x, dtype=tf.bfloat16)["value"]
    wanted = scale_norm(x, 1.7) if scalenorm else layer_norm(x, **WEIGHTS[False])
    # Layer norm's gain and bias are narrow, and what is between them.
    np.testing.assert_allclose(found, wanted, rtol=2.0**-8 if scalenorm else 2.0**-6, atol=0 if scalenorm else 0.03)


def test_scalenorm_begins_with_the_gain_that_keeps_unit_variance():
    found = run(True, X, assign=False)
    assert {name for name in found if name.startswith("weight/")} == {"weight/g"}
    assert found["weight/g"] == 4.0
    np.testing.assert_allclose((found["value"] ** 2).mean(-1), 1, rtol=1e-12)


@pytest.mark.parametrize("scalenorm", [False, True])
@pytest.mark.parametrize("size", [0.0, 1e-30])
def test_vectors_of_no_length_are_harmless(scalenorm, size):
    found = run(scalenorm, np.full((BATCH, SEQUENCE, EMBD), size), dtype=tf.float32)
    assert all(np.isfinite(array).all() for array in found.values())
    assert np.abs(found["value"]).max() < 5
