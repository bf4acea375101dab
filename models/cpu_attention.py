"""Softmax attention compiled for a CPU, by native/attention.c: in memory linear in the sequence, without what no query
sees.
"""

from __future__ import annotations

from gpt_mesh.meshes import native

import tensorflow as tf  # isort: skip  (after compat, which quiets its start-up)


def fits(dtype: tf.DType) -> bool:
    """Whether it can be had, for numbers of that type."""
    return dtype == tf.float32 and native.known()


def attend(q: tf.Tensor, k: tf.Tensor, v: tf.Tensor, causal: bool, window: int | None) -> tuple[tf.Tensor, tf.Tensor]:
    """The weighted sums of values, and the logarithms of the weights' denominators.

    Args:
        q, k, v: [batch, n, heads, features]; of positions 0 … n-1 to each other.
        causal: whether a query sees only its own position and those before.
        window: how many at most, its own included, in each direction; None: all.

    Returns:
        [batch, n, heads, features], [batch, heads, n].
    """
    batch, positions, heads, _ = q.shape
    results = [tf.TensorSpec(q.shape, q.dtype), tf.TensorSpec([batch, heads, positions], tf.float32)]
    attended, log_sums = native.call("attend", [q, k, v], results, _kind(causal, window))
    return attended, log_sums


def gradient(
    q: tf.Tensor,
    k: tf.Tensor,
    v: tf.Tensor,
    attended: tf.Tensor,
    log_sums: tf.Tensor,
    upstream: tf.Tensor,
    causal: bool,
    window: int | None,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """The gradients of q, k and v, from `attend`'s results and the gradient of the first."""
    results = [tf.TensorSpec(x.shape, x.dtype) for x in (q, k, v)]
    operands = [q, k, v, attended, log_sums, upstream]
    dq, dk, dv = native.call("attend_gradient", operands, results, _kind(causal, window))
    return dq, dk, dv


def _kind(causal: bool, window: int | None) -> dict[str, int]:
    return {"causal": causal, "window": window or 0}
