"""Losses over the vocabulary."""

from __future__ import annotations

from gpt_mesh.meshes.compat import mtf

import tensorflow as tf

from gpt_mesh.models.context import Context
from gpt_mesh.models.kernels import kernel


def cross_entropy(ctx: Context, logits: mtf.Tensor, labels: mtf.Tensor) -> tuple[mtf.Tensor, mtf.Tensor]:
    """Negative log-likelihood of each label, and the log of each softmax's denominator.

    Args:
        logits: [batch, sequence, vocab].
        labels: integers [batch, sequence].

    Returns:
        nll and log_z, both [batch, sequence] in float32, in nats.
    """
    shape, dtype = labels.shape, ctx.statistics_dtype
    if not ctx.is_whole(ctx.dims.vocab):
        return _by_mesh_operations(ctx, logits, labels)

    def nll_and_log_z(logits: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        wide = tf.cast(logits, dtype)
        log_z = tf.reduce_logsumexp(wide, -1)
        chosen = tf.one_hot(labels, wide.shape[-1], dtype=dtype)  # fused by XLA: no array of that size is made
        return log_z - tf.reduce_sum(wide * chosen, -1), log_z

    outputs, wide_logits = [(shape, dtype)] * 2, (logits.shape, dtype)
    nll, log_z = kernel(nll_and_log_z, [logits, labels], outputs, shape.dims, "cross_entropy", kept=[wide_logits])
    return nll, log_z


def _by_mesh_operations(ctx: Context, logits: mtf.Tensor, labels: mtf.Tensor) -> tuple[mtf.Tensor, mtf.Tensor]:
    """The same where the layout splits `vocab`."""
    vocab = ctx.dims.vocab
    wide = mtf.cast(logits, ctx.statistics_dtype)
    log_z = mtf.reduce_logsumexp(wide, vocab)
    chosen = mtf.one_hot(labels, vocab, dtype=wide.dtype)
    return log_z - mtf.reduce_sum(wide * chosen, reduced_dim=vocab), log_z


def correct(ctx: Context, logits: mtf.Tensor, labels: mtf.Tensor) -> mtf.Tensor:
    """1.0 where the label has the largest logit, else 0.0: [batch, sequence] in float32."""
    best = mtf.argmax(mtf.cast(logits, ctx.statistics_dtype), ctx.dims.vocab)
    return mtf.cast(mtf.equal(best, mtf.cast(labels, tf.int32)), ctx.statistics_dtype)
