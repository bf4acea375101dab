"""Attention layers (Vaswani et al., 2017, arXiv:1706.03762), global and local.

As in the published GPT-Neo models there is no 1/sqrt(features) at run time: it is folded into the initial weights of
the queries.
"""

from __future__ import annotations

import tensorflow as tf

from meshes.compat import mtf
from models.cache import Cache
from models.context import Context, constant
from models.kernels import kernel

MASKED = -1e10  # finite, so that a masked score minus a masked maximum is not NaN


def attention(ctx: Context, x: mtf.Tensor, name: str, kind: str, cache: Cache) -> mtf.Tensor:
    """Multi-head causal self-attention.

    Args:
        x: [batch, sequence, embd], normalised.
        name: prefix of the weights, such as "h0/attn".
        kind: "global", or "local": a query sees the last `local_attention_radius` positions, its own included.
        cache: where keys and values of earlier positions come from.

    Returns:
        [batch, sequence, embd], to be added to the residual stream.
    """
    dims = ctx.dims
    width, features = dims.embd.size, dims.features_per_head.size
    q = _heads(ctx, x, f"{name}/q", stddev=(width * features) ** -0.5)
    k = _heads(ctx, x, f"{name}/k", stddev=width**-0.5)
    v = _heads(ctx, x, f"{name}/v", stddev=width**-0.5)
    k, v = cache.extend(ctx, k, v)
    window = ctx.model.local_attention_radius if kind == "local" else None
    attended = _attend(ctx, q, k, v, cache.positions(ctx), window, name)
    merged = mtf.reshape(attended, mtf.Shape([dims.batch, dims.sequence, dims.heads_and_features]))
    kernel_o = ctx.variable(
        f"{name}/o", [dims.heads_and_features, dims.embd], ctx.normal(f"{name}/o", dims.heads_and_features.size**-0.5)
    )
    out = mtf.einsum([merged, kernel_o], output_shape=[dims.batch, dims.sequence, dims.embd])
    return out + ctx.variable(f"{name}/compute_output_bias/o_b", [dims.embd], constant(0.0))


def _heads(ctx: Context, x: mtf.Tensor, name: str, stddev: float) -> mtf.Tensor:
    """x: [batch, sequence, embd] projected to [batch, sequence, heads, features_per_head]."""
    dims = ctx.dims
    weight = ctx.variable(name, [dims.embd, dims.heads_and_features], ctx.normal(name, stddev))
    y = mtf.einsum([x, weight], output_shape=[dims.batch, dims.sequence, dims.heads_and_features])
    return mtf.reshape(y, mtf.Shape([dims.batch, dims.sequence, dims.heads, dims.features_per_head]))


def _attend(
    ctx: Context, q: mtf.Tensor, k: mtf.Tensor, v: mtf.Tensor, positions: mtf.Tensor, window: int | None, name: str
) -> mtf.Tensor:
    """Softmax attention of each query to the keys at its position and before it.

    Args:
        q: [batch, sequence, heads, features_per_head].
        k, v: [batch, memory_length, heads, features_per_head]; slot i holds position i.
        positions: int32 [sequence], of the queries.
        window: how many positions a query sees, its own included; None: all.

    Returns:
        [batch, sequence, heads, features_per_head].
    """
    dims = ctx.dims
    drops = ctx.dropout_seed is not None and ctx.model.attn_dropout > 0
    if drops or not ctx.is_whole(dims.sequence, dims.memory_length):
        return _attend_by_mesh_operations(ctx, q, k, v, positions, window, name)

    def attend(q: tf.Tensor, k: tf.Tensor, v: tf.Tensor, positions: tf.Tensor) -> tf.Tensor:
        wide_q, wide_k = tf.cast(q, ctx.statistics_dtype), tf.cast(k, ctx.statistics_dtype)
        scores = tf.einsum("bqhf,bkhf->bhqk", wide_q, wide_k)
        seen = visible(positions[:, None], tf.range(k.shape[1])[None, :], window)
        weights = tf.nn.softmax(tf.where(seen, scores, tf.cast(MASKED, scores.dtype)))
        return tf.einsum("bhqk,bkhf->bqhf", tf.cast(weights, v.dtype), v)

    return kernel(attend, [q, k, v, positions], [(q.shape, q.dtype)], [dims.batch, dims.heads], "attend")[0]


def _attend_by_mesh_operations(
    ctx: Context, q: mtf.Tensor, k: mtf.Tensor, v: mtf.Tensor, positions: mtf.Tensor, window: int | None, name: str
) -> mtf.Tensor:
    """The same for layouts that split queries or keys over positions, and for dropout of the weights."""
    dims = ctx.dims
    wide = [mtf.cast(t, ctx.statistics_dtype) for t in (q, k)]
    scores = mtf.einsum(wide, output_shape=[dims.batch, dims.heads, dims.sequence, dims.memory_length])
    key_positions = mtf.range(ctx.mesh, dims.memory_length, tf.int32)

    def bias(positions: tf.Tensor, key_positions: tf.Tensor) -> tf.Tensor:
        seen = visible(positions[:, None], key_positions[None, :], window)
        return tf.where(seen, tf.cast(0.0, ctx.statistics_dtype), tf.cast(MASKED, ctx.statistics_dtype))

    shape = mtf.Shape([dims.sequence, dims.memory_length])
    scores += kernel(bias, [positions, key_positions], [(shape, ctx.statistics_dtype)], shape.dims, "mask")[0]
    weights = mtf.cast(mtf.softmax(scores, dims.memory_length), v.dtype)
    weights = ctx.dropout(weights, ctx.model.attn_dropout, f"{name}/weights")
    return mtf.einsum([weights, v], output_shape=q.shape)


def visible(query: tf.Tensor, key: tf.Tensor, window: int | None) -> tf.Tensor:
    """Whether a query at one position sees a key at another (integer tensors, broadcast)."""
    causal = key <= query
    return causal if window is None else tf.logical_and(causal, key > query - window)
