"""Cross-entropy straight from the last activations, without the scores of a whole batch.

Scores over the vocabulary are by far the largest tensor of a training step: tokens × vocabulary, in float32, and their
gradient once more. Here they exist for a piece of the tokens at a time. As nothing follows but a sum over tokens with
known shares, the gradients with respect to activations and weights are computed with the loss, from scores that are at
hand (Hsu et al., 2024, arXiv:2410.10989, do the same on GPUs); the backward pass only multiplies them.
"""

from __future__ import annotations

from typing import Any

from gpt_mesh.meshes.compat import mtf

import tensorflow as tf

from gpt_mesh.meshes import native
from gpt_mesh.models import kernels
from gpt_mesh.models.context import Context

# Scores of a piece, in bytes of float32. On a CPU a piece is to stay in its caches; on a GPU each further piece reads
# and writes the weights' gradient once more.
CPU_BYTES, GPU_BYTES = 2**24, 2**31
# Of vocabulary_loss.c: tokens of a piece, which adds to the weights' gradient once, and numbers of the longest vector.
CPU_TOKENS, VECTOR = 512, 16
ALIKE = 1024  # numbers from one to the next that stands for the same lines of a CPU's first cache


def fits(ctx: Context) -> bool:
    """Whether each device has whole rows of scores: the layout splits neither the vocabulary nor the embedding."""
    return ctx.is_whole(ctx.dims.vocab, ctx.dims.embd)


def cross_entropy(
    ctx: Context, x: mtf.Tensor, weight: mtf.Tensor, labels: mtf.Tensor, shares: mtf.Tensor, z_loss: float
) -> tuple[mtf.Tensor, mtf.Tensor]:
    """Sums over tokens of share · (nll + z_loss · (log Z)²), which has gradients, and of share · nll, which has none.

    Args:
        ctx: of a graph for which `fits` holds.
        x: [batch, sequence, embd], what scores are made of.
        weight: [vocab, embd] or [embd, vocab].
        labels: integers [batch, sequence].
        shares: [batch, sequence] in float32, of each token in the sums; no gradient flows into them.
        z_loss: weight of the squared log of softmax's denominator.

    Returns:
        Two float32 scalars, in nats.
    """
    objective, nll, *_ = _CrossEntropy(ctx, x, weight, labels, shares, z_loss).outputs
    return objective, nll


