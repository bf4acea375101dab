"""Normalisation of the residual stream: the classes in `NORMS`, by name.

A block adds branches to the residual stream: x + f(x). A norm decides what a branch reads (`before`), what its output
is multiplied by (`after`), and what the model's last activations go through (`apply`).
"""

from __future__ import annotations

from gpt_mesh.meshes.compat import mtf

import tensorflow as tf

from gpt_mesh.config import ModelConfig
from gpt_mesh.meshes import native
from gpt_mesh.models.context import Context, constant
from gpt_mesh.models.kernels import kernel

EPSILON = 1e-5
CONSTANTS = {"epsilon": EPSILON}  # of native/layer_norm.c


class Norm:
    """Base of all: each branch reads the normalised stream (pre-norm)."""

    def apply(self, ctx: Context, x: mtf.Tensor, name: str) -> mtf.Tensor:
        """x [..., embd] normalised over `embd`, in the same shape and type; weights are `<name>/...`."""
        raise NotImplementedError

    def before(self, ctx: Context, x: mtf.Tensor, name: str) -> mtf.Tensor:
        """What a branch reads of the residual stream x [..., embd]."""
        return self.apply(ctx, x, name)

    def after(self, ctx: Context, y: mtf.Tensor, name: str) -> mtf.Tensor:
        """What is added to the residual stream of a branch's output y [..., embd]."""
        del ctx, name
        return y


class LayerNorm(Norm):
    """Layer normalisation with gain `<name>/g` and bias `<name>/b` (Ba et al., 2016, arXiv:1607.06450).

    Biased variance, epsilon inside the root, statistics in float32.
    """

    def apply(self, ctx: Context, x: mtf.Tensor, name: str) -> mtf.Tensor:
        embd = ctx.dims.embd
        gain = ctx.variable(f"{name}/g", [embd], constant(1.0))
        bias = ctx.variable(f"{name}/b", [embd], constant(0.0))
        if not ctx.is_whole(embd):
            return _by_mesh_operations(ctx, x) * gain + bias
        others = [dim for dim in x.shape.dims if dim != embd]
        if ctx.cpu_kernels and x.dtype == tf.float32 and x.shape.dims[-1] == embd and native.known():
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
    """Layer norm without gain and bias for layouts that split `embd`: the means become all-reduces."""
    embd = ctx.dims.embd
    wide = mtf.cast(x, ctx.statistics_dtype)
    centred = wide - mtf.reduce_mean(wide, reduced_dim=embd)
    variance = mtf.reduce_mean(mtf.square(centred), reduced_dim=embd)
    return mtf.cast(centred * mtf.rsqrt(variance + EPSILON), x.dtype)


class ScaleNorm(Norm):
    """ScaleNorm: g·x/‖x‖, with the one gain `<name>/g` (Nguyen & Salazar, 2019, arXiv:1910.05895).

    The initial gain is √n_embd, which keeps the length of vectors of unit variance. A norm below 1e-5 counts as 1e-5.
    """

    def apply(self, ctx: Context, x: mtf.Tensor, name: str) -> mtf.Tensor:
        embd = ctx.dims.embd
        gain = ctx.scalar(f"{name}/g", embd.size**0.5)
        wide = mtf.cast(x, ctx.statistics_dtype)
        squares = mtf.reduce_sum(mtf.square(wide), reduced_dim=embd)

        def rescale(x: tf.Tensor, squares: tf.Tensor, gain: tf.Tensor) -> tf.Tensor:
            # The bound is on the square: the gradient of a root at zero is infinite.
            inverse = tf.math.rsqrt(tf.maximum(squares, EPSILON**2))[..., None]
            return tf.cast(tf.cast(x, inverse.dtype) * inverse * gain, x.dtype)

        return kernel(rescale, [x, squares, gain], [(x.shape, x.dtype)], x.shape.dims, "scale_norm")[0]


class ReZero(LayerNorm):
    """Branches read the stream as it is, and a learned gain that begins at 0 multiplies their outputs (Bachlechner et
    al., 2020, arXiv:2003.04887). The last activations go through a layer norm.
    """

    def before(self, ctx: Context, x: mtf.Tensor, name: str) -> mtf.Tensor:
        del ctx, name
        return x

    def after(self, ctx: Context, y: mtf.Tensor, name: str) -> mtf.Tensor:
        return y * ctx.variable(f"{name.replace('/norm_', '/norm_rezero_')}/g", [], constant(0.0))


NORMS: dict[str, Norm] = {"layernorm": LayerNorm(), "scalenorm": ScaleNorm(), "rezero": ReZero()}


def norm_name(model: ModelConfig) -> str:
    """The name in `NORMS` that a config's keys stand for."""
    if model.rezero:
        return "rezero"
    return "scalenorm" if model.scalenorm else "layernorm"


def norm_of(model: ModelConfig) -> Norm:
    """The norm of a model."""
    return NORMS[norm_name(model)]
