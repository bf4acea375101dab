"""Attention layers (Vaswani et al., 2017, arXiv:1706.03762): projections, and softmax attention, global and local.

As in the published GPT-Neo models there is no 1/sqrt(features) at run time: it is folded into the initial weights of
the queries.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType

from gpt_mesh.meshes.compat import mtf

import tensorflow as tf

from gpt_mesh.meshes import products
from gpt_mesh.models import cpu_attention, flash_attention, linear_attention, local_attention
from gpt_mesh.models.cache import Cache, Decode, Place, State
from gpt_mesh.models.context import Context, constant
from gpt_mesh.models.kernels import kernel
from gpt_mesh.models.positions import rotate

MASKED = -1e10  # finite, so that a masked score minus a masked maximum is not NaN


def attention(ctx: Context, x: mtf.Tensor, name: str, kind: str, cache: Cache, site: str) -> mtf.Tensor:
    """Multi-head self-attention.

    Args:
        x: [batch, sequence, embd], normalised.
        name: prefix of the weights, such as "h0/attn".
        kind: "global"; "local": a query sees the `local_attention_radius` nearest positions, its own included;
            "linear": see `linear_attention`.
        cache: what is known of earlier positions.
        site: name of this layer for dropout; layers that share weights have each their own.

    Returns:
        [batch, sequence, embd], to be added to the residual stream.
    """
    dims = ctx.dims
    width, features = dims.embd.size, dims.features_per_head.size
    q = _heads(ctx, x, f"{name}/q", stddev=(width * features) ** -0.5)
    k = _heads(ctx, x, f"{name}/k", stddev=width**-0.5)
    v = _heads(ctx, x, f"{name}/v", stddev=width**-0.5)
    if ctx.model.rotary_emb:
        q, k = (rotate(ctx, t, cache.positions(ctx)) for t in (q, k))
    memory = _learned_memory(ctx, name)
    if kind == "linear":
        attended = linear_attention.attend(ctx, q, k, v, memory, cache, site)
    elif isinstance(cache, Decode):
        attended = _attend_once(ctx, q, cache.extend(ctx, k, v), memory, cache.place, _window(ctx, kind))
    else:
        k, v = cache.extend(ctx, k, v)
        window = _window(ctx, kind)
        attended = _attend(ctx, q, k, v, memory, View(cache.positions(ctx), ctx.causal, window), site)
    merged = mtf.reshape(attended, mtf.Shape([dims.batch, dims.sequence, dims.heads_and_features]))
    kernel_o = ctx.variable(
        f"{name}/o", [dims.heads_and_features, dims.embd], ctx.normal(f"{name}/o", dims.heads_and_features.size**-0.5)
    )
    out = mtf.einsum([merged, kernel_o], output_shape=[dims.batch, dims.sequence, dims.embd])
    return out + ctx.variable(f"{name}/compute_output_bias/o_b", [dims.embd], constant(0.0))


def _window(ctx: Context, kind: str) -> int | None:
    return ctx.model.local_attention_radius if kind == "local" else None


def _heads(ctx: Context, x: mtf.Tensor, name: str, stddev: float) -> mtf.Tensor:
    """x: [batch, sequence, embd] projected to [batch, sequence, heads, features_per_head]."""
    dims = ctx.dims
    weight = ctx.variable(name, [dims.embd, dims.heads_and_features], ctx.normal(name, stddev))
    y = mtf.einsum([x, weight], output_shape=[dims.batch, dims.sequence, dims.heads_and_features])
    return mtf.reshape(y, mtf.Shape([dims.batch, dims.sequence, dims.heads, dims.features_per_head]))


def _learned_memory(ctx: Context, name: str) -> list[mtf.Tensor]:
    """`num_mem_kv` learned keys and values that every query sees, as in all-attention layers (Sukhbaatar et al., 2019,
    arXiv:1907.01470): [keys, values], both [learned_memory, heads, features_per_head]; empty where there are none.
    """
    dims = ctx.dims
    if not ctx.model.num_mem_kv:
        return []
    shape = mtf.Shape([dims.learned_memory, dims.heads, dims.features_per_head])
    names = [f"{name}/{part}" for part in ("mem_k", "mem_v")]
    stddev = dims.embd.size**-0.5
    weights = [ctx.variable(n, [dims.learned_memory, dims.heads_and_features], ctx.normal(n, stddev)) for n in names]
    return [mtf.reshape(weight, shape) for weight in weights]


@dataclass(frozen=True)
class View:
    """Which positions a query sees.

    Attributes:
        positions: int32 [sequence], of the queries.
        causal: only its own and those before it.
        window: how many at most, its own included, counted in each direction; None: all.
    """

    positions: mtf.Tensor
    causal: bool
    window: int | None

    def sees(self, query: tf.Tensor, key: tf.Tensor) -> tf.Tensor:
        """Whether the query at one position sees the key at another (integer tensors, broadcast)."""
        distance = query - key
        if self.causal:
            seen = distance >= 0
            return seen if self.window is None else tf.logical_and(seen, distance < self.window)
        return tf.abs(distance) < (tf.int32.max if self.window is None else self.window)


def _attend(
    ctx: Context, q: mtf.Tensor, k: mtf.Tensor, v: mtf.Tensor, memory: list[mtf.Tensor], view: View, site: str
) -> mtf.Tensor:
    """Softmax attention.

    Args:
        q: [batch, sequence, heads, features_per_head].
        k, v: [batch, memory_length, heads, features_per_head]; slot i holds position i.
        memory: learned keys and values, or nothing.

    Returns:
        [batch, sequence, heads, features_per_head].
    """
    dims = ctx.dims
    drops = ctx.train and ctx.model.attn_dropout > 0
    if drops or not ctx.is_whole(dims.sequence, dims.memory_length):
        return _attend_by_mesh_operations(ctx, q, k, v, memory, view, site)
    shape = dims.sequence.size, dims.features_per_head.size
    if ctx.tensor_cores and not memory and flash_attention.fits(*shape, q.dtype, view.causal, view.window):
        return _attend_without_scores(ctx, q, k, v, view, flash_attention)
    if ctx.cpu_products and not memory and cpu_attention.fits(q.dtype):
        return _attend_without_scores(ctx, q, k, v, view, cpu_attention)

    size = None
    if ctx.fused and view.window is not None:
        size = local_attention.block_size(dims.sequence.size, view.window, view.causal)

    def attend(q: tf.Tensor, k: tf.Tensor, v: tf.Tensor, positions: tf.Tensor, *memory: tf.Tensor) -> tf.Tensor:
        if size is not None:
            how = {"causal": view.causal, "sees": view.sees, "masked": MASKED, "dtype": ctx.statistics_dtype}
            return local_attention.attend(q, k, v, memory, size=size, **how)
        wide_q = tf.cast(q, ctx.statistics_dtype)
        scores = tf.einsum("bqhf,bkhf->bhqk", wide_q, tf.cast(k, ctx.statistics_dtype))
        seen = view.sees(positions[:, None], tf.range(k.shape[1])[None, :])
        scores = tf.where(seen, scores, tf.cast(MASKED, scores.dtype))
        if memory:
            learned = tf.einsum("bqhf,mhf->bhqm", wide_q, tf.cast(memory[0], ctx.statistics_dtype))
            scores = tf.concat([learned, scores], -1)
        weights = tf.cast(tf.nn.softmax(scores), v.dtype)
        if not memory:
            return tf.einsum("bhqk,bkhf->bqhf", weights, v)
        on_memory, on_keys = tf.split(weights, [memory[0].shape[0], k.shape[1]], axis=-1)
        return tf.einsum("bhqk,bkhf->bqhf", on_keys, v) + tf.einsum("bhqm,mhf->bqhf", on_memory, memory[1])

    operands = [q, k, v, view.positions, *memory]
    return kernel(attend, operands, [(q.shape, q.dtype)], [dims.batch, dims.heads], "attend")[0]


def _attend_without_scores(
    ctx: Context, q: mtf.Tensor, k: mtf.Tensor, v: mtf.Tensor, view: View, kernels: ModuleType
) -> mtf.Tensor:
    """The same in memory linear in the sequence, by `flash_attention` or `cpu_attention`; without learned memory."""
    dims = ctx.dims

    def attend(q: tf.Tensor, k: tf.Tensor, v: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return kernels.attend(q, k, v, view.causal, view.window)

    def gradient(
        q: tf.Tensor, k: tf.Tensor, v: tf.Tensor, attended: tf.Tensor, log_sums: tf.Tensor, upstream: tf.Tensor, _: None
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        return kernels.gradient(q, k, v, attended, log_sums, upstream, view.causal, view.window)

    log_sums = mtf.Shape([dims.batch, dims.heads, dims.sequence]), tf.float32
    outputs = [(q.shape, q.dtype), log_sums]
    return kernel(attend, [q, k, v], outputs, [dims.batch, dims.heads], "attend", gradient)[0]


def _attend_once(
    ctx: Context, q: mtf.Tensor, states: tuple[State, State], memory: list[mtf.Tensor], place: Place, window: int | None
) -> mtf.Tensor:
    """Softmax attention of the one new position of each row.

    Args:
        q: [batch, sequence, heads, features_per_head], the sequence of size 1.
        states: keys and values kept, and those of new positions, the keys turned: see `Decode`.
        memory: learned keys and values, or nothing.

    Returns:
        The shape of q.
    """
    (kept_k, kept_v), (new_k, new_v) = states
    dtype = ctx.statistics_dtype

    def product(x: tf.Tensor, y: tf.Tensor, **limit: tf.Tensor) -> tf.Tensor:
        return products.matmul(x, y, **limit) if ctx.cpu_products else tf.matmul(x, y)

    def attend(q: tf.Tensor, start: tf.Tensor, count: tf.Tensor, *parts: tf.Tensor) -> tf.Tensor:
        keys, values = parts[: len(parts) // 2], parts[len(parts) // 2 :]
        batch, _, heads, features = q.shape
        wide = tf.cast(tf.reshape(q, [batch, heads, 1, features]), dtype)  # there is one position to exchange
        scores = [product(wide, tf.cast(keys[0], dtype), kept=start), product(wide, tf.cast(keys[1], dtype))]
        scores += [tf.einsum("bhqf,khf->bhqk", wide, tf.cast(k, dtype)) for k in keys[2:]]
        first, slots = start[:, None], [tf.range(k.shape[3])[None, :] for k in keys[:2]]
        seen = [slots[0] < first, slots[1] <= count]
        if window is not None:
            oldest = first + count - window
            seen = [tf.logical_and(seen[0], slots[0] > oldest), tf.logical_and(seen[1], first + slots[1] > oldest)]
        scores[:2] = [tf.where(s[:, None, None, :], x, MASKED) for s, x in zip(seen, scores[:2], strict=True)]
        sizes = [x.shape[-1] for x in scores]
        weights = tf.split(tf.cast(tf.nn.softmax(tf.concat(scores, -1)), q.dtype), sizes, axis=-1)
        attended = [product(weights[0], values[0], summed=start), product(weights[1], values[1])]
        attended += [tf.einsum("bhqk,khf->bhqf", w, v) for w, v in zip(weights[2:], values[2:], strict=True)]
        return tf.reshape(tf.add_n(attended), q.shape)

    learned_k, learned_v = ([memory[0]], [memory[1]]) if memory else ([], [])
    operands = [q, place.start, place.count, kept_k, new_k, *learned_k, kept_v, new_v, *learned_v]
    return kernel(attend, operands, [(q.shape, q.dtype)], [ctx.dims.batch, ctx.dims.heads], "attend_once")[0]


def _attend_by_mesh_operations(
    ctx: Context, q: mtf.Tensor, k: mtf.Tensor, v: mtf.Tensor, memory: list[mtf.Tensor], view: View, site: str
) -> mtf.Tensor:
    """The same for layouts that split queries or keys over positions, and for dropout of the weights."""
    dims = ctx.dims
    wide_q = mtf.cast(q, ctx.statistics_dtype)
    shape = mtf.Shape([dims.batch, dims.heads, dims.sequence, dims.memory_length])
    scores = mtf.einsum([wide_q, mtf.cast(k, ctx.statistics_dtype)], output_shape=shape) + _mask(ctx, view)
    peak = mtf.reduce_max(mtf.stop_gradient(scores), reduced_dim=dims.memory_length)
    if memory:
        learned_shape = mtf.Shape([dims.batch, dims.heads, dims.sequence, dims.learned_memory])
        learned = mtf.einsum([wide_q, mtf.cast(memory[0], ctx.statistics_dtype)], output_shape=learned_shape)
        peak = mtf.maximum(peak, mtf.reduce_max(mtf.stop_gradient(learned), reduced_dim=dims.learned_memory))
    parts = [(mtf.exp(scores - peak), dims.memory_length, v, f"{site}/weights")]
    if memory:
        parts.append((mtf.exp(learned - peak), dims.learned_memory, memory[1], f"{site}/memory_weights"))
    total = mtf.add_n([mtf.reduce_sum(part, reduced_dim=dim) for part, dim, _, _ in parts])
    sums = []
    for part, _, values, part_site in parts:
        weights = ctx.dropout(mtf.cast(part / total, v.dtype), ctx.model.attn_dropout, part_site)
        sums.append(mtf.einsum([weights, values], output_shape=q.shape))
    return mtf.add_n(sums)


def _mask(ctx: Context, view: View) -> mtf.Tensor:
    """[sequence, memory_length]: 0 where a query sees a key, else a large negative number."""
    dims, dtype = ctx.dims, ctx.statistics_dtype

    def bias(positions: tf.Tensor, keys: tf.Tensor) -> tf.Tensor:
        return tf.where(view.sees(positions[:, None], keys[None, :]), tf.cast(0.0, dtype), tf.cast(MASKED, dtype))

    shape = mtf.Shape([dims.sequence, dims.memory_length])
    key_positions = mtf.range(ctx.mesh, dims.memory_length, tf.int32)
    return kernel(bias, [view.positions, key_positions], [(shape, dtype)], shape.dims, "mask")[0]
