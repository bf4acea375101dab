"""Normalisation of the residual stream: the classes in `NORMS`, by the names of the config."""

from __future__ import annotations

from collections.abc import Callable

from gpt_mesh.meshes.compat import mtf

import tensorflow as tf

from gpt_mesh.config import ModelConfig
from gpt_mesh.meshes import native
from gpt_mesh.models.context import Context, constant
from gpt_mesh.models.kernels import kernel


class Norm:
    """Base of all; by itself, the identity."""

    def apply(self, ctx: Context, x: mtf.Tensor, name: str) -> mtf.Tensor:
        """x [..., embd] normalised over `embd`, in the same shape and type; weights are `<name>/...`."""
        del ctx, name
        return x


class LayerNorm(Norm):
    """Layer normalisation with gain `<name>/g` and bias `<name>/b` (Ba et al., 2016, arXiv:1607.06450).

    Biased variance, epsilon inside the root, statistics in float32. Without `use_bias_in_norms` there is no bias.
    """

    def apply(self, ctx: Context, x: mtf.Tensor, name: str) -> mtf.Tensor:
        embd = ctx.dims.embd
        weights = [ctx.variable(f"{name}/g", [embd], constant(1.0))]
        if ctx.model.use_bias_in_norms:
            weights.append(ctx.variable(f"{name}/b", [embd], constant(0.0)))
        return _normalize(ctx, x, weights, embd, centred=True)


class RmsNorm(Norm):
    """RMSNorm: x / sqrt(mean(x²) + epsilon) with gain `<name>/g` (Zhang & Sennrich, 2019, arXiv:1910.07467).

    Statistics in float32; the result is rounded to the activation type before the gain multiplies it.
    """

    def apply(self, ctx: Context, x: mtf.Tensor, name: str) -> mtf.Tensor:
        return rms_norm(ctx, x, name, ctx.dims.embd)


def rms_norm(ctx: Context, x: mtf.Tensor, name: str, dim: mtf.Dimension) -> mtf.Tensor:
    """RMSNorm of x [..., dim] over `dim`, its last dimension, with gain `<name>/g`."""
    return _normalize(ctx, x, [ctx.variable(f"{name}/g", [dim], constant(1.0))], dim, centred=False)


def _normalize(
    ctx: Context, x: mtf.Tensor, weights: list[mtf.Tensor], dim: mtf.Dimension, *, centred: bool
) -> mtf.Tensor:
    """x [..., dim] over its root mean square, with `centred` after its mean is subtracted.

    Args:
        weights: a gain [dim], and perhaps a bias [dim].
    """
    epsilon, dtype = ctx.model.norm_epsilon, ctx.statistics_dtype
    if not ctx.is_whole(dim):  # the means become all-reduces
        wide = mtf.cast(x, dtype)
        if centred:
            wide -= mtf.reduce_mean(wide, reduced_dim=dim)
        square = mtf.reduce_mean(mtf.square(wide), reduced_dim=dim)
        found = mtf.cast(wide * mtf.rsqrt(square + epsilon), x.dtype)
        return found * weights[0] + weights[1] if len(weights) > 1 else found * weights[0]
    others = [other for other in x.shape.dims if other != dim]
    outputs, name = [(x.shape, x.dtype)], "layer_norm" if centred else "rms_norm"
    if ctx.cpu_kernels and x.dtype == tf.float32 and x.shape.dims[-1] == dim and native.known():
        forward, backward = _by_native(epsilon, centred)
        return kernel(forward, [x, *weights], outputs, others, name, backward)[0]

    def normalize(x: tf.Tensor, gain: tf.Tensor, *bias: tf.Tensor) -> tf.Tensor:
        wide = tf.cast(x, dtype)
        if centred:
            wide -= tf.reduce_mean(wide, -1, keepdims=True)
        square = tf.reduce_mean(tf.square(wide), -1, keepdims=True)
        found = tf.cast(wide * tf.math.rsqrt(square + epsilon), x.dtype) * gain
        return found + bias[0] if bias else found

    return kernel(normalize, [x, *weights], outputs, others, name)[0]


SliceFunctions = tuple[Callable[..., tf.Tensor], Callable[..., tuple[tf.Tensor, ...]]]


