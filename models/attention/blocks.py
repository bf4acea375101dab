"""Attention to a window of positions by blocks: a cost of sequence × window (Beltagy et al., 2020, arXiv:2004.05150).

The sequence is cut into blocks of at least a window's length. The queries of a block see keys in their own block and in
the one before it (and the one after it, if attention is not causal), and nowhere else.
"""

from __future__ import annotations

from collections.abc import Sequence

from gpt_mesh.meshes.compat import mtf

import tensorflow as tf

from gpt_mesh.models.attention import slices
from gpt_mesh.models.attention.backend import MASKED, Backend, Problem, SliceBias, View
from gpt_mesh.models.attention.slices import Part

MIN_BLOCK = 64  # smaller matmuls take no less time


class Blocks(Backend):
    """In plain TensorFlow, on slices, for windows that are short beside the sequence."""

    def supports(self, problem: Problem) -> bool:
        return problem.ctx.fused and problem.on_slices and _size(problem) is not None

    def attend(self, problem: Problem) -> mtf.Tensor:
        ctx, memory, bias = problem.ctx, problem.heads.memory, problem.heads.bias
        size, packed = _size(problem), len(problem.starts)
        assert size is not None

        def by_blocks(q: tf.Tensor, k: tf.Tensor, v: tf.Tensor, *rest: tf.Tensor) -> tf.Tensor:
            starts, rest = rest[:packed], rest[packed:]
            learned, operands = rest[: len(memory)], rest[len(memory) :]
            added = None if bias is None else lambda query, key: bias.function(query, key, *operands)
            return attend(
                q, k, v, learned, size=size, view=problem.view, dtype=ctx.statistics_dtype, bias=added,
                starts=starts[0] if starts else None,
            )  # fmt: skip

        keys_met = mtf.Dimension("block_keys", _neighbours(problem.view.causal) * size)
        extra = [*problem.starts, *memory, *([] if bias is None else bias.operands)]
        return problem.run(by_blocks, extra, keys_met=keys_met)


def _size(problem: Problem) -> int | None:
    view = problem.view
    return None if view.window is None else block_size(problem.ctx.dims.sequence.size, view.window, view.causal)


def block_size(positions: int, window: int, causal: bool) -> int | None:
    """Positions in a block; None if blocks save nothing, as a query would meet as many keys as without them."""
    size = max(window, MIN_BLOCK)
    return size if _neighbours(causal) * size < positions else None


def attend(
    q: tf.Tensor,
    k: tf.Tensor,
    v: tf.Tensor,
    memory: Sequence[tf.Tensor],
    *,
    size: int,
    view: View,
    dtype: tf.DType,
    bias: SliceBias | None = None,
    starts: tf.Tensor | None = None,
) -> tf.Tensor:
    """Softmax attention of positions 0 … n-1 to each other.

    Args:
        q: [batch, n, heads, features].
        k, v: [batch, n, kv_heads, features].
        memory: learned keys and values that every query sees, [learned, kv_heads, features] each; or nothing.
        size: of a block, as `block_size` gives it. The view never reaches beyond the neighbouring blocks.
        dtype: of logits and their softmax.
        bias: of the logits, as `positions.Bias.function` gives it.
        starts: int32 [batch, n], the first position of each query's sample; None: a row is one sample.

    Returns:
        [batch, n, heads, features], in the type of v.
    """
    positions = q.shape[1]
    count = -(-positions // size)
    queries, keys, values = (_blocks(x, count, size) for x in (q, k, v))
    keys, values = (_with_neighbours(x, view.causal) for x in (keys, values))
    wide = tf.cast(queries, dtype)
    query = (tf.range(count)[:, None] * size + tf.range(size))[:, :, None]
    key = (tf.range(count)[:, None] * size - size + tf.range(_neighbours(view.causal) * size))[:, None, :]
    exists = tf.logical_and(key >= 0, key < positions)
    if starts is None:
        seen = tf.logical_and(view.sees(query, key), exists)[:, None]  # [count, 1, size, 2 or 3 · size]
    else:
        filled = tf.pad(starts, [[0, 0], [0, count * size - positions]])
        first = tf.reshape(filled, [-1, count, 1, size, 1])
        seen = view.sees_inside(query[:, None], key[:, None], first)  # [batch, count, 1, size, 2 or 3 · size]
        seen = tf.logical_and(seen, exists[:, None])
    logits = slices.grouped_einsum("bgqhf,bgkhf->bghqk", wide, tf.cast(keys, dtype))
    logits = slices.biased(logits, None if bias is None else bias(query, key))
    logits = tf.where(seen, logits, tf.cast(MASKED, dtype))
    found = Part(logits, lambda weights: slices.grouped_einsum("bghqk,bgkhf->bgqhf", weights, values))
    attended = slices.attend([*slices.learned(wide, "bgqhf", memory), found], v.dtype)
    return tf.reshape(attended, [-1, count * size, *q.shape[2:]])[:, :positions]


def _neighbours(causal: bool) -> int:
    """The number of blocks that the queries of one block look at."""
    return 2 if causal else 3


def _blocks(x: tf.Tensor, count: int, size: int) -> tf.Tensor:
    """[batch, n, heads, features] as [batch, count, size, heads, features], padded with zeros."""
    filled = tf.pad(x, [[0, 0], [0, count * size - x.shape[1]], [0, 0], [0, 0]])
    return tf.reshape(filled, [-1, count, size, *x.shape[2:]])


def _with_neighbours(blocks: tf.Tensor, causal: bool) -> tf.Tensor:
    """Each block after the one before it (and before the one after it): [batch, count, 2 or 3 · size, heads, features];
    zeros beyond the ends.
    """
    before, after = 1, _neighbours(causal) - 2
    padded = tf.pad(blocks, [[0, 0], [before, after], [0, 0], [0, 0], [0, 0]])
    count = blocks.shape[1]
    return tf.concat([padded[:, i : i + count] for i in range(_neighbours(causal))], axis=2)