class _CrossEntropy(kernels.SliceOperation):
    """Outputs: the two sums, and the gradients of the first with respect to x and the weight."""

    def __init__(
        self, ctx: Context, x: mtf.Tensor, weight: mtf.Tensor, labels: mtf.Tensor, shares: mtf.Tensor, z_loss: float
    ) -> None:
        super().__init__([x, weight, labels, shares], name="vocabulary_loss")
        self.dtype, self.z_loss = ctx.statistics_dtype, z_loss
        self.rows_are_vocab = weight.shape.dims[0] == ctx.dims.vocab
        self.flops = 6.0 * labels.shape.size * weight.shape.size  # logits, and the gradients of both their factors
        self.by_native = ctx.cpu_kernels and x.dtype == weight.dtype == tf.float32 and native.known()
        scalar = mtf.Shape([])
        outputs = [(scalar, self.dtype), (scalar, self.dtype), (x.shape, x.dtype), (weight.shape, weight.dtype)]
        self._outputs = [mtf.Tensor(self, shape, dtype, index=i) for i, (shape, dtype) in enumerate(outputs)]
        self._splittable_dims, self._unsplittable_dims = self._initialize_splittable_and_unsplittable_dims(
            "unsplittable", [dim.name for dim in labels.shape.dims]
        )

    def gradient(self, grad_ys: list[mtf.Tensor | None]) -> list[mtf.Tensor | None]:
        scale, *others = grad_ys
        assert scale is not None and not any(others), "only the objective has gradients"
        dx, dweight = (kernels.scaled(found, scale) for found in self.outputs[2:])
        return [dx, dweight, None, None]

    def lower(self, lowering: mtf.Lowering) -> None:
        operands = [kernels.laid_out(lowering, x) for x in self.inputs]
        values = lowering.mesh_impl(self).slicewise(self._slice, *operands)
        for output, value in zip(self.outputs, values, strict=True):
            self._set_output(lowering, output, value)

    def summed(self, output: mtf.Tensor) -> set[str]:
        del output
        return {name for x in self.inputs for name in x.shape.dimension_names}

    def workspace(self, tokens: float, on_cpu: bool) -> float:
        """Bytes of logits, and of their gradient, that a device holds at a time for its `tokens`."""
        vocab = self.inputs[1].shape.dims[0 if self.rows_are_vocab else 1].size
        if self.by_native:
            return 4.0 * min(tokens, CPU_TOKENS) * vocab
        limit = CPU_BYTES if on_cpu else GPU_BYTES
        return 2 * min(4.0 * tokens * vocab, limit) * self.inputs[0].dtype.size / 4

    def _slice(self, x: tf.Tensor, weight: tf.Tensor, labels: tf.Tensor, shares: tf.Tensor) -> tuple[tf.Tensor, ...]:
        width, vocab = x.shape[-1], weight.shape[0 if self.rows_are_vocab else 1]
        tokens = labels.shape.num_elements()
        if self.by_native:
            return self._by_native(x, weight, labels, shares, tokens)
        count, size = pieces(tokens, vocab * self.dtype.size)

        def cut(t: tf.Tensor, *features: int) -> tf.Tensor:
            flat = tf.reshape(t, [tokens, *features])  # the last piece is filled up with tokens that have no share
            filled = tf.pad(flat, [[0, count * size - tokens], *[[0, 0] for _ in features]])
            return tf.reshape(filled, [count, size, *features])

        given = cut(x, width), weight, cut(labels), cut(shares)
        if count == 1:
            objective, nll, dx, dweight = self._piece(given[0][0], weight, given[2][0], given[3][0])
        else:
            objective, nll, dx, dweight = self._by_pieces(*given)
        dx = tf.reshape(dx, [count * size, width])[:tokens]
        dweight = tf.transpose(dweight) if self.rows_are_vocab else dweight
        return objective, nll, tf.reshape(dx, x.shape), tf.cast(dweight, weight.dtype)

    def _by_native(
        self, x: tf.Tensor, weight: tf.Tensor, labels: tf.Tensor, shares: tf.Tensor, tokens: int
    ) -> tuple[tf.Tensor, ...]:
        """The same by native/vocabulary_loss.c."""
        width, vocab = x.shape[-1], weight.shape[0 if self.rows_are_vocab else 1]
        flat, chunk = tf.reshape(x, [tokens, width]), min(tokens, CPU_TOKENS)
        scratch = [[chunk, row_of_scores(vocab)], [chunk, width], [2, tokens]]
        shapes = [[], [], flat.shape, weight.shape, *scratch]
        given = [flat, weight, tf.reshape(tf.cast(labels, tf.int32), [tokens]), tf.reshape(shares, [tokens])]
        results = [tf.TensorSpec(shape, tf.float32) for shape in shapes]
        how = {"z_loss": float(self.z_loss), "transposed": not self.rows_are_vocab}
        objective, nll, dx, dweight, *_ = native.call("vocabulary_loss", given, results, how)
        return objective, nll, tf.reshape(dx, x.shape), dweight

    def _by_pieces(
        self, xs: tf.Tensor, weight: tf.Tensor, ids: tf.Tensor, shares: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
        count = xs.shape[0]

        def step(i: tf.Tensor, objective: tf.Tensor, nll: tf.Tensor, dxs: Any, dweight: tf.Tensor) -> Any:
            more, more_nll, dx, more_dweight = self._piece(xs[i], weight, ids[i], shares[i])
            return i + 1, objective + more, nll + more_nll, dxs.write(i, dx), dweight + more_dweight

        zero = tf.zeros([], self.dtype)
        dxs = tf.TensorArray(xs.dtype, size=count, element_shape=xs.shape[1:])
        dweight = tf.zeros([xs.shape[2], weight.shape[0 if self.rows_are_vocab else 1]], self.dtype)
        start = (tf.constant(0), zero, zero, dxs, dweight)
        _, objective, nll, dxs, dweight = tf.while_loop(
            lambda i, *_: i < count, step, start, maximum_iterations=count, parallel_iterations=1
        )
        return objective, nll, dxs.stack(), dweight

    def _piece(
        self, x: tf.Tensor, weight: tf.Tensor, labels: tf.Tensor, shares: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
        """The two sums and both gradients, that of the weight as [embd, vocab] in float32, for x [tokens, embd]."""
        scores = tf.cast(tf.matmul(x, weight, transpose_b=self.rows_are_vocab), self.dtype)
        peak = tf.reduce_max(scores, -1)
        exponentials = tf.exp(scores - peak[:, None])
        total = tf.reduce_sum(exponentials, -1)
        log_z = peak + tf.math.log(total)
        is_label = tf.equal(tf.range(scores.shape[1])[None, :], tf.cast(labels, tf.int32)[:, None])
        nll = log_z - tf.reduce_sum(tf.where(is_label, scores, 0.0), -1)
        z_share = shares * (1.0 + 2.0 * self.z_loss * log_z)  # d objective / d log Z
        dscores = exponentials * (z_share / total)[:, None] - tf.where(is_label, shares[:, None], 0.0)
        dscores = tf.cast(dscores, x.dtype)
        dx = tf.matmul(dscores, weight, transpose_b=not self.rows_are_vocab)
        dweight = tf.cast(tf.matmul(x, dscores, transpose_a=True), self.dtype)
        objective = tf.reduce_sum(shares * (nll + self.z_loss * tf.square(log_z)))
        return objective, tf.reduce_sum(shares * nll), dx, dweight


def row_of_scores(vocab: int) -> int:
    """So many columns that whole vectors hold a row, and rows below each other stand for other lines of a cache."""
    columns = -(-vocab // VECTOR) * VECTOR
    return columns + (VECTOR if columns % ALIKE == 0 else 0)


def pieces(tokens: int, row_bytes: int) -> tuple[int, int]:
    """In how many pieces so many tokens are scored, each of whose scores take `row_bytes`, and the tokens of each.

    Up to twice as many as there must be, where that divides the tokens; else the last piece is not full.
    """
    limit = GPU_BYTES if tf.config.list_physical_devices("GPU") else CPU_BYTES
    least = -(-tokens // max(1, limit // row_bytes))
    for count in range(least, 2 * least):
        if tokens % count == 0:
            return count, tokens // count
    size = -(-tokens // least)
    return -(-tokens // size), size
