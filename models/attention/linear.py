"""Attention whose cost is linear in the context: sums of keys times values in place of logits for each pair.

Not causal: softmax of the queries over features, softmax of the keys over positions (Shen et al., 2018,
arXiv:1812.01243). Causal: softmax of the queries, exponential of the keys, sums over the positions up to each query,
divided by their total weight (Katharopoulos et al., 2020, arXiv:2006.16236).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from gpt_mesh.meshes.compat import mtf

import tensorflow as tf

from gpt_mesh.models.attention.kind import DecodePosition, Heads, Kind, Loop, State, StateTensor
from gpt_mesh.models.attention.slices import grouped_einsum
from gpt_mesh.models.context import Context
from gpt_mesh.models.dims import Dims
from gpt_mesh.models.kernels import kernel

CHUNK = 128
EPSILON = 1e-6


class Linear(Kind):
    """Linear attention.

    The state is the sum over positions of key times value, [batch, kv_heads, features_per_head, value_features], and of
    keys, [batch, kv_heads, features_per_head]; learned keys and values count as earlier than all others. It does not
    grow. There are no weights of pairs to drop: `attn_dropout` drops features of the values.
    """

    def full(self, ctx: Context, heads: Heads) -> mtf.Tensor:
        return _attend(ctx, heads, self._values(ctx, heads))

    def prefill(self, ctx: Context, heads: Heads, lengths: mtf.Tensor) -> tuple[mtf.Tensor, State]:
        v = self._values(ctx, heads)
        return _attend(ctx, heads, v), self._state_before(ctx, heads, v, lengths)

    def step(self, ctx: Context, heads: Heads, place: DecodePosition, loop: Loop) -> tuple[mtf.Tensor, State]:
        """See `Kind.step`: adds the position's key to the sums, then reads them."""
        dims, dtype, v = ctx.dims, ctx.statistics_dtype, self._values(ctx, heads)

        def step(
            q: tf.Tensor, k: tf.Tensor, v: tf.Tensor, sums: tf.Tensor, totals: tf.Tensor
        ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            weights, queries = tf.exp(tf.cast(k, dtype)), tf.nn.softmax(tf.cast(q, dtype))
            sums += tf.einsum("bkhf,bkhg->bhfg", weights, tf.cast(v, dtype))
            totals += weights[:, 0]
            weight = grouped_einsum("bqhf,bhf->bqh", queries, totals) + EPSILON
            out = grouped_einsum("bqhf,bhfg->bqhg", queries, sums) / weight[..., None]
            return tf.cast(out, q.dtype), sums, totals

        outputs = [(heads.q.shape, heads.q.dtype), *[(tensor.shape, dtype) for tensor in self.state(dims)]]
        operands = [heads.q, heads.k, v, *loop.current]
        out, *current = kernel(step, operands, outputs, _split(dims), "linear_attention_step")
        return out, tuple(current)

    def state(self, dims: Dims) -> tuple[StateTensor, ...]:
        totals = (dims.batch, dims.kv_heads, dims.features_per_head)
        return StateTensor((*totals, dims.value_features), wide=True), StateTensor(totals, wide=True)

    def _values(self, ctx: Context, heads: Heads) -> mtf.Tensor:
        assert heads.bias is None, "there are no logits to add a bias to: the config refuses it"
        rate = 0.0 if ctx.model.gpt_neo_original else ctx.model.attn_dropout
        return ctx.dropout(heads.v, rate, f"{heads.site}/values")

    def _state_before(self, ctx: Context, heads: Heads, v: mtf.Tensor, lengths: mtf.Tensor) -> State:
        """The sums over each row's positions before its length, and over the learned memory."""
        dims, dtype = ctx.dims, ctx.statistics_dtype
        k, v = (mtf.replace_dimensions(t, dims.sequence, dims.whole_sequence) for t in (heads.k, v))

        def sums(k: tf.Tensor, v: tf.Tensor, lengths: tf.Tensor, *memory: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            before = (tf.range(k.shape[1]) < lengths[:, None])[:, :, None, None]
            weights = tf.exp(tf.cast(k, dtype)) * tf.cast(before, dtype)
            state = tf.einsum("bkhf,bkhg->bhfg", weights, tf.cast(v, dtype)), tf.reduce_sum(weights, 1)
            if memory:
                learned = _memory_state([tf.cast(t, dtype) for t in memory])
                state = state[0] + learned[0], state[1] + learned[1]
            return state

        outputs = [(tensor.shape, dtype) for tensor in self.state(dims)]
        operands = [k, v, lengths, *heads.memory]
        return tuple(kernel(sums, operands, outputs, _split(dims), "linear_attention_state"))


def _split(dims: Dims) -> list[mtf.Dimension]:
    """The dimensions along which each slice of heads is attended by itself."""
    return [dims.batch, dims.heads, dims.kv_heads]


def _attend(ctx: Context, heads: Heads, v: mtf.Tensor) -> mtf.Tensor:
    """All positions in one pass: [batch, sequence, heads, features_per_head]."""
    dims = ctx.dims
    attend_all: Callable[..., tf.Tensor] = _causal if ctx.causal else _bidirectional
    # Sums over positions need all of them on one device: a dimension that no layout splits.
    whole = [mtf.replace_dimensions(t, dims.sequence, dims.whole_sequence) for t in (heads.q, heads.k, v)]

    def slices(q: tf.Tensor, k: tf.Tensor, v: tf.Tensor, *memory: tf.Tensor) -> tf.Tensor:
        wide_q, wide_k, wide_v, *wide_memory = (tf.cast(t, ctx.statistics_dtype) for t in (q, k, v, *memory))
        return tf.cast(attend_all(wide_q, wide_k, wide_v, wide_memory), q.dtype)

    outputs = [(whole[0].shape, heads.q.dtype)]
    chunk = mtf.Dimension("chunk", min(CHUNK, dims.sequence.size))
    chunks = mtf.Dimension("chunks", -(-dims.sequence.size // CHUNK) if ctx.causal else 1)
    state = [dims.batch, dims.kv_heads, dims.features_per_head, dims.value_features]
    inside = [[dims.batch, dims.heads, dims.whole_sequence, chunk], [*state, chunks]]
    shapes = [(mtf.Shape(shape), ctx.statistics_dtype) for shape in inside]
    out = kernel(
        slices,
        [*whole, *heads.memory],
        outputs,
        _split(dims),
        "linear_attention",
        # Weights of the pairs in a chunk and their weighted sums; the sums over positions, and what queries read there.
        flops=4.0 * heads.q.shape.size * (chunk.size + dims.value_features.size),
        kept=[*whole, *heads.memory, *shapes, *shapes],  # and their gradients
    )
    return mtf.replace_dimensions(out[0], dims.whole_sequence, dims.sequence)


def _bidirectional(q: tf.Tensor, k: tf.Tensor, v: tf.Tensor, memory: Sequence[tf.Tensor]) -> tf.Tensor:
    """q: [batch, positions, heads, features], k, v: [batch, positions, kv_heads, features]; all see all positions."""
    if memory:
        k, v = (tf.concat([_for_batch(m, k), t], 1) for m, t in zip(memory, (k, v), strict=True))
    context = tf.einsum("bkhf,bkhg->bhfg", tf.nn.softmax(k, axis=1), v)
    return grouped_einsum("bqhf,bhfg->bqhg", tf.nn.softmax(q), context)


def _causal(q: tf.Tensor, k: tf.Tensor, v: tf.Tensor, memory: Sequence[tf.Tensor]) -> tf.Tensor:
    """q: [batch, positions, heads, features], k, v: [batch, positions, kv_heads, features]; a query sees its position
    and those before.

    In chunks: within one, weights of pairs; for the chunks before it, their sums. Memory grows with positions times
    (CHUNK + features² / CHUNK), not with positions times features².
    """
    positions = q.shape[1]
    size = min(CHUNK, positions)
    chunks = -(-positions // size)
    padding = [[0, 0], [0, chunks * size - positions], [0, 0], [0, 0]]
    # Padded keys follow every real query, so no real query sees them.
    q, k, v = (
        tf.reshape(tf.pad(t, padding), [-1, chunks, size, *t.shape[2:]]) for t in (tf.nn.softmax(q), tf.exp(k), v)
    )
    sums = tf.cumsum(tf.einsum("bnkhf,bnkhg->bnhfg", k, v), axis=1, exclusive=True)
    totals = tf.cumsum(tf.reduce_sum(k, axis=2), axis=1, exclusive=True)
    if memory:
        first_sum, first_total = _memory_state(memory)
        sums, totals = sums + first_sum, totals + first_total
    pairs = grouped_einsum("bnqhf,bnkhf->bnhqk", q, k)
    pairs = tf.where(tf.range(size)[None, :] <= tf.range(size)[:, None], pairs, tf.zeros_like(pairs))
    value = grouped_einsum("bnhqk,bnkhg->bnqhg", pairs, v) + grouped_einsum("bnqhf,bnhfg->bnqhg", q, sums)
    weight = tf.einsum("bnhqk->bnqh", pairs) + grouped_einsum("bnqhf,bnhf->bnqh", q, totals)
    out = value / (weight + EPSILON)[..., None]
    return tf.reshape(out, [-1, chunks * size, *q.shape[3:]])[:, :positions]


def _memory_state(memory: Sequence[tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
    """The learned keys and values, summed like positions: [kv_heads, features, features] and [kv_heads, features]."""
    weights = tf.exp(memory[0])
    return tf.einsum("mhf,mhg->hfg", weights, memory[1]), tf.reduce_sum(weights, 0)


def _for_batch(memory: tf.Tensor, like: tf.Tensor) -> tf.Tensor:
    """[learned_memory, kv_heads, features] repeated for the batch of `like`."""
    return tf.broadcast_to(memory[None], [like.shape[0], *memory.shape.as_list()])
