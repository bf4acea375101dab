"""Every activation function against NumPy float64, written from its definition; derivatives by central differences."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

from gpt_mesh.meshes.compat import mtf

import numpy as np
import pytest
import tensorflow as tf

from gpt_mesh import model_fns
from gpt_mesh.config import ACTIVATIONS
from gpt_mesh.meshes.variables import VariableStore
from gpt_mesh.models.activations import activate, activate_gated, fixed_slope
from gpt_mesh.models.context import Context
from tests.support.models import mesh_of, tiny_config

BATCH, SEQUENCE, FEATURES = 4, 16, 64
LEARNED = {  # at values that are not the initial ones
    "prelu": {"slope": 0.3},
    "aria": {"lower": -0.3, "upper": 1.4, "log_rate": 0.3, "log_nu": -0.2, "log_c": 0.1, "log_q": 0.4},
    "parcsinh": {"a": 1.3, "log_b": -0.4},
    "psoftplus": {"a": 0.8, "b": 1.2, "c": -0.5},
    "proottanh": {"log_p": 0.5, "log_q": 0.2, "log_r": 0.9},
}


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def softplus(x):
    return np.log(1 + np.exp(x))


def softmax(x):
    powers = np.exp(x - x.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def aria(x, lower, upper, log_rate, log_nu, log_c, log_q):
    rate, nu, c, q = np.exp([log_rate, log_nu, log_c, log_q])
    return x * (lower + (upper - lower) / (c + q * np.exp(-rate * x)) ** (1 / nu))


def proottanh(x, log_p, log_q, log_r):
    p, q, r = np.exp([log_p, log_q, log_r])
    return (np.abs(x) ** p + q) ** (1 / r) * np.tanh(x)


def rrelu(x):
    s = fixed_slope(1, "h0/mlp")
    return np.where(x > 0, x, x * (1 - s) / (1 + s))


REFERENCE: dict[str, Callable[..., Any]] = {
    "gelu": lambda x: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
    "gelu_exact": lambda x: x * (1 + np.vectorize(math.erf)(x / np.sqrt(2))) / 2,
    "relu": lambda x: np.maximum(x, 0),
    "sigmoid": sigmoid,
    "tanh": np.tanh,
    "selu": lambda x: 1.0507009873554805 * np.where(x > 0, x, 1.6732632423543772 * (np.exp(x) - 1)),
    "elu": lambda x: np.where(x > 0, x, np.exp(x) - 1),
    "abs": np.abs,
    "sin": np.sin,
    "cos": np.cos,
    "sign": np.sign,
    "silu": lambda x: x * sigmoid(x),
    "softplus": softplus,
    "lrelu001": lambda x: np.where(x > 0, x, 0.01 * x),
    "lrelu020": lambda x: np.where(x > 0, x, 0.2 * x),
    "id": lambda x: x,
    "triangle_relax": lambda x: np.sin(x) - np.sin(3 * x) / 9 + np.sin(5 * x) / 25 - np.sin(7 * x) / 49,
    "square_relax": lambda x: np.cos(x) - np.cos(3 * x) / 3 + np.cos(5 * x) / 5 - np.cos(7 * x) / 7,
    "spike": lambda x: 1 / (1 + x**2),
    "spike2": lambda x: np.exp(-(x**2)),
    "tanhshrink": lambda x: x - np.tanh(x),
    "softsign": lambda x: x / (1 + np.abs(x)),
    "softmax": softmax,
    "logsoftmax": lambda x: np.log(softmax(x)),
    "bipolarsigmoid": lambda x: 2 * sigmoid(x) - 1,
    "rrelu": rrelu,
    "elish": lambda x: np.where(x > 0, x, np.exp(x) - 1) / (1 + np.exp(-x)),
    "arcsinh": np.arcsinh,
    "aria": aria,
    "prelu": lambda x, slope: np.where(x > 0, x, slope * x),
    "parcsinh": lambda x, a, log_b: a * np.arcsinh(np.exp(log_b) * x),
    "psoftplus": lambda x, a, b, c: a * softplus(b * x) + c,
    "proottanh": proottanh,
    "maxsig": lambda x: np.maximum(x, sigmoid(x)),
    "cosid": lambda x: np.cos(x) - x,
    "minsin": lambda x: np.minimum(x, np.sin(x)),
    "maxtanh": lambda x: np.maximum(x, np.tanh(x)),
    "mish": lambda x: x * np.tanh(softplus(x)),
    "tanhexp": lambda x: x * np.tanh(np.exp(x)),
    "lisht": lambda x: x * np.tanh(x),
    "seagull": lambda x: np.log(1 + x**2),
    "snake": lambda x: x + np.sin(x) ** 2,
    "roottanh": lambda x: np.cbrt(x**2 + 1) * np.tanh(x),
    "softplusmone": lambda x: softplus(x) - 1,
}


def inputs() -> np.ndarray:
    """[batch, sequence, features]: -20 to 20 in steps of 0.01, shuffled so that every row has all sizes; never 0."""
    grid = np.linspace(-20, 20, BATCH * SEQUENCE * FEATURES)
    return np.random.default_rng(0).permutation(grid).reshape(BATCH, SEQUENCE, FEATURES)


def upstream() -> np.ndarray:
    """A gradient to propagate backwards, of the inputs' shape."""
    return np.random.default_rng(1).standard_normal((BATCH, SEQUENCE, FEATURES))


