"""Attention whose cost is linear in the context: sums of keys times values in place of scores for each pair.

Not causal: softmax of the queries over features, softmax of the keys over positions (Shen et al., 2018,
arXiv:1812.01243). Causal: softmax of the queries, exponential of the keys, sums over the positions up to each query,
divided by their total weight (Katharopoulos et al., 2020, arXiv:2006.16236).
"""

from __future__ import annotations

from collections.abc import Callable

from gpt_mesh.meshes.compat import mtf

import tensorflow as tf

from gpt_mesh.models.cache import Cache, Decode, Prefill, State
from gpt_mesh.models.context import Context
from gpt_mesh.models.kernels import kernel

CHUNK = 128
EPSILON = 1e-6


def attend(
    ctx: Context, q: mtf.Tensor, k: mtf.Tensor, v: mtf.Tensor, memory: list[mtf.Tensor], cache: Cache, site: str
) -> mtf.Tensor:
    """Linear attention.

    There are no weights of pairs to drop: `attn_dropout` drops features of the values.

    Args:
        q, k, v: [batch, sequence, heads, features_per_head].
        memory: learned keys and values [learned_memory, heads, features_per_head], or nothing: earlier than all others.
        cache: what is known of earlier positions.
        site: name of this layer for dropout.

    Returns:
        [batch, sequence, heads, features_per_head].
    """
    v = ctx.dropout(v, ctx.model.attn_dropout, f"{site}/values")
    if isinstance(cache, Decode):
        return _step(ctx, q, k, v, cache)
    if isinstance(cache, Prefill):
        cache.states.append(_state_before(ctx, k, v, memory, cache.lengths))
    dims = ctx.dims
    attend_all: Callable[..., tf.Tensor] = _causal if ctx.causal else _bidirectional
    # Sums over positions need all of them on one device: a dimension that no layout splits.
    whole = [mtf.replace_dimensions(t, dims.sequence, dims.whole_sequence) for t in (q, k, v)]

    def slices(q: tf.Tensor, k: tf.Tensor, v: tf.Tensor, *memory: tf.Tensor) -> tf.Tensor:
        wide_q, wide_k, wide_v, *wide_memory = (tf.cast(t, ctx.statistics_dtype) for t in (q, k, v, *memory))
        return tf.cast(attend_all(wide_q, wide_k, wide_v, wide_memory), q.dtype)

    out = kernel(slices, [*whole, *memory], [(whole[0].shape, q.dtype)], [dims.batch, dims.heads], "linear_attention")
    return mtf.replace_dimensions(out[0], dims.whole_sequence, dims.sequence)


def _bidirectional(q: tf.Tensor, k: tf.Tensor, v: tf.Tensor, memory: list[tf.Tensor]) -> tf.Tensor:
    """q, k, v: [batch, positions, heads, features]; every query sees every position."""
    if memory:
        k, v = (tf.concat([_for_batch(m, k), t], 1) for m, t in zip(memory, (k, v), strict=True))
    context = tf.einsum("bkhf,bkhg->bhfg", tf.nn.softmax(k, axis=1), v)
    return tf.einsum("bqhf,bhfg->bqhg", tf.nn.softmax(q), context)


