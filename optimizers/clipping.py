"""Clipping of gradients by their global norm."""

from __future__ import annotations

from collections.abc import Sequence

from gpt_mesh.meshes.compat import mtf

import tensorflow as tf

from gpt_mesh.meshes import native
from gpt_mesh.models.kernels import kernel
from gpt_mesh.optimizers.optimizer import fits_native


def global_norm(gradients: Sequence[mtf.Tensor], *, cpu_kernels: bool = False) -> mtf.Tensor:
    """The Euclidean norm of all gradients together: a scalar, at least float32. `cpu_kernels`: see `Context`."""
    dtype = tf.float64 if gradients[0].dtype == tf.float64 else tf.float32

    def squares(g: tf.Tensor) -> tf.Tensor:
        return native.call("sum_of_squares", [g], [tf.TensorSpec([], tf.float32)])[0]

    sums = []
    for g in gradients:
        if cpu_kernels and fits_native(g):
            sums += kernel(squares, [g], [(mtf.Shape([]), dtype)], [], "sum_of_squares")
        else:
            sums.append(mtf.reduce_sum(mtf.square(mtf.cast(g, dtype))))
    return mtf.sqrt(mtf.add_n(sums))


def clip_factor(norm: mtf.Tensor, limit: float | None) -> mtf.Tensor:
    """The factor that brings gradients with this global norm down to `limit` (Pascanu et al., 2013, arXiv:1211.5063);
    1 if they are within it or there is no limit.

    Every update is multiplied by this factor, which depends on every gradient. So in a graph that a session runs, which
    has no other order, all weights are read before the first one changes.
    """

    def factor(n: tf.Tensor) -> tf.Tensor:
        return limit / tf.maximum(n, limit) if limit else tf.ones_like(n)

    return kernel(factor, [norm], [(norm.shape, norm.dtype)], [], "clip_factor")[0]
