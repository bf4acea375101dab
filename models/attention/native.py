"""Softmax attention compiled for a CPU, by native/attention.c: in memory linear in the sequence, and without the pairs
that the view excludes.
"""

from __future__ import annotations

from collections.abc import Sequence

from gpt_mesh.meshes.compat import mtf

import tensorflow as tf

from gpt_mesh.meshes import native
from gpt_mesh.models.attention.backend import Backend, Problem, View
from gpt_mesh.models.positions import LinearBias


class Native(Backend):
    """In C."""

    def supports(self, problem: Problem) -> bool:
        ctx, heads = problem.ctx, problem.heads
        known_bias = heads.bias is None or isinstance(heads.bias, LinearBias)
        return ctx.cpu_kernels and not heads.memory and known_bias and problem.on_slices and fits(heads.q.dtype)

    def attend(self, problem: Problem) -> mtf.Tensor:
        view, bias, starts = problem.view, problem.heads.bias, len(problem.starts)

        def slopes(operands: Sequence[tf.Tensor]) -> tf.Tensor | None:
            return bias.slopes(*operands[starts:], tf.float32) if isinstance(bias, LinearBias) else None

        def given(operands: Sequence[tf.Tensor]) -> tuple[tf.Tensor | None, tf.Tensor | None]:
            return slopes(operands), operands[0] if starts else None

        def differentiate(q: tf.Tensor, k: tf.Tensor, v: tf.Tensor, *rest: tf.Tensor) -> tuple[tf.Tensor, ...]:
            *operands, out, log_sums, upstream, _ = rest
            return gradient(q, k, v, out, log_sums, upstream, view, *given(operands))

        return problem.run(
            lambda q, k, v, *operands: attend(q, k, v, view, *given(operands)),
            [*problem.starts, *([] if bias is None else bias.operands)],
            gradient=differentiate,
            log_sums=True,
        )


def fits(dtype: tf.DType) -> bool:
    """Whether it is available for numbers of that type."""
    return dtype == tf.float32 and native.known()


def attend(
    q: tf.Tensor, k: tf.Tensor, v: tf.Tensor, view: View, slopes: tf.Tensor | None = None,
    starts: tf.Tensor | None = None,
) -> tuple[tf.Tensor, tf.Tensor]:
    """The weighted sums of values, and the logarithms of the weights' denominators.

    Args:
        q: [batch, n, heads, features]; attention is of positions 0 … n-1 to each other.
        k, v: [batch, n, kv heads, features]; each of these heads is read by a group of consecutive heads of q.
        slopes: [heads], of a `LinearBias`.
        starts: [batch, n], the first position of each position's sample, for causal attention inside samples.

    Returns:
        [batch, n, heads, features], [batch, heads, n].
    """
    batch, positions, heads, _ = q.shape
    results = [tf.TensorSpec(q.shape, q.dtype), tf.TensorSpec([batch, heads, positions], tf.float32)]
    more, attributes = _more(view, slopes, starts)
    attended, log_sums = native.call("attend", [q, k, v, *more], results, attributes)
    return attended, log_sums


def gradient(
    q: tf.Tensor,
    k: tf.Tensor,
    v: tf.Tensor,
    attended: tf.Tensor,
    log_sums: tf.Tensor,
    upstream: tf.Tensor,
    view: View,
    slopes: tf.Tensor | None = None,
    starts: tf.Tensor | None = None,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """The gradients of q, k and v, from `attend`'s results and the gradient of the first."""
    results = [tf.TensorSpec(x.shape, x.dtype) for x in (q, k, v)]
    more, attributes = _more(view, slopes, starts)
    dq, dk, dv = native.call("attend_gradient", [q, k, v, attended, log_sums, upstream, *more], results, attributes)
    return dq, dk, dv


def _more(
    view: View, slopes: tf.Tensor | None, starts: tf.Tensor | None
) -> tuple[list[tf.Tensor], dict[str, int]]:
    """Operands beside the others, and attributes that announce them."""
    found = [*([] if slopes is None else [slopes]), *([] if starts is None else [tf.cast(starts, tf.float32)])]
    given = {"slopes": slopes is not None, "starts": starts is not None}
    return found, {"causal": view.causal, "window": view.window or 0, **given}