def _causal(q: tf.Tensor, k: tf.Tensor, v: tf.Tensor, memory: list[tf.Tensor]) -> tf.Tensor:
    """q, k, v: [batch, positions, heads, features]; a query sees its position and those before.

    In chunks: within one, weights of pairs; for the chunks before it, their sums. Memory grows with positions times
    (CHUNK + features² / CHUNK), not with positions times features².
    """
    _, positions, heads, features = q.shape.as_list()
    size = min(CHUNK, positions)
    chunks = -(-positions // size)
    padding = [[0, 0], [0, chunks * size - positions], [0, 0], [0, 0]]
    # Padded keys follow every real query, so no real query sees them.
    q, k, v = (
        tf.reshape(tf.pad(t, padding), [-1, chunks, size, heads, features]) for t in (tf.nn.softmax(q), tf.exp(k), v)
    )
    sums = tf.cumsum(tf.einsum("bnkhf,bnkhg->bnhfg", k, v), axis=1, exclusive=True)
    totals = tf.cumsum(tf.reduce_sum(k, axis=2), axis=1, exclusive=True)
    if memory:
        first_sum, first_total = _memory_state(memory)
        sums, totals = sums + first_sum, totals + first_total
    pairs = tf.einsum("bnqhf,bnkhf->bnhqk", q, k)
    pairs = tf.where(tf.range(size)[None, :] <= tf.range(size)[:, None], pairs, tf.zeros_like(pairs))
    value = tf.einsum("bnhqk,bnkhg->bnqhg", pairs, v) + tf.einsum("bnqhf,bnhfg->bnqhg", q, sums)
    weight = tf.einsum("bnhqk->bnqh", pairs) + tf.einsum("bnqhf,bnhf->bnqh", q, totals)
    out = value / (weight + EPSILON)[..., None]
    return tf.reshape(out, [-1, chunks * size, heads, features])[:, :positions]


def _state_before(ctx: Context, k: mtf.Tensor, v: mtf.Tensor, memory: list[mtf.Tensor], lengths: mtf.Tensor) -> State:
    """Sums over each row's positions before its length, and the learned memory: [batch, heads, features_per_head,
    value_features] of keys times values, and [batch, heads, features_per_head] of keys, in float32.
    """
    dims, dtype = ctx.dims, ctx.statistics_dtype
    k, v = (mtf.replace_dimensions(t, dims.sequence, dims.whole_sequence) for t in (k, v))

    def sums(k: tf.Tensor, v: tf.Tensor, lengths: tf.Tensor, *memory: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        before = (tf.range(k.shape[1]) < lengths[:, None])[:, :, None, None]
        weights = tf.exp(tf.cast(k, dtype)) * tf.cast(before, dtype)
        state = tf.einsum("bkhf,bkhg->bhfg", weights, tf.cast(v, dtype)), tf.reduce_sum(weights, 1)
        if memory:
            learned = _memory_state([tf.cast(t, dtype) for t in memory])
            state = state[0] + learned[0], state[1] + learned[1]
        return state

    operands = [k, v, lengths, *memory]
    outputs = [(shape, dtype) for shape in state_shapes(ctx)]
    state = kernel(sums, operands, outputs, [dims.batch, dims.heads], "linear_attention_state")
    return state[0], state[1]


def _step(ctx: Context, q: mtf.Tensor, k: mtf.Tensor, v: mtf.Tensor, cache: Decode) -> mtf.Tensor:
    """One position: add its key to the sums, then read them."""
    dims, dtype = ctx.dims, ctx.statistics_dtype

    def step(
        q: tf.Tensor, k: tf.Tensor, v: tf.Tensor, sums: tf.Tensor, totals: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        weights, queries = tf.exp(tf.cast(k, dtype)), tf.nn.softmax(tf.cast(q, dtype))
        sums += tf.einsum("bkhf,bkhg->bhfg", weights, tf.cast(v, dtype))
        totals += weights[:, 0]
        weight = tf.einsum("bqhf,bhf->bqh", queries, totals) + EPSILON
        out = tf.einsum("bqhf,bhfg->bqhg", queries, sums) / weight[..., None]
        return tf.cast(out, q.dtype), sums, totals

    outputs = [(q.shape, q.dtype), *[(shape, dtype) for shape in state_shapes(ctx)]]
    out, *state = kernel(step, [q, k, v, *cache.take()], outputs, [dims.batch, dims.heads], "linear_attention_step")
    cache.put((state[0], state[1]))
    return out


def state_shapes(ctx: Context) -> tuple[mtf.Shape, mtf.Shape]:
    """Of the sums that a layer keeps: weighted values, and weights."""
    dims = ctx.dims
    totals = [dims.batch, dims.heads, dims.features_per_head]
    return mtf.Shape([*totals, dims.value_features]), mtf.Shape(totals)


def _memory_state(memory: list[tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
    """[heads, features, features] and [heads, features]: the learned keys and values, summed as positions are."""
    weights = tf.exp(memory[0])
    return tf.einsum("mhf,mhg->hfg", weights, memory[1]), tf.reduce_sum(weights, 0)


def _for_batch(memory: tf.Tensor, like: tf.Tensor) -> tf.Tensor:
    """[learned_memory, heads, features] repeated for the batch of `like`."""
    return tf.broadcast_to(memory[None], [like.shape[0], *memory.shape.as_list()])
