"""Activation functions of the feed-forward layers: `ACTIVATIONS`, by the names of the config.

All are computed in float32 or wider, and written so that neither values nor gradients overflow where the function
itself is finite.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from gpt_mesh.meshes.compat import mtf

import tensorflow as tf

from gpt_mesh.meshes import native
from gpt_mesh.models.context import Context
from gpt_mesh.models.kernels import kernel

ElementFunction = Callable[[tf.Tensor], tf.Tensor]


def activate(ctx: Context, x: mtf.Tensor, name: str, layer_name: str) -> mtf.Tensor:
    """Apply an activation function.

    Args:
        x: any shape; the last dimension holds the features.
        name: of the function, one of `ACTIVATIONS`.
        layer_name: prefix of learned scalars, such as "h0/mlp": they are `gpt2/h0/mlp/activation/<parameter>`.

    Returns:
        The same shape and type.
    """
    return ACTIVATIONS[name].apply(ctx, x, name, layer_name)


def activate_biased(ctx: Context, x: mtf.Tensor, bias: mtf.Tensor | None, name: str, layer_name: str) -> mtf.Tensor:
    """The same of x plus a bias of its last dimension, if there is one."""
    if bias is None:
        return activate(ctx, x, name, layer_name)
    return ACTIVATIONS[name].apply_biased(ctx, x, bias, name, layer_name)


def activate_gated(ctx: Context, value: mtf.Tensor, gate: mtf.Tensor, name: str, layer_name: str) -> mtf.Tensor:
    """`value` times the activated `gate`, both of one shape: rounded once, and recomputed in the backward pass."""
    return ACTIVATIONS[name].apply_gated(ctx, value, gate, name, layer_name)


class Activation:
    """Base of all; by itself, the identity."""

    def apply(self, ctx: Context, x: mtf.Tensor, name: str, layer_name: str) -> mtf.Tensor:
        """See `activate`."""
        del ctx, name, layer_name
        return x

    def apply_biased(
        self, ctx: Context, x: mtf.Tensor, bias: mtf.Tensor, name: str, layer_name: str
    ) -> mtf.Tensor:
        """See `activate_biased`."""
        return self.apply(ctx, x + bias, name, layer_name)

    def apply_gated(
        self, ctx: Context, value: mtf.Tensor, gate: mtf.Tensor, name: str, layer_name: str
    ) -> mtf.Tensor:
        """See `activate_gated`."""
        return value * self.apply(ctx, gate, name, layer_name)


@dataclass(frozen=True)
class Elementwise(Activation):
    """A function of each element alone."""

    function: ElementFunction

    def apply(self, ctx: Context, x: mtf.Tensor, name: str, layer_name: str) -> mtf.Tensor:
        return _elementwise(ctx, self.function, x, name=name)

    def apply_gated(
        self, ctx: Context, value: mtf.Tensor, gate: mtf.Tensor, name: str, layer_name: str
    ) -> mtf.Tensor:
        label = f"gated_{name}"
        if name in _NATIVE_GATES and ctx.cpu_kernels and value.dtype == gate.dtype == tf.float32 and native.known():
            forward, backward = _native_gate(_NATIVE_GATES[name])
            return kernel(forward, [value, gate], [(value.shape, value.dtype)], value.shape.dims, label, backward)[0]
        return _elementwise(ctx, lambda gate, value: value * self.function(gate), gate, value, name=label)


@dataclass(frozen=True)
class Gelu(Elementwise):
    """GELU, with its bias in C where that is available."""

    def apply_biased(
        self, ctx: Context, x: mtf.Tensor, bias: mtf.Tensor, name: str, layer_name: str
    ) -> mtf.Tensor:
        fits = ctx.cpu_kernels and x.dtype == bias.dtype == tf.float32 and x.shape.dims[-1:] == bias.shape.dims
        if not fits or not native.known():
            return super().apply_biased(ctx, x, bias, name, layer_name)
        outputs = [(x.shape, x.dtype)]
        return kernel(_native_gelu, [x, bias], outputs, x.shape.dims, name, _native_gelu_gradient)[0]


@dataclass(frozen=True)
class LearnedActivation(Activation):
    """An elementwise function with learned scalars.

    Attributes:
        initial: initial value of each scalar, by its name. Those that must stay positive are learned as logarithms.
        function: of the input and the scalars, in that order.
    """

    initial: Mapping[str, float]
    function: Callable[..., tf.Tensor]

    def apply(self, ctx: Context, x: mtf.Tensor, name: str, layer_name: str) -> mtf.Tensor:
        scalars = [ctx.scalar(f"{layer_name}/activation/{part}", value) for part, value in self.initial.items()]
        return _elementwise(ctx, self.function, x, *scalars, name=name)


class RandomSlope(Activation):
    """Leaky ReLU with one slope a layer, drawn once and then fixed: see `leaky`."""

    def apply(self, ctx: Context, x: mtf.Tensor, name: str, layer_name: str) -> mtf.Tensor:
        return _elementwise(ctx, leaky(fixed_slope(ctx.init_seed, layer_name)), x, name=name)


@dataclass(frozen=True)
class AlongFeatures(Activation):
    """A function of the last dimension.

    Attributes:
        on_slices: of slices that hold all features.
        on_mesh: by mesh operations, for layouts that split the features.
    """

    on_slices: ElementFunction
    on_mesh: Callable[[mtf.Tensor, mtf.Dimension], mtf.Tensor]

    def apply(self, ctx: Context, x: mtf.Tensor, name: str, layer_name: str) -> mtf.Tensor:
        features = x.shape.dims[-1]
        if not ctx.is_whole(features):
            return mtf.cast(self.on_mesh(mtf.cast(x, ctx.statistics_dtype), features), x.dtype)

        def wide(x: tf.Tensor) -> tf.Tensor:
            return tf.cast(self.on_slices(tf.cast(x, ctx.statistics_dtype)), x.dtype)

        return kernel(wide, [x], [(x.shape, x.dtype)], x.shape.dims[:-1], name)[0]


def _elementwise(ctx: Context, function: Callable[..., tf.Tensor], *inputs: mtf.Tensor, name: str) -> mtf.Tensor:
    """`function` of the elements of the first input and of others of its shape, or of scalars, for any layout."""
    x = inputs[0]

    def wide(x: tf.Tensor, *others: tf.Tensor) -> tf.Tensor:
        dtype = ctx.statistics_dtype
        return tf.cast(function(tf.cast(x, dtype), *[tf.cast(other, dtype) for other in others]), x.dtype)

    outputs = [(x.shape, x.dtype)]
    return kernel(wide, inputs, outputs, x.shape.dims, name, recompute=ctx.tensor_cores)[0]


def _native_gelu(x: tf.Tensor, bias: tf.Tensor) -> tf.Tensor:
    """By native/gelu.c."""
    rows = tf.reshape(x, [-1, x.shape[-1]])
    (found,) = native.call("gelu", [rows, bias], [tf.TensorSpec(rows.shape, x.dtype)])
    return tf.reshape(found, x.shape)


def _native_gelu_gradient(
    x: tf.Tensor, bias: tf.Tensor, _: tf.Tensor, upstream: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """The gradients of x and bias."""
    rows, dy = (tf.reshape(t, [-1, x.shape[-1]]) for t in (x, upstream))
    results = [tf.TensorSpec(t.shape, t.dtype) for t in (rows, bias)]
    dx, dbias = native.call("gelu_gradient", [rows, bias, dy], results)
    return tf.reshape(dx, x.shape), dbias


# Activations of gates in native/gates.c, by its attribute `gelu`.
_NATIVE_GATES = {"silu": 0, "gelu": 1}


def _native_gate(gelu: int) -> tuple[Callable[..., tf.Tensor], Callable[..., tuple[tf.Tensor, tf.Tensor]]]:
    """Values times activated gates, and the gradients of both, by native/gates.c."""

    def forward(value: tf.Tensor, gate: tf.Tensor) -> tf.Tensor:
        rows = [tf.reshape(t, [-1, t.shape[-1]]) for t in (value, gate)]
        (found,) = native.call("gated", rows, [tf.TensorSpec(rows[0].shape, value.dtype)], {"gelu": gelu})
        return tf.reshape(found, value.shape)

    def backward(value: tf.Tensor, gate: tf.Tensor, _: tf.Tensor, upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        rows = [tf.reshape(t, [-1, t.shape[-1]]) for t in (value, gate, upstream)]
        results = [tf.TensorSpec(rows[0].shape, value.dtype)] * 2
        dvalue, dgate = native.call("gated_gradient", rows, results, {"gelu": gelu})
        return tf.reshape(dvalue, value.shape), tf.reshape(dgate, value.shape)

    return forward, backward


def fixed_slope(seed: int, layer_name: str) -> float:
    """The s in [0, 1) of a layer's `rrelu` (see `leaky`), a function of the config's seed and the layer's name.

    A hash, not a generator: the same on every machine and with every version of a library.
    """
    digest = hashlib.sha256(f"{seed}/{layer_name}".encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2.0**48


def leaky(s: float) -> ElementFunction:
    """x where it is positive, (1-s)/(1+s)·x elsewhere: the randomised leaky ReLU (Xu et al., 2015, arXiv:1505.00853)
    with its slope drawn once.
    """
    return lambda x: (s * tf.abs(x) + x) / (1.0 + s)


def _gelu(x: tf.Tensor) -> tf.Tensor:
    """GELU in its tanh form (Hendrycks & Gimpel, 2016, arXiv:1606.08415)."""
    return tf.nn.gelu(x, approximate=True)


def _gelu_exact(x: tf.Tensor) -> tf.Tensor:
    """GELU: x times the normal distribution's cumulative function (Hendrycks & Gimpel, 2016, arXiv:1606.08415)."""
    return 0.5 * x * (1.0 + tf.math.erf(x * 0.5**0.5))


