"""Optimizers as mesh operations: clipping, Adam, weight decay."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from config import OptimizerConfig
from meshes.compat import mtf
from models.context import constant
from models.kernels import kernel


def global_norm(gradients: Sequence[mtf.Tensor]) -> mtf.Tensor:
    """The Euclidean norm of all gradients together: a scalar, at least float32."""
    dtype = tf.float64 if gradients[0].dtype == tf.float64 else tf.float32
    return mtf.sqrt(mtf.add_n([mtf.reduce_sum(mtf.square(mtf.cast(g, dtype))) for g in gradients]))


def clip_factor(norm: mtf.Tensor, limit: float) -> mtf.Tensor:
    """What to multiply gradients by so that their global norm is at most `limit` (Pascanu et al., 2013,
    arXiv:1211.5063).
    """
    return kernel(lambda n: limit / tf.maximum(n, limit), [norm], [(norm.shape, norm.dtype)], [], "clip_factor")[0]


def adam(
    weights: Sequence[mtf.Variable],
    gradients: Sequence[mtf.Tensor],
    lr: mtf.Tensor,
    scale: mtf.Tensor,
    config: OptimizerConfig,
) -> list[mtf.Operation]:
    """One step of Adam without bias correction (Kingma & Ba, 2014, arXiv:1412.6980), with decoupled weight decay
    (Loshchilov & Hutter, 2017, arXiv:1711.05101) on matrices only.

    m and v are kept as `<weight>/adam_m` and `<weight>/adam_v`, in the type of the master weight:

        m = beta1·m + (1-beta1)·g;   v = beta2·v + (1-beta2)·g²;   w -= lr·(m / (√v + epsilon) + weight_decay·w)

    Args:
        weights: the variables to update, and `gradients` theirs, in the same order.
        lr, scale: float scalars; gradients are multiplied by `scale` first.
        config: the constants.

    Returns:
        Operations that do the update.
    """
    return [
        op
        for weight, gradient in zip(weights, gradients, strict=True)
        for op in _adam_one(weight, gradient, lr, scale, config)
    ]


def _adam_one(
    weight: mtf.Variable, gradient: mtf.Tensor, lr: mtf.Tensor, scale: mtf.Tensor, config: OptimizerConfig
) -> list[mtf.Operation]:
    shape, dtype = weight.shape, weight.master_dtype
    m, v = (_slot(weight, name) for name in ("adam_m", "adam_v"))
    decay = config.weight_decay if len(shape) > 1 else 0.0

    def update(
        w: tf.Tensor, g: tf.Tensor, m: tf.Tensor, v: tf.Tensor, lr: tf.Tensor, scale: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        lr = tf.cast(lr, dtype)
        g = tf.cast(g, dtype) * tf.cast(scale, dtype)
        m = config.beta1 * m + (1.0 - config.beta1) * g
        v = config.beta2 * v + (1.0 - config.beta2) * tf.square(g)
        change = m / (tf.sqrt(v) + config.epsilon)
        if decay:
            change += decay * w
        return w - lr * change, m, v

    operands = [master_value(weight), gradient, m.value, v.value, lr, scale]
    updated = kernel(update, operands, [(shape, dtype)] * 3, shape.dims, "adam")
    return [mtf.assign(variable, value) for variable, value in zip((weight, m, v), updated, strict=True)]


def _slot(weight: mtf.Variable, name: str) -> mtf.Variable:
    """The optimizer's variable `<weight>/<name>`: same shape and stored type, zeros at first."""
    tensor = mtf.get_variable(
        weight.mesh,
        f"{weight.name}/{name}",
        weight.shape,
        dtype=weight.master_dtype,
        initializer=constant(0.0),
        trainable=False,
    )
    return tensor.operation


def master_value(weight: mtf.Variable) -> mtf.Tensor:
    """The weight as stored, not narrowed to the activation type."""
    return weight.value if weight.activation_dtype == weight.slice_dtype else _ReadStored(weight).outputs[0]


class _ReadStored(mtf.Operation):
    def __init__(self, weight: mtf.Variable) -> None:
        super().__init__([], mesh=weight.mesh, name="read_stored")
        self.weight = weight
        self._outputs = [mtf.Tensor(self, weight.shape, weight.slice_dtype)]
        self._splittable_dims, self._unsplittable_dims = self._initialize_all_dimensions_as_splittable()

    def lower(self, lowering: mtf.Lowering) -> None:
        stored = lowering.variables[self.weight].laid_out_tensor
        lowering.set_tensor_lowering(self.outputs[0], lowering.mesh_impl(self).slicewise(tf.identity, stored))
