"""Normalisation of the residual stream."""

from __future__ import annotations

from gpt_mesh.meshes.compat import mtf

import tensorflow as tf

from gpt_mesh.meshes import native
from gpt_mesh.models.context import Context, constant
from gpt_mesh.models.kernels import kernel

EPSILON = 1e-5
CONSTANTS = {"epsilon": EPSILON}  # of native/layer_norm.c


def norm(ctx: Context, x: mtf.Tensor, name: str) -> mtf.Tensor:
    """The config's normalisation of x: [..., embd], with weights `<name>/...`."""
    return scale_norm(ctx, x, name) if ctx.model.scalenorm else layer_norm(ctx, x, name)


def layer_norm(ctx: Context, x: mtf.Tensor, name: str) -> mtf.Tensor:
    """Layer normalisation over `embd` with gain `<name>/g` and bias `<name>/b` (Ba et al., 2016, arXiv:1607.06450).

    Biased variance, epsilon inside the root, statistics in float32.

    Args:
        x: [..., embd].

    Returns:
        The same shape and type.
    """
    embd = ctx.dims.embd
    gain = ctx.variable(f"{name}/g", [embd], constant(1.0))
    bias = ctx.variable(f"{name}/b", [embd], constant(0.0))
    if not ctx.is_whole(embd):
        return _by_mesh_operations(ctx, x) * gain + bias
    others = [dim for dim in x.shape.dims if dim != embd]
    if ctx.cpu_products and x.dtype == tf.float32 and x.shape.dims[-1] == embd and native.known():
        return kernel(_by_native, [x, gain, bias], [(x.shape, x.dtype)], others, "layer_norm", _native_gradient)[0]

    def normalize(x: tf.Tensor, gain: tf.Tensor, bias: tf.Tensor) -> tf.Tensor:
        wide = tf.cast(x, ctx.statistics_dtype)
        centred = wide - tf.reduce_mean(wide, -1, keepdims=True)
        variance = tf.reduce_mean(tf.square(centred), -1, keepdims=True)
        return tf.cast(centred * tf.math.rsqrt(variance + EPSILON), x.dtype) * gain + bias

    return kernel(normalize, [x, gain, bias], [(x.shape, x.dtype)], others, "layer_norm")[0]


def _by_native(x: tf.Tensor, gain: tf.Tensor, bias: tf.Tensor) -> tf.Tensor:
    """By native/layer_norm.c."""
    rows = tf.reshape(x, [-1, x.shape[-1]])
    (found,) = native.call("layer_norm", [rows, gain, bias], [tf.TensorSpec(rows.shape, x.dtype)], CONSTANTS)
    return tf.reshape(found, x.shape)


def _native_gradient(
    x: tf.Tensor, gain: tf.Tensor, bias: tf.Tensor, _: tf.Tensor, upstream: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """The gradients of x, gain and bias."""
    rows, dy = (tf.reshape(t, [-1, x.shape[-1]]) for t in (x, upstream))
    results = [tf.TensorSpec(t.shape, t.dtype) for t in (rows, gain, bias)]
    dx, dgain, dbias = native.call("layer_norm_gradient", [rows, gain, dy], results, CONSTANTS)
    return tf.reshape(dx, x.shape), dgain, dbias


def _by_mesh_operations(ctx: Context, x: mtf.Tensor) -> mtf.Tensor:
    """The same where the layout splits `embd`: the means become all-reduces."""
    embd = ctx.dims.embd
    wide = mtf.cast(x, ctx.statistics_dtype)
    centred = wide - mtf.reduce_mean(wide, reduced_dim=embd)
    variance = mtf.reduce_mean(mtf.square(centred), reduced_dim=embd)
    return mtf.cast(centred * mtf.rsqrt(variance + EPSILON), x.dtype)


def scale_norm(ctx: Context, x: mtf.Tensor, name: str) -> mtf.Tensor:
    """ScaleNorm: g·x/‖x‖ over `embd`, with the one gain `<name>/g` (Nguyen & Salazar, 2019, arXiv:1910.05895).

    The gain begins at √n_embd: vectors of unit variance keep their length. A norm below 1e-5 counts as 1e-5.

    Args:
        x: [..., embd].

    Returns:
        The same shape and type.
    """
    embd = ctx.dims.embd
    gain = ctx.scalar(f"{name}/g", embd.size**0.5)
    wide = mtf.cast(x, ctx.statistics_dtype)
    squares = mtf.reduce_sum(mtf.square(wide), reduced_dim=embd)

    def rescale(x: tf.Tensor, squares: tf.Tensor, gain: tf.Tensor) -> tf.Tensor:
        # The bound is on the square: the gradient of a root at zero is infinite.
        inverse = tf.math.rsqrt(tf.maximum(squares, EPSILON**2))[..., None]
        return tf.cast(tf.cast(x, inverse.dtype) * inverse * gain, x.dtype)

    return kernel(rescale, [x, squares, gain], [(x.shape, x.dtype)], x.shape.dims, "scale_norm")[0]