def _triangle_relax(x: tf.Tensor) -> tf.Tensor:
    """Four terms of the Fourier series of a triangle wave."""
    return tf.sin(x) - tf.sin(3.0 * x) / 9.0 + tf.sin(5.0 * x) / 25.0 - tf.sin(7.0 * x) / 49.0


def _square_relax(x: tf.Tensor) -> tf.Tensor:
    """Four terms of the Fourier series of a square wave."""
    return tf.cos(x) - tf.cos(3.0 * x) / 3.0 + tf.cos(5.0 * x) / 5.0 - tf.cos(7.0 * x) / 7.0


def _elish(x: tf.Tensor) -> tf.Tensor:
    """x·sigmoid(x) above zero, (eˣ - 1)·sigmoid(x) below (Basirat & Roth, 2018, arXiv:1808.00783)."""
    # The branch not taken must stay finite: its gradient is multiplied by zero.
    return tf.where(x >= 0.0, x, tf.math.expm1(tf.minimum(x, 0.0))) * tf.sigmoid(x)


def _tanhexp(x: tf.Tensor) -> tf.Tensor:
    """x·tanh(eˣ) (Liu & Di, 2020, arXiv:2003.09855)."""
    # tanh(e^10) is 1 in float64 too; without the bound eˣ overflows and its gradient is 0·inf.
    return x * tf.tanh(tf.exp(tf.minimum(x, 10.0)))