@functools.cache
def results(
    dtype: tf.DType = tf.float64, mesh_shape: str = "", layout: str = "", *, compiled: bool = False, moved: bool = True
) -> dict[str, dict[str, np.ndarray]]:
    """For each activation its `value`, and the gradients of `x` and of each learned scalar: all from one graph.

    moved: learned scalars are those of LEARNED, else the initial ones.
    """
    config = tiny_config()
    store = VariableStore("/device:CPU:0")
    implementation = mesh_of(mesh_shape, layout, store)

    def build(x: tf.Tensor, dy: tf.Tensor) -> dict[str, dict[str, tf.Tensor]]:
        with store.scope():
            ctx = model_fns.make_context(config, implementation, BATCH, SEQUENCE, dtype)
            on_mesh = functools.partial(mtf.import_tf_tensor, ctx.mesh, shape=mtf.Shape(activation_dims(ctx)))
            outputs = {name: differentiate(ctx, on_mesh(x), on_mesh(dy), name) for name in ACTIVATIONS}
            lowering = mtf.Lowering(ctx.mesh.graph, {ctx.mesh: implementation}, autostack=False)
            return tf.nest.map_structure(lowering.export_to_tf_tensor, outputs)

    operands = [tf.cast(inputs(), dtype), tf.cast(upstream(), dtype)]
    function = tf.function(build, autograph=False, jit_compile=compiled or None).get_concrete_function(*operands)
    if moved:
        for name, scalars in LEARNED.items():
            for scalar, value in scalars.items():
                store.masters[f"gpt2/{name}/activation/{scalar}"].assign(value)
        store.scatter()
    return tf.nest.map_structure(lambda t: tf.cast(t, tf.float64).numpy(), function(*operands))


def activation_dims(ctx: Context) -> list[Any]:
    return [ctx.dims.batch, ctx.dims.sequence, ctx.dims.intermediate_expanded]


def differentiate(ctx: Context, x: Any, dy: Any, name: str) -> dict[str, Any]:
    """The layer is called like the function, but for `rrelu`, whose slope depends on the layer's name."""
    layer = "h0/mlp" if name == "rrelu" else name
    y = activate(ctx, x, name, layer)
    assert (y.shape, y.dtype) == (x.shape, x.dtype)
    scalars = [v for v in ctx.mesh.graph.trainable_variables if v.name.startswith(f"gpt2/{layer}/activation/")]
    gradients = mtf.gradients([mtf.reduce_sum(y * dy)], [x, *[v.value for v in scalars]])
    return {"value": y, "x": gradients[0]} | {
        v.name.rpartition("/")[2]: g for v, g in zip(scalars, gradients[1:], strict=True)
    }


