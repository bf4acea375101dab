"""Cross-entropy straight from the last activations, without the logits of a whole batch.

Logits over the vocabulary are by far the largest tensor of a training step: tokens × vocabulary, in float32, and their
gradient once more. Here they exist for a chunk of the tokens at a time. Since only a sum over tokens with known shares
follows, the gradients with respect to activations and weights are computed together with the loss, from logits that
still exist (Hsu et al., 2024, arXiv:2410.10989, do the same on GPUs); the backward pass only scales them.
"""

from __future__ import annotations

from typing import Any

from gpt_mesh.meshes.compat import mtf

import tensorflow as tf

from gpt_mesh.meshes import native
from gpt_mesh.models import kernels
from gpt_mesh.models.context import Context

# Bytes of a chunk's logits in float32. On a CPU a chunk should stay in the caches; on a GPU each further chunk reads
# and writes the weight's gradient once more.
CPU_BYTES, GPU_BYTES = 2**24, 2**31
# Of vocabulary_loss.c: tokens of a chunk, which adds to the weight's gradient once, and elements of the longest vector.
CPU_TOKENS, VECTOR = 512, 16
ALIASED = 1024  # rows this many floats apart share cache lines of a CPU's first cache


def fits(ctx: Context) -> bool:
    """Whether each device has whole rows of logits: the layout splits neither the vocabulary nor the embedding."""
    return ctx.is_whole(ctx.dims.vocab, ctx.dims.embd)


def cross_entropy(
    ctx: Context,
    x: mtf.Tensor,
    weight: mtf.Tensor,
    labels: mtf.Tensor,
    shares: mtf.Tensor,
    z_loss: float,
    bias: mtf.Tensor | None = None,
    cap: float | None = None,
) -> tuple[mtf.Tensor, mtf.Tensor]:
    """Sums over tokens of share · (nll + z_loss · (log Z)²), which has gradients, and of share · nll, which has none.

    Args:
        ctx: of a graph for which `fits` holds.
        x: [batch, sequence, embd], from which logits are computed.
        weight: [vocab, embd] or [embd, vocab].
        labels: integers [batch, sequence].
        shares: [batch, sequence] in float32, of each token in the sums; no gradient flows into them.
        z_loss: weight of the squared log of softmax's denominator.
        bias: [vocab], added to the logits.
        cap: logits are then cap · tanh(logits / cap).

    Returns:
        Two float32 scalars, in nats.
    """
    objective, nll, *_ = _CrossEntropy(ctx, x, weight, labels, shares, z_loss, bias, cap).outputs
    return objective, nll