_ELEMENTWISE: dict[str, ElementFunction] = {
    "relu": tf.nn.relu,
    "sigmoid": tf.sigmoid,
    "tanh": tf.tanh,
    "selu": tf.nn.selu,
    "elu": tf.nn.elu,
    "abs": tf.abs,
    "sin": tf.sin,
    "cos": tf.cos,
    "sign": tf.sign,
    "silu": lambda x: x * tf.sigmoid(x),
    "softplus": tf.nn.softplus,
    "lrelu001": lambda x: tf.nn.leaky_relu(x, alpha=0.01),
    "lrelu020": lambda x: tf.nn.leaky_relu(x, alpha=0.2),
    "triangle_relax": _triangle_relax,
    "square_relax": _square_relax,
    "spike": lambda x: 1.0 / (1.0 + tf.square(x)),
    "spike2": lambda x: tf.exp(-tf.square(x)),
    "tanhshrink": lambda x: x - tf.tanh(x),
    "softsign": tf.nn.softsign,
    "bipolarsigmoid": lambda x: 2.0 * tf.sigmoid(x) - 1.0,
    "elish": _elish,
    "arcsinh": tf.asinh,
    "maxsig": lambda x: tf.maximum(x, tf.sigmoid(x)),
    "cosid": lambda x: tf.cos(x) - x,
    "minsin": lambda x: tf.minimum(x, tf.sin(x)),
    "maxtanh": lambda x: tf.maximum(x, tf.tanh(x)),
    "mish": lambda x: x * tf.tanh(tf.nn.softplus(x)),  # Misra, 2019, arXiv:1908.08681
    "tanhexp": _tanhexp,
    "lisht": lambda x: x * tf.tanh(x),  # Roy et al., 2019, arXiv:1901.05894
    "seagull": lambda x: tf.math.log1p(tf.square(x)),
    "snake": lambda x: x + tf.square(tf.sin(x)),  # Ziyin et al., 2020, arXiv:2006.08195
    "roottanh": lambda x: tf.pow(tf.square(x) + 1.0, 1.0 / 3.0) * tf.tanh(x),
    "softplusmone": lambda x: tf.nn.softplus(x) - 1.0,
}


