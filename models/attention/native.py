"""Softmax attention compiled for a CPU, by native/attention.c: in memory linear in the sequence, and without the pairs
that the view excludes.
"""

from __future__ import annotations

from gpt_mesh.meshes.compat import mtf

import tensorflow as tf

from gpt_mesh.meshes import native
from gpt_mesh.models.attention.backend import Backend, Problem, View


class Native(Backend):
    """In C."""

    def supports(self, problem: Problem) -> bool:
        return problem.ctx.cpu_kernels and problem.is_bare and problem.on_slices and fits(problem.heads.q.dtype)

    def attend(self, problem: Problem) -> mtf.Tensor:
        view = problem.view
        return problem.run(
            lambda q, k, v: attend(q, k, v, view),
            gradient=lambda q, k, v, out, log_sums, upstream, _: gradient(q, k, v, out, log_sums, upstream, view),
            log_sums=True,
        )


def fits(dtype: tf.DType) -> bool:
    """Whether it is available for numbers of that type."""
    return dtype == tf.float32 and native.known()


def attend(q: tf.Tensor, k: tf.Tensor, v: tf.Tensor, view: View) -> tuple[tf.Tensor, tf.Tensor]:
    """The weighted sums of values, and the logarithms of the weights' denominators.

    Args:
        q, k, v: [batch, n, heads, features]; of positions 0 … n-1 to each other.

    Returns:
        [batch, n, heads, features], [batch, heads, n].
    """
    batch, positions, heads, _ = q.shape
    results = [tf.TensorSpec(q.shape, q.dtype), tf.TensorSpec([batch, heads, positions], tf.float32)]
    attended, log_sums = native.call("attend", [q, k, v], results, _attributes(view))
    return attended, log_sums


def gradient(
    q: tf.Tensor,
    k: tf.Tensor,
    v: tf.Tensor,
    attended: tf.Tensor,
    log_sums: tf.Tensor,
    upstream: tf.Tensor,
    view: View,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """The gradients of q, k and v, from `attend`'s results and the gradient of the first."""
    results = [tf.TensorSpec(x.shape, x.dtype) for x in (q, k, v)]
    operands = [q, k, v, attended, log_sums, upstream]
    dq, dk, dv = native.call("attend_gradient", operands, results, _attributes(view))
    return dq, dk, dv


def _attributes(view: View) -> dict[str, int]:
    return {"causal": view.causal, "window": view.window or 0}