def reference(name: str, x: np.ndarray, scalars: dict[str, float] | None = None) -> dict[str, np.ndarray]:
    """What `results` should hold, by differences of the NumPy function."""
    scalars = LEARNED.get(name, {}) if scalars is None else scalars
    function, h, dy = REFERENCE[name], 1e-6, upstream()

    def slope(**changes: float) -> np.ndarray:
        """The change of the function with its learned scalar of that name."""
        ((changed, step),) = changes.items()
        high, low = (function(x, **{**scalars, changed: scalars[changed] + s}) for s in (step, -step))
        return (high - low) / (2 * step)

    found = {"value": function(x, **scalars)}
    if name in ("softmax", "logsoftmax"):  # each output depends on each input of its row
        p = softmax(x)
        inner = dy * p if name == "softmax" else dy
        found["x"] = inner - p * inner.sum(-1, keepdims=True)
    else:
        found["x"] = dy * (function(x + h, **scalars) - function(x - h, **scalars)) / (2 * h)
    return found | {scalar: (dy * slope(**{scalar: h})).sum() for scalar in scalars}


def check(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray], *, rtol: float, atol: float) -> None:
    assert found.keys() == wanted.keys()
    for part, array in wanted.items():
        np.testing.assert_allclose(found[part], array, err_msg=part, rtol=rtol, atol=atol)


