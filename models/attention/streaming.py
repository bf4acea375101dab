"""Softmax attention in memory linear in the sequence, in plain TensorFlow: for problems that no kernel takes.

Logits exist for one block of queries and one block of keys at a time. A query keeps the maximum of its logits so far,
the sum of their exponentials, and the sum of values weighted by them; a larger maximum rescales both sums (Milakov &
Gimelshein, 2018, arXiv:1805.02867). The backward pass recomputes the attention weights from each query's logarithm of
the denominator (Dao et al., 2022, arXiv:2205.14135).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from gpt_mesh.meshes.compat import mtf

import numpy as np
import tensorflow as tf

from gpt_mesh.models.attention.backend import MASKED, Backend, Problem, View
from gpt_mesh.models.positions import Bias

State: TypeAlias = "list[tf.TensorArray]"  # stacks of blocks

MIN_POSITIONS = 2048  # up to here, the logits of all pairs are small enough, and take less time
BLOCK = 512  # positions


class Streaming(Backend):
    """On slices, for long sequences."""

    def supports(self, problem: Problem) -> bool:
        return problem.ctx.fused and problem.on_slices and problem.ctx.dims.memory_length.size >= MIN_POSITIONS

    def attend(self, problem: Problem) -> mtf.Tensor:
        heads, memory, packed = problem.heads, len(problem.heads.memory), len(problem.starts)
        streams = Streams(problem.view, problem.ctx.statistics_dtype, BLOCK, heads.bias)

        def forward(q: tf.Tensor, k: tf.Tensor, v: tf.Tensor, *rest: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            starts, rest = rest[:packed], rest[packed:]
            return streams.attend(q, k, v, rest[:memory], rest[memory:], *starts)

        def backward(q: tf.Tensor, k: tf.Tensor, v: tf.Tensor, *rest: tf.Tensor) -> tuple[tf.Tensor, ...]:
            *extra, attended, log_sums, upstream, _ = rest
            starts, extra = extra[:packed], extra[packed:]
            results = attended, log_sums, upstream
            return streams.gradient(q, k, v, extra[:memory], extra[memory:], *results, *starts)

        extra = [*problem.starts, *heads.memory, *([] if heads.bias is None else heads.bias.operands)]
        return problem.run(forward, extra, gradient=backward, log_sums=True)


@dataclass(frozen=True)
class Streams:
    """Attention of positions 0 … n-1 to each other.

    Attributes:
        view: which of them a query sees.
        dtype: of logits and sums.
        block: positions of a block.
        bias: of the logits.
    """

    view: View
    dtype: tf.DType
    block: int
    bias: Bias | None = None

    def attend(
        self, q: tf.Tensor, k: tf.Tensor, v: tf.Tensor, memory: Sequence[tf.Tensor], operands: Sequence[tf.Tensor],
        starts: tf.Tensor | None = None,
    ) -> tuple[tf.Tensor, tf.Tensor]:  # fmt: skip
        """
        Args:
            q: [batch, n, heads, features].
            k, v: [batch, n, kv heads, features]; a group of consecutive heads of q reads each of them.
            memory: learned keys and values that every query sees, [learned, kv heads, features] each; or nothing.
            operands: of the bias.
            starts: int32 [batch, n], the first position of each query's sample; None: a row is one sample.

        Returns:
            [batch, n, heads, features] in the type of v, and the logarithms of the softmax denominators [batch, heads,
            n].
        """
        cut = _Cut(q, k, self.block, starts)
        queries, keys, values = cut.queries(q), cut.keys(k), cut.keys(v)
        rows = queries.shape[:-1]
        peaks, totals = tf.fill(rows, tf.cast(MASKED, self.dtype)), tf.zeros(rows, self.dtype)
        sums = tf.zeros(queries.shape, self.dtype)
        if memory:
            logits = self._memory_logits(queries, memory[0])
            peaks = tf.reduce_max(logits, -1)
            weights = tf.exp(logits - peaks[..., None])
            totals, sums = tf.reduce_sum(weights, -1), tf.einsum("cbhqm,mhf->cbhqf", weights, self._wide(memory[1]))

        def meet(i: tf.Tensor, j: tf.Tensor, *state: tf.TensorArray) -> State:
            peaks, totals, sums = state
            logits, _ = self._logits(cut, i, j, queries[i], keys[j], operands)
            before = peaks.read(i)
            peak = tf.maximum(before, tf.reduce_max(logits, -1))
            weights, rescaled = tf.exp(logits - peak[..., None]), tf.exp(before - peak)
            total = totals.read(i) * rescaled + tf.reduce_sum(weights, -1)
            added = tf.matmul(weights, self._wide(values[j]))
            sums = sums.write(i, sums.read(i) * rescaled[..., None] + added)
            return [peaks.write(i, peak), totals.write(i, total), sums]

        peaks, totals, sums = self._over_pairs(cut, meet, [peaks, totals, sums])
        attended = tf.cast(cut.joined(sums / totals[..., None]), v.dtype)
        log_sums = cut.joined((peaks + tf.math.log(totals))[..., None])
        return attended, tf.transpose(log_sums[..., 0], [0, 2, 1])

    def gradient(
        self,
        q: tf.Tensor,
        k: tf.Tensor,
        v: tf.Tensor,
        memory: Sequence[tf.Tensor],
        operands: Sequence[tf.Tensor],
        attended: tf.Tensor,
        log_sums: tf.Tensor,
        upstream: tf.Tensor,
        starts: tf.Tensor | None = None,
    ) -> tuple[tf.Tensor, ...]:
        """Gradients with respect to q, k, v, the memory and the floating operands, from the results of `attend` and
        the gradient of the first.
        """
        cut, trained = _Cut(q, k, self.block, starts), [x for x in operands if x.dtype.is_floating]
        queries, keys, values = cut.queries(q), cut.keys(k), cut.keys(v)
        upstreams = cut.queries(upstream)
        log_sums = cut.queries(tf.transpose(log_sums, [0, 2, 1])[..., None])
        means = tf.reduce_sum(self._wide(upstream) * self._wide(attended), -1, keepdims=True)
        means = cut.queries(means)
        begun = [tf.zeros(x.shape, self.dtype) for x in (queries, keys, values)]

        def meet(i: tf.Tensor, j: tf.Tensor, *state: tf.TensorArray) -> State:
            by_queries, by_keys, by_values, *by_operands = state
            query, key, above = self._wide(queries[i]), self._wide(keys[j]), self._wide(upstreams[i])
            logits, bias_gradient = self._logits(cut, i, j, query, key, operands)
            weights = tf.where(self._seen(cut, i, j), tf.exp(logits - log_sums[i]), tf.cast(0, self.dtype))
            by_weights = tf.matmul(above, self._wide(values[j]), transpose_b=True)
            by_logits = weights * (by_weights - means[i])
            found = [
                _added(by_queries, i, tf.matmul(by_logits, key)),
                _added(by_keys, j, tf.matmul(by_logits, query, transpose_a=True)),
                _added(by_values, j, tf.matmul(weights, above, transpose_a=True)),
            ]
            return [*found, *(_added(x, 0, g) for x, g in zip(by_operands, bias_gradient(by_logits), strict=True))]

        begun += [tf.zeros([1, *x.shape], x.dtype) for x in trained]
        dq, dk, dv, *rest = self._over_pairs(cut, meet, begun)
        by_memory: list[tf.Tensor] = []
        if memory:
            weights = tf.exp(self._memory_logits(queries, memory[0]) - log_sums)
            weights = tf.where(cut.exists[:, None, None, :, None], weights, tf.cast(0, self.dtype))
            above = self._wide(upstreams)
            by_logits = weights * (tf.einsum("cbhqf,mhf->cbhqm", above, self._wide(memory[1])) - means)
            dq += tf.einsum("cbhqm,mhf->cbhqf", by_logits, self._wide(memory[0]))
            pairs = (by_logits, self._wide(queries)), (weights, above)
            by_memory = [tf.einsum("cbhqm,cbhqf->mhf", x, y) for x, y in pairs]
        found = [cut.joined(dq), cut.joined_keys(dk), cut.joined_keys(dv), *by_memory]
        found = [tf.cast(x, like.dtype) for x, like in zip(found, (q, k, v, *memory), strict=True)]
        return *found, *(x[0] for x in rest)

    def _over_pairs(self, cut: _Cut, meet: Callable[..., State], begun: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        """The state after `meet` was called for each pair of blocks of queries and keys that see each other.

        Args:
            meet: takes the numbers of two blocks, and the state; returns the new state.
            begun: the state, each tensor a stack of blocks.
        """
        pairs = tf.constant(cut.pairs(self.view), tf.int32)

        def body(step: tf.Tensor, *state: tf.TensorArray) -> list[object]:
            return [step + 1, *meet(pairs[step, 0], pairs[step, 1], *state)]

        arrays = [
            tf.TensorArray(x.dtype, x.shape[0], clear_after_read=False, element_shape=x.shape[1:]).unstack(x)
            for x in begun
        ]
        count = pairs.shape[0]
        begin = [tf.constant(0), *arrays]
        _, *state = tf.while_loop(lambda step, *_: step < count, body, begin, parallel_iterations=1)
        return [x.stack() for x in state]

    def _wide(self, x: tf.Tensor) -> tf.Tensor:
        return tf.cast(x, self.dtype)

    def _memory_logits(self, queries: tf.Tensor, keys: tf.Tensor) -> tf.Tensor:
        """[blocks, batch, kv heads, rows, learned]."""
        return tf.einsum("cbhqf,mhf->cbhqm", self._wide(queries), self._wide(keys))

    def _seen(self, cut: _Cut, i: tf.Tensor, j: tf.Tensor) -> tf.Tensor:
        """[rows, keys], with packed samples [batch, 1, rows, keys]: whether the rows of block i see the keys of block
        j; positions beyond the end see nothing.
        """
        query, key = cut.positions(i)[:, None], cut.positions(j)[None, :]
        exist = tf.logical_and(query < cut.length, key < cut.length)
        if cut.starts is None:
            return tf.tile(tf.logical_and(self.view.sees(query, key), exist), [cut.shared, 1])
        inside = self.view.sees_inside(query, key, cut.starts[i])  # [batch, 1, positions, keys]
        return tf.tile(tf.logical_and(inside, exist), [1, 1, cut.shared, 1])

    def _logits(
        self, cut: _Cut, i: tf.Tensor, j: tf.Tensor, query: tf.Tensor, key: tf.Tensor, operands: Sequence[tf.Tensor]
    ) -> tuple[tf.Tensor, Callable[[tf.Tensor], list[tf.Tensor]]]:
        """Logits [batch, kv heads, rows, keys] of two blocks, and a function from their gradient to those of the
        floating operands.
        """
        logits = tf.matmul(self._wide(query), self._wide(key), transpose_b=True)
        trained: list[tf.Tensor] = []
        if self.bias is not None:
            given = [tf.identity(x) for x in operands]
            trained = [x for x in given if x.dtype.is_floating]
            with tf.GradientTape(persistent=True) as tape:
                tape.watch(trained)
                bias = self.bias.function(cut.positions(i)[:, None], cut.positions(j)[None, :], *given)
                rows = tf.reshape(tf.cast(bias, self.dtype), [-1, *logits.shape[1:]])
                added = tf.zeros_like(logits) + rows
            logits += added
        logits = tf.where(self._seen(cut, i, j), logits, tf.cast(MASKED, self.dtype))

        def gradient(by_logits: tf.Tensor) -> list[tf.Tensor]:
            return tape.gradient(added, trained, by_logits) if trained else []

        return logits, gradient


def _added(blocks: tf.TensorArray, i: tf.Tensor | int, x: tf.Tensor) -> tf.TensorArray:
    return blocks.write(i, blocks.read(i) + x)


class _Cut:
    """Positions cut into blocks, the last one filled up with zeros.

    The queries of a block are [batch, kv heads, rows, features]; a row is one position of one of the heads that share
    keys and values. Keys and values are [batch, kv heads, positions, features].
    """

    def __init__(self, q: tf.Tensor, k: tf.Tensor, block: int, starts: tf.Tensor | None = None) -> None:
        self.length, self.kv_heads = q.shape[1], k.shape[2]
        self.shared = q.shape[2] // self.kv_heads
        self.size = min(block, self.length)
        self.count = -(-self.length // self.size)
        self.starts: tf.Tensor | None = None  # of each block: [blocks, batch, 1, positions, 1]
        if starts is not None:
            filled = tf.pad(starts, [[0, 0], [0, self.count * self.size - self.length]])
            blocks = tf.reshape(filled, [-1, self.count, 1, self.size, 1])
            self.starts = tf.transpose(blocks, [1, 0, 2, 3, 4])

    def positions(self, i: tf.Tensor) -> tf.Tensor:
        """int32 [positions of a block]."""
        return i * self.size + tf.range(self.size)

    @property
    def exists(self) -> tf.Tensor:
        """[blocks, rows]: whether a row is a position of the sequence."""
        places = tf.reshape(tf.range(self.count * self.size), [self.count, self.size])
        return tf.tile(places < self.length, [1, self.shared])

    def pairs(self, view: View) -> np.ndarray:
        """[pairs, 2]: blocks of queries and of keys of which some positions may see each other."""
        distance = np.subtract.outer(np.arange(self.count), np.arange(self.count))  # of query and key, in blocks
        reach = self.count if view.window is None else (view.window - 2) // self.size + 1
        seen = (distance <= reach) & ((distance >= 0) if view.causal else (distance >= -reach))
        return np.argwhere(seen)

    def queries(self, x: tf.Tensor) -> tf.Tensor:
        """[batch, n, heads, features] as blocks of queries."""
        blocks = tf.reshape(self._filled(x), [-1, self.count, self.size, self.kv_heads, self.shared, x.shape[3]])
        return tf.reshape(
            tf.transpose(blocks, [1, 0, 3, 4, 2, 5]),
            [self.count, -1, self.kv_heads, self.shared * self.size, x.shape[3]],
        )

    def keys(self, x: tf.Tensor) -> tf.Tensor:
        """[batch, n, kv heads, features] as blocks of keys."""
        blocks = tf.reshape(self._filled(x), [-1, self.count, self.size, *x.shape[2:]])
        return tf.transpose(blocks, [1, 0, 3, 2, 4])

    def joined(self, x: tf.Tensor) -> tf.Tensor:
        """Blocks of queries as [batch, n, heads, features]."""
        blocks = tf.reshape(x, [self.count, -1, self.kv_heads, self.shared, self.size, x.shape[-1]])
        whole = tf.transpose(blocks, [1, 0, 4, 2, 3, 5])
        return tf.reshape(whole, [-1, self.count * self.size, self.kv_heads * self.shared, x.shape[-1]])[
            :, : self.length
        ]

    def joined_keys(self, x: tf.Tensor) -> tf.Tensor:
        """Blocks of keys as [batch, n, kv heads, features]."""
        whole = tf.transpose(x, [1, 0, 3, 2, 4])
        return tf.reshape(whole, [-1, self.count * self.size, self.kv_heads, x.shape[-1]])[:, : self.length]

    def _filled(self, x: tf.Tensor) -> tf.Tensor:
        return tf.pad(x, [[0, 0], [0, self.count * self.size - self.length], [0, 0], [0, 0]])