def _prelu(x: tf.Tensor, slope: tf.Tensor) -> tf.Tensor:
    """Leaky ReLU with a learned slope (He et al., 2015, arXiv:1502.01852)."""
    return tf.where(x >= 0.0, x, slope * x)


def _aria(
    x: tf.Tensor,
    lower: tf.Tensor,
    upper: tf.Tensor,
    log_rate: tf.Tensor,
    log_nu: tf.Tensor,
    log_c: tf.Tensor,
    log_q: tf.Tensor,
) -> tf.Tensor:
    """x times Richards' generalised logistic curve (Patwardhan et al., 2018, arXiv:1805.08878):

        x·(A + (K - A) / (C + Q·e^(-B·x))^(1/ν)),   A lower, K upper, B = e^log_rate, ν = e^log_nu

    At the initial values it is x·sigmoid(x).
    """
    log_denominator = _log_add_exp(log_c, log_q - tf.exp(log_rate) * x)
    return x * (lower + (upper - lower) * tf.exp(-log_denominator * tf.exp(-log_nu)))


def _proottanh(x: tf.Tensor, log_p: tf.Tensor, log_q: tf.Tensor, log_r: tf.Tensor) -> tf.Tensor:
    """(|x|^p + q)^(1/r)·tanh(x), each parameter the exponential of what is learned; initially `roottanh`."""
    log_x = tf.math.log(tf.maximum(tf.abs(x), 1e-6))  # log 0 and its gradient are infinite
    return tf.exp(_log_add_exp(tf.exp(log_p) * log_x, log_q) * tf.exp(-log_r)) * tf.tanh(x)


def _log_add_exp(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
    """log(eᵃ + eᵇ), for any a and b."""
    return a + tf.nn.softplus(b - a)


ACTIVATIONS: dict[str, Activation] = {
    "id": Activation(),
    "gelu": Gelu(_gelu),
    "gelu_exact": Elementwise(_gelu_exact),
    "rrelu": RandomSlope(),
    "softmax": AlongFeatures(tf.nn.softmax, mtf.softmax),
    "logsoftmax": AlongFeatures(tf.nn.log_softmax, mtf.log_softmax),
    **{name: Elementwise(function) for name, function in _ELEMENTWISE.items()},
    "prelu": LearnedActivation({"slope": 0.2}, _prelu),
    "aria": LearnedActivation(
        {"lower": 0.0, "upper": 1.0, "log_rate": 0.0, "log_nu": 0.0, "log_c": 0.0, "log_q": 0.0},
        _aria,
    ),
    "parcsinh": LearnedActivation({"a": 1.0, "log_b": 0.0}, lambda x, a, log_b: a * tf.asinh(tf.exp(log_b) * x)),
    "psoftplus": LearnedActivation({"a": 1.0, "b": 1.0, "c": 0.0}, lambda x, a, b, c: a * tf.nn.softplus(b * x) + c),
    "proottanh": LearnedActivation({"log_p": math.log(2.0), "log_q": 0.0, "log_r": math.log(3.0)}, _proottanh),
}