def test_the_reference_has_every_activation():
    assert REFERENCE.keys() == set(ACTIVATIONS)
    assert len(ACTIVATIONS) == 44


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_values_and_gradients_in_float64(name):
    check(results()[name], reference(name, inputs()), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_compiled_values_and_gradients_in_float32(name):
    found = results(tf.float32, compiled=True)[name]
    check(found, reference(name, inputs().astype(np.float32).astype(float)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_values_in_bfloat16_are_rounded_once(name):
    x = tf.cast(tf.cast(inputs(), tf.bfloat16), tf.float64).numpy()
    found = results(tf.bfloat16)[name]
    assert all(np.isfinite(array).all() for array in found.values())
    wanted = REFERENCE[name](x, **LEARNED.get(name, {}))
    # Half a unit in the last of 8 bits; the float32 within costs the rest.
    np.testing.assert_allclose(found["value"], wanted, rtol=2.0**-8 + 1e-4, atol=2e-6)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_split_features_give_the_same(name):
    split = results(mesh_shape="x:2", layout="intermediate_expanded:x")[name]
    check(split, results()[name], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("mesh", [("", ""), ("x:2", "intermediate_expanded:x")], ids=["whole", "split features"])
@pytest.mark.parametrize("name", ["silu", "gelu_exact", "id", "prelu", "softmax"])
def test_gates(name: str, mesh: tuple[str, str]) -> None:
    """Values times activated gates, and the gradients of both."""
    store = VariableStore("/device:CPU:0")
    implementation = mesh_of(*mesh, store)
    value = np.random.default_rng(2).standard_normal((BATCH, SEQUENCE, FEATURES))

    def build(value: tf.Tensor, gate: tf.Tensor, dy: tf.Tensor) -> list[tf.Tensor]:
        with store.scope():
            ctx = model_fns.make_context(tiny_config(), implementation, BATCH, SEQUENCE, tf.float64)
            shape = mtf.Shape(activation_dims(ctx))
            value, gate, dy = (mtf.import_tf_tensor(ctx.mesh, t, shape) for t in (value, gate, dy))
            y = activate_gated(ctx, value, gate, name, name)
            outputs = [y, *mtf.gradients([mtf.reduce_sum(y * dy)], [value, gate])]
            lowering = mtf.Lowering(ctx.mesh.graph, {ctx.mesh: implementation}, autostack=False)
            return [lowering.export_to_tf_tensor(t) for t in outputs]

    function = tf.function(build, autograph=False).get_concrete_function(value, inputs(), upstream())
    for scalar, number in LEARNED.get(name, {}).items():
        store.masters[f"gpt2/{name}/activation/{scalar}"].assign(number)
    store.scatter()
    found = [t.numpy() for t in function(*map(tf.constant, (value, inputs(), upstream())))]
    activated, h = REFERENCE[name](inputs(), **LEARNED.get(name, {})), 1e-6
    dgate = value * upstream()
    if name == "softmax":
        dgate = activated * (dgate - (dgate * activated).sum(-1, keepdims=True))
    else:
        sides = [REFERENCE[name](inputs() + step, **LEARNED.get(name, {})) for step in (h, -h)]
        dgate = dgate * (sides[0] - sides[1]) / (2 * h)
    for array, wanted in zip(found, [value * activated, upstream() * activated, dgate], strict=True):
        np.testing.assert_allclose(array, wanted, rtol=1e-6, atol=1e-7)


@functools.cache
def at_extremes() -> dict[str, dict[str, np.ndarray]]:
    """Values and gradients in float32 at zero and far beyond where exponentials overflow."""
    x = np.zeros((1, 1, FEATURES), np.float32)
    x[0, 0, :9] = [0.0, -0.0, 20.0, -20.0, 100.0, -100.0, 1e4, -1e4, 1e-30]
    implementation = mesh_of()
    store = VariableStore("/device:CPU:0")

    def build() -> dict[str, dict[str, tf.Tensor]]:
        with store.scope():
            ctx = model_fns.make_context(tiny_config(), implementation, 1, 1, tf.float32)
            shape = mtf.Shape(activation_dims(ctx))
            x_on_mesh = mtf.import_tf_tensor(ctx.mesh, tf.constant(x), shape)
            dy = mtf.import_tf_tensor(ctx.mesh, tf.ones_like(x), shape)
            outputs = {name: differentiate(ctx, x_on_mesh, dy, name) for name in ACTIVATIONS}
            lowering = mtf.Lowering(ctx.mesh.graph, {ctx.mesh: implementation}, autostack=False)
            return tf.nest.map_structure(lowering.export_to_tf_tensor, outputs)

    function = tf.function(build, autograph=False).get_concrete_function()
    return tf.nest.map_structure(lambda t: t.numpy(), function())


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_nothing_overflows(name):
    for part, array in at_extremes()[name].items():
        assert np.isfinite(array).all(), (part, array)


def test_both_sides_of_elish_have_slope_one_half_at_zero():
    np.testing.assert_allclose(at_extremes()["elish"]["x"][0, 0, :2], 0.5)


@pytest.mark.parametrize(("learned", "fixed"), [("aria", "silu"), ("proottanh", "roottanh"), ("parcsinh", "arcsinh"),
                                                ("psoftplus", "softplus"), ("prelu", "lrelu020")])  # fmt: skip
def test_learned_functions_begin_as_fixed_ones(learned, fixed):
    found = results(moved=False)
    np.testing.assert_allclose(found[learned]["value"], found[fixed]["value"], rtol=1e-6, atol=1e-7)


def test_the_slope_of_rrelu_belongs_to_its_layer_and_the_seed():
    assert fixed_slope(1, "h0/mlp") == pytest.approx(0.240986735171, abs=1e-11), (
        "must never change: models depend on it"
    )
    slopes = [fixed_slope(seed, f"h{i}/mlp") for seed in range(20) for i in range(20)]
    assert len(set(slopes)) == 400
    assert 0 <= min(slopes) < 0.02 < 0.98 < max(slopes) < 1
    assert np.mean(slopes) == pytest.approx(0.5, abs=0.05)