class _CrossEntropy(kernels.SliceOperation):
    """Outputs: the two sums, and the gradients of the first with respect to x, the weight and, if given, the bias."""

    def __init__(
        self,
        ctx: Context,
        x: mtf.Tensor,
        weight: mtf.Tensor,
        labels: mtf.Tensor,
        shares: mtf.Tensor,
        z_loss: float,
        bias: mtf.Tensor | None,
        cap: float | None,
    ) -> None:
        biases = [] if bias is None else [bias]
        super().__init__([x, weight, labels, shares, *biases], name="vocabulary_loss")
        self.dtype, self.z_loss, self.cap = ctx.statistics_dtype, z_loss, cap
        self.rows_are_vocab = weight.shape.dims[0] == ctx.dims.vocab
        self.flops = 6.0 * labels.shape.size * weight.shape.size  # logits, and the gradients of both their factors
        self.by_native = ctx.cpu_kernels and x.dtype == weight.dtype == tf.float32 and native.known()
        scalar = mtf.Shape([])
        outputs = [(scalar, self.dtype), (scalar, self.dtype), *((t.shape, t.dtype) for t in (x, weight, *biases))]
        self._outputs = [mtf.Tensor(self, shape, dtype, index=i) for i, (shape, dtype) in enumerate(outputs)]
        self._splittable_dims, self._unsplittable_dims = self._initialize_splittable_and_unsplittable_dims(
            "unsplittable", [dim.name for dim in labels.shape.dims]
        )

    def gradient(self, grad_ys: list[mtf.Tensor | None]) -> list[mtf.Tensor | None]:
        scale, *others = grad_ys
        assert scale is not None and not any(others), "only the objective has gradients"
        dx, dweight, *dbias = (kernels.scaled(found, scale) for found in self.outputs[2:])
        return [dx, dweight, None, None, *dbias]

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

    def _slice(
        self, x: tf.Tensor, weight: tf.Tensor, labels: tf.Tensor, shares: tf.Tensor, *bias: tf.Tensor
    ) -> tuple[tf.Tensor, ...]:
        width, vocab = x.shape[-1], weight.shape[0 if self.rows_are_vocab else 1]
        tokens = labels.shape.num_elements()
        if self.by_native:
            return self._by_native(x, weight, labels, shares, *bias)
        count, size = chunks(tokens, vocab * self.dtype.size)

        def cut(t: tf.Tensor, *features: int) -> tf.Tensor:
            flat = tf.reshape(t, [tokens, *features])  # the last chunk is padded with tokens without a share
            filled = tf.pad(flat, [[0, count * size - tokens], *[[0, 0] for _ in features]])
            return tf.reshape(filled, [count, size, *features])

        given = cut(x, width), weight, cut(labels), cut(shares)
        if count == 1:
            dx, *sums = self._chunk(given[0][0], weight, given[2][0], given[3][0], *bias)
        else:
            dx, *sums = self._by_chunks(*given, *bias)
        objective, nll, dweight, *dbias = sums
        dx = tf.reshape(dx, [count * size, width])[:tokens]
        dweight = tf.transpose(dweight) if self.rows_are_vocab else dweight
        narrow = [tf.cast(t, weight.dtype) for t in (dweight, *dbias)]
        return objective, nll, tf.reshape(dx, x.shape), *narrow

    def _by_native(
        self, x: tf.Tensor, weight: tf.Tensor, labels: tf.Tensor, shares: tf.Tensor, *bias: tf.Tensor
    ) -> tuple[tf.Tensor, ...]:
        """The same by native/vocabulary_loss.c."""
        width, vocab = x.shape[-1], weight.shape[0 if self.rows_are_vocab else 1]
        tokens = labels.shape.num_elements()
        flat, chunk = tf.reshape(x, [tokens, width]), min(tokens, CPU_TOKENS)
        scratch = [[chunk, row_of_logits(vocab)], [chunk, width], [4, tokens]]
        shapes = [[], [], flat.shape, weight.shape, *(t.shape for t in bias), *scratch]
        given = [flat, weight, tf.reshape(tf.cast(labels, tf.int32), [tokens]), tf.reshape(shares, [tokens]), *bias]
        results = [tf.TensorSpec(shape, tf.float32) for shape in shapes]
        how = {"z_loss": float(self.z_loss), "transposed": not self.rows_are_vocab, "cap": float(self.cap or 0)}
        objective, nll, dx, *gradients = native.call("vocabulary_loss", given, results, how)[: -len(scratch)]
        return objective, nll, tf.reshape(dx, x.shape), *gradients

    def _by_chunks(
        self, xs: tf.Tensor, weight: tf.Tensor, ids: tf.Tensor, shares: tf.Tensor, *bias: tf.Tensor
    ) -> tuple[tf.Tensor, ...]:
        """As `_chunk`, for [chunks, tokens] of everything."""
        count, vocab = xs.shape[0], weight.shape[0 if self.rows_are_vocab else 1]

        def step(i: tf.Tensor, dxs: Any, *sums: tf.Tensor) -> Any:
            dx, *more = self._chunk(xs[i], weight, ids[i], shares[i], *bias)
            return i + 1, dxs.write(i, dx), *[total + part for total, part in zip(sums, more, strict=True)]

        shapes = [[], [], [xs.shape[2], vocab], *[[vocab] for _ in bias]]
        dxs = tf.TensorArray(xs.dtype, size=count, element_shape=xs.shape[1:])
        start = (tf.constant(0), dxs, *[tf.zeros(shape, self.dtype) for shape in shapes])
        _, dxs, *sums = tf.while_loop(
            lambda i, *_: i < count, step, start, maximum_iterations=count, parallel_iterations=1
        )
        return dxs.stack(), *sums

    def _chunk(
        self, x: tf.Tensor, weight: tf.Tensor, labels: tf.Tensor, shares: tf.Tensor, *bias: tf.Tensor
    ) -> tuple[tf.Tensor, ...]:
        """The gradient of x [tokens, embd], the two sums, and the gradients of the weight, as [embd, vocab], and of the
        bias: all but the first in float32.
        """
        logits = tf.cast(tf.matmul(x, weight, transpose_b=self.rows_are_vocab), self.dtype)
        logits = logits + tf.cast(bias[0], self.dtype) if bias else logits
        logits = logits if self.cap is None else self.cap * tf.tanh(logits / self.cap)
        peak = tf.reduce_max(logits, -1)
        exponentials = tf.exp(logits - peak[:, None])
        total = tf.reduce_sum(exponentials, -1)
        log_z = peak + tf.math.log(total)
        is_label = tf.equal(tf.range(logits.shape[1])[None, :], tf.cast(labels, tf.int32)[:, None])
        nll = log_z - tf.reduce_sum(tf.where(is_label, logits, 0.0), -1)
        z_share = shares * (1.0 + 2.0 * self.z_loss * log_z)  # d objective / d log Z
        dlogits = exponentials * (z_share / total)[:, None] - tf.where(is_label, shares[:, None], 0.0)
        if self.cap is not None:
            dlogits *= 1.0 - tf.square(logits / self.cap)
        dbias = [tf.reduce_sum(dlogits, 0)] if bias else []
        dlogits = tf.cast(dlogits, x.dtype)
        dx = tf.matmul(dlogits, weight, transpose_b=not self.rows_are_vocab)
        dweight = tf.cast(tf.matmul(x, dlogits, transpose_a=True), self.dtype)
        objective = tf.reduce_sum(shares * (nll + self.z_loss * tf.square(log_z)))
        return dx, objective, tf.reduce_sum(shares * nll), dweight, *dbias


def row_of_logits(vocab: int) -> int:
    """Columns of a row of logits: whole vectors, and adjacent rows do not share cache lines."""
    columns = -(-vocab // VECTOR) * VECTOR
    return columns + (VECTOR if columns % ALIASED == 0 else 0)


def chunks(tokens: int, row_bytes: int) -> tuple[int, int]:
    """The number of chunks in which the logits of `tokens`, of `row_bytes` each, are computed, and the tokens of each.

    Up to twice as many chunks as necessary, if that divides the tokens; else the last chunk is not full.
    """
    limit = GPU_BYTES if tf.config.list_physical_devices("GPU") else CPU_BYTES
    least = -(-tokens // max(1, limit // row_bytes))
    for count in range(least, 2 * least):
        if tokens % count == 0:
            return count, tokens // count
    size = -(-tokens // least)
    return -(-tokens // size), size
