"""1.5-entmax, a sparse alternative to softmax, and its loss (Peters, Niculae & Martins, 2019, arXiv:1905.05702).

The probabilities of logits z are max(z/2 - τ, 0)², where the threshold τ makes them sum to 1. The paper finds τ by
sorting; this module uses Newton's method. The sum is a decreasing, convex, piecewise quadratic function of τ, so Newton
steps from the left never overshoot and converge to machine precision. Compared with sorting, for rows of 50257 float32
logits compiled on a CPU: 4 to 10 times as fast (7 to 13 steps), the error of the sum is 3e-7 instead of 3e-6 to 2e-4
(cumulative sums cancel), and no sorted copy of the logits is stored.
"""

from __future__ import annotations

from gpt_mesh.meshes.compat import mtf

import tensorflow as tf

from gpt_mesh.models.context import Context
from gpt_mesh.models.kernels import kernel

# 10 steps of halving the distance are enough for 10^6 equal logits; convergence is quadratic after that.
MAX_STEPS = 60


def probabilities(logits: tf.Tensor) -> tf.Tensor:
    """1.5-entmax of logits [..., n], float32 or wider: non-negative, same shape, each row sums to 1."""
    return tf.square(_roots(logits, *threshold(logits)))


def threshold(logits: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The maximum of each row of logits [..., n], and τ for logits with the maximum subtracted: [...] each.

    τ lies in [-1, 0), since the largest probability is τ² and at most 1.
    """
    peak = tf.reduce_max(logits, -1)
    halves = (logits - peak[..., None]) / 2.0

    def step(i: tf.Tensor, tau: tf.Tensor, moved: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        del moved
        roots = tf.maximum(halves - tau[..., None], 0.0)
        excess = tf.reduce_sum(tf.square(roots), -1) - 1.0
        new = tau + tf.maximum(excess, 0.0) / (2.0 * tf.reduce_sum(roots, -1))
        return i + 1, new, tf.reduce_any(new > tau)

    start = (tf.constant(0), -tf.ones_like(peak), tf.constant(True))
    _, tau, _ = tf.while_loop(lambda i, tau, moved: tf.logical_and(moved, i < MAX_STEPS), step, start)
    return peak, tau


def _roots(logits: tf.Tensor, peak: tf.Tensor, tau: tf.Tensor) -> tf.Tensor:
    """Square roots of the probabilities."""
    return tf.maximum((logits - peak[..., None]) / 2.0 - tau[..., None], 0.0)


def loss(ctx: Context, logits: mtf.Tensor, labels: mtf.Tensor) -> mtf.Tensor:
    """The Fenchel-Young loss of 1.5-entmax. With probabilities p and the one-hot label e:

        loss = (p - e)·z + 4/3·Σ(p - p^1.5),   gradient = p - e

    It is 0 if and only if p = e, and finite even if the label has probability 0.

    Args:
        logits: [batch, sequence, vocab]; gathered along `vocab` first if the layout splits it.
        labels: integers [batch, sequence].

    Returns:
        [batch, sequence] in float32.
    """
    shape, dtype = labels.shape, ctx.statistics_dtype
    if not ctx.is_whole(ctx.dims.vocab):
        logits = mtf.replace_dimensions(logits, ctx.dims.vocab, ctx.dims.whole_vocab)

    def find(logits: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return threshold(tf.cast(logits, dtype))

    def compare(logits: tf.Tensor, labels: tf.Tensor, peak: tf.Tensor, tau: tf.Tensor) -> tf.Tensor:
        return _fenchel_young(tf.cast(logits, dtype), labels, peak, tau)

    # Two kernels, so that the gradient of the second does not repeat the search for the threshold.
    found = kernel(find, [mtf.stop_gradient(logits)], [(shape, dtype)] * 2, shape.dims, "entmax_threshold")
    operands, wide_logits = [logits, labels, *found], (logits.shape, dtype)
    return kernel(compare, operands, [(shape, dtype)], shape.dims, "entmax_loss", kept=[wide_logits])[0]


def _fenchel_young(logits: tf.Tensor, labels: tf.Tensor, peak: tf.Tensor, tau: tf.Tensor) -> tf.Tensor:
    """Loss [...] for logits [..., vocab], given their threshold."""

    @tf.custom_gradient
    def compare(logits: tf.Tensor) -> tuple[tf.Tensor, object]:
        roots = _roots(logits, peak, tau)
        p, label = tf.square(roots), tf.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
        # Invariant to a constant offset; subtracting the maximum keeps the numbers small.
        terms = (p - label) * (logits - peak[..., None])
        value = tf.reduce_sum(terms + 4.0 / 3.0 * (p - p * roots), -1)
        return value, lambda dy: dy[..., None] * (p - label)

    return compare(logits)