def _by_native(epsilon: float, centred: bool) -> SliceFunctions:
    """The norm of slices, and its gradient, by native/norms.c."""
    attributes = {"epsilon": epsilon, "centred": int(centred)}

    def forward(x: tf.Tensor, *weights: tf.Tensor) -> tf.Tensor:
        rows = tf.reshape(x, [-1, x.shape[-1]])
        (found,) = native.call("norm", [rows, *weights], [tf.TensorSpec(rows.shape, x.dtype)], attributes)
        return tf.reshape(found, x.shape)

    def backward(x: tf.Tensor, gain: tf.Tensor, *rest: tf.Tensor) -> tuple[tf.Tensor, ...]:
        *bias, _, upstream = rest
        rows, dy = (tf.reshape(t, [-1, x.shape[-1]]) for t in (x, upstream))
        results = [tf.TensorSpec(t.shape, t.dtype) for t in (rows, gain, *bias)]
        dx, *dweights = native.call("norm_gradient", [rows, gain, dy], results, attributes)
        return tf.reshape(dx, x.shape), *dweights

    return forward, backward


class ScaleNorm(Norm):
    """ScaleNorm: g·x/‖x‖, with the one gain `<name>/g` (Nguyen & Salazar, 2019, arXiv:1910.05895).

    The initial gain is √n_embd, which keeps the length of vectors of unit variance. A length below `norm_epsilon`
    counts as `norm_epsilon`.
    """

    def apply(self, ctx: Context, x: mtf.Tensor, name: str) -> mtf.Tensor:
        embd, epsilon = ctx.dims.embd, ctx.model.norm_epsilon
        gain = ctx.scalar(f"{name}/g", embd.size**0.5)
        wide = mtf.cast(x, ctx.statistics_dtype)
        squares = mtf.reduce_sum(mtf.square(wide), reduced_dim=embd)

        def rescale(x: tf.Tensor, squares: tf.Tensor, gain: tf.Tensor) -> tf.Tensor:
            # The bound is on the square: the gradient of a root at zero is infinite.
            inverse = tf.math.rsqrt(tf.maximum(squares, epsilon**2))[..., None]
            return tf.cast(tf.cast(x, inverse.dtype) * inverse * gain, x.dtype)

        return kernel(rescale, [x, squares, gain], [(x.shape, x.dtype)], x.shape.dims, "scale_norm")[0]


class CentredScaleNorm(Norm):
    """What the original GPT-Neo calls ScaleNorm: layer norm whose gain is the one scalar `<name>/g`, without a bias."""

    def apply(self, ctx: Context, x: mtf.Tensor, name: str) -> mtf.Tensor:
        embd = ctx.dims.embd
        gain, wide = ctx.scalar(f"{name}/g", 1.0), mtf.cast(x, ctx.statistics_dtype)
        wide -= mtf.reduce_mean(wide, reduced_dim=embd)
        variance = mtf.reduce_mean(mtf.square(wide), reduced_dim=embd)
        return mtf.cast(wide * mtf.rsqrt(variance + ctx.model.norm_epsilon) * gain, x.dtype)


NORMS: dict[str, Norm] = {
    "layernorm": LayerNorm(),
    "rmsnorm": RmsNorm(),
    "scalenorm": ScaleNorm(),
    "none": Norm(),
}


def norm_of(model: ModelConfig) -> Norm:
    """The norm of a model's blocks."""
    if model.gpt_neo_original and model.norm == "scalenorm":
        return CentredScaleNorm()
    return NORMS[model.norm]


# A block adds branches to the residual stream, x + f(x). What a branch reads, and what is added of its output:


def before(ctx: Context, x: mtf.Tensor, name: str) -> mtf.Tensor:
    """What the branch `name`, such as "h0/norm_1", reads of the residual stream x [..., embd]: the stream itself with
    `rezero`, and with norms after the branch alone.
    """
    as_it_is = ctx.model.rezero or ctx.model.norm_placement == "post"
    return x if as_it_is else norm_of(ctx.model).apply(ctx, x, name)


def after(ctx: Context, y: mtf.Tensor, name: str, site: str) -> mtf.Tensor:
    """What is added to the residual stream of a branch's output y [..., embd]: normalised if `norm_placement` says so,
    with dropout, and with `rezero` times a learned gain that begins at 0 (Bachlechner et al., 2020, arXiv:2003.04887).
    """
    if ctx.model.norm_placement != "pre":
        y = norm_of(ctx.model).apply(ctx, y, f"{name}_post")
    return gained(ctx, ctx.dropout(y, ctx.model.res_dropout, site), name)


def gained(ctx: Context, y: mtf.Tensor, name: str) -> mtf.Tensor:
    """y times the gain of the branch `name` with `rezero`, else y."""
    if not ctx.model.rezero:
        return y
    return y * ctx.variable(f"{name.replace('/norm_', '/norm_rezero_')}/g", [], constant(0.0))
