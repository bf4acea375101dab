"""Attention to a window of positions by blocks: a cost of sequence × window (Beltagy et al., 2020, arXiv:2004.05150).

The sequence is cut into blocks of at least a window's length. The queries of a block see keys in their own block and in
the one before it (and the one after it, where attention is not causal), and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import gpt_mesh.meshes.compat  # noqa: F401  (before TensorFlow, which it keeps quiet)

import tensorflow as tf

LEAST_BLOCK = 64  # smaller products of matrices take no less time

Sees = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]


def block_size(positions: int, window: int, causal: bool) -> int | None:
    """Positions in a block; None where blocks save nothing, as a query would meet as many keys as without them."""
    size = max(window, LEAST_BLOCK)
    return size if _neighbours(causal) * size < positions else None


def attend(
    q: tf.Tensor,
    k: tf.Tensor,
    v: tf.Tensor,
    memory: Sequence[tf.Tensor],
    *,
    size: int,
    causal: bool,
    sees: Sees,
    masked: float,
    dtype: tf.DType,
) -> tf.Tensor:
    """Softmax attention of positions 0 … n-1 to each other.

    Args:
        q, k, v: [batch, n, heads, features].
        memory: learned keys and values that every query sees, [learned, heads, features] each; or nothing.
        size: of a block, as `block_size` gives it.
        sees: whether the query at one position sees the key at another; never beyond the neighbouring blocks.
        masked: the score of a key that is not seen.
        dtype: of scores and their softmax.

    Returns:
        [batch, n, heads, features], in the type of v.
    """
    positions = q.shape[1]
    count = -(-positions // size)
    queries, keys, values = (_blocks(x, count, size) for x in (q, k, v))
    keys, values = (_with_neighbours(x, causal) for x in (keys, values))
    wide = tf.cast(queries, dtype)
    scores = tf.einsum("bgqhf,bgkhf->bghqk", wide, tf.cast(keys, dtype))
    scores = tf.where(_seen(positions, count, size, causal, sees), scores, tf.cast(masked, dtype))
    if not memory:
        found = tf.einsum("bghqk,bgkhf->bgqhf", tf.cast(tf.nn.softmax(scores), v.dtype), values)
    else:
        learned = tf.einsum("bgqhf,mhf->bghqm", wide, tf.cast(memory[0], dtype))
        weights = tf.cast(tf.nn.softmax(tf.concat([learned, scores], -1)), v.dtype)
        on_memory, on_keys = tf.split(weights, [memory[0].shape[0], keys.shape[2]], axis=-1)
        found = tf.einsum("bghqk,bgkhf->bgqhf", on_keys, values) + tf.einsum("bghqm,mhf->bgqhf", on_memory, memory[1])
    return tf.reshape(found, [-1, count * size, *q.shape[2:]])[:, :positions]


def _neighbours(causal: bool) -> int:
    """How many blocks the queries of one look at."""
    return 2 if causal else 3


def _blocks(x: tf.Tensor, count: int, size: int) -> tf.Tensor:
    """[batch, n, heads, features] as [batch, count, size, heads, features], the end filled with zeros."""
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


def _seen(positions: int, count: int, size: int, causal: bool, sees: Sees) -> tf.Tensor:
    """bool [count, 1, size, 2 or 3 · size]: which of the keys at hand each query sees."""
    first = tf.range(count)[:, None] * size
    query = first + tf.range(size)
    key = first - size + tf.range(_neighbours(causal) * size)
    there = tf.logical_and(key >= 0, key < positions)
    return tf.logical_and(sees(query[:, :, None], key[:, None, :]), there[:, None, :])[:, None]
