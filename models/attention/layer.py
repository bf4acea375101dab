"""An attention layer (Vaswani et al., 2017, arXiv:1706.03762): projections around one kind of attention.

Logits are multiplied by 1/sqrt(features) where `scale_attn_weights` says so, by way of the queries. Without it, as in
the published GPT-Neo models, the factor is part of the initial weights of the queries.
"""

from __future__ import annotations

from gpt_mesh.meshes.compat import mtf

from gpt_mesh.models.attention.cache import Cache
from gpt_mesh.models.attention.kind import Heads, Kind
from gpt_mesh.models.context import Context, constant
from gpt_mesh.models.norms import rms_norm
from gpt_mesh.models.positions import position_embedding


def attention(ctx: Context, x: mtf.Tensor, name: str, kind: Kind, cache: Cache, site: str) -> mtf.Tensor:
    """Multi-head self-attention.

    Args:
        x: [batch, sequence, embd], normalised.
        name: prefix of the weights, such as "h0/attn".
        kind: one of `kinds.KINDS`.
        cache: what is known of earlier positions.
        site: name of this layer for dropout; layers that share weights have different sites.

    Returns:
        [batch, sequence, embd], to be added to the residual stream.
    """
    dims, model, embedding = ctx.dims, ctx.model, position_embedding(ctx.model)
    width, features, scaled = dims.embd.size, dims.features_per_head.size, model.scale_attn_weights
    q = _project(ctx, x, f"{name}/q", dims.heads, stddev=(width if scaled else width * features) ** -0.5)
    k = _project(ctx, x, f"{name}/k", dims.kv_heads, stddev=width**-0.5)
    v = _project(ctx, x, f"{name}/v", dims.kv_heads, stddev=width**-0.5)
    if model.qk_norm:
        q, k = (rms_norm(ctx, t, f"{name}/{which}_norm", dims.features_per_head) for t, which in ((q, "q"), (k, "k")))
    positions = cache.positions(ctx)
    q = embedding.rotate(ctx, q, positions, features**-0.5 if scaled else 1.0)
    k = embedding.rotate(ctx, k, positions)
    heads = Heads(q, k, v, _learned_memory(ctx, name), positions, embedding.bias(ctx), site)
    attended = cache.attend(ctx, kind, heads)
    merged = mtf.reshape(attended, mtf.Shape([dims.batch, dims.sequence, dims.heads_and_features]))
    kernel_o = ctx.variable(
        f"{name}/o", [dims.heads_and_features, dims.embd], ctx.normal(f"{name}/o", dims.heads_and_features.size**-0.5)
    )
    out = mtf.einsum([merged, kernel_o], output_shape=[dims.batch, dims.sequence, dims.embd])
    if model.use_bias_in_attn_linear is False:
        return out
    return out + ctx.variable(f"{name}/compute_output_bias/o_b", [dims.embd], constant(0.0))


def _project(ctx: Context, x: mtf.Tensor, name: str, heads: mtf.Dimension, stddev: float) -> mtf.Tensor:
    """x: [batch, sequence, embd] projected to [batch, sequence, heads, features_per_head], for any number of heads."""
    dims = ctx.dims
    columns = dims.heads_and_features if heads == dims.heads else dims.kv_heads_and_features
    weight = ctx.variable(name, [dims.embd, columns], ctx.normal(name, stddev))
    y = mtf.einsum([x, weight], output_shape=[dims.batch, dims.sequence, columns])
    if ctx.model.use_bias_in_qkv:
        y += ctx.variable(f"{name}_b", [columns], constant(0.0))
    return mtf.reshape(y, mtf.Shape([dims.batch, dims.sequence, heads, dims.features_per_head]))


def _learned_memory(ctx: Context, name: str) -> list[mtf.Tensor]:
    """`num_mem_kv` learned keys and values that every query sees, as in all-attention layers (Sukhbaatar et al., 2019,
    arXiv:1907.01470): [keys, values], both [learned_memory, kv_heads, features_per_head]; empty if the model has none.
    """
    dims = ctx.dims
    if not ctx.model.num_mem_kv:
        return []
    shape = mtf.Shape([dims.learned_memory, dims.kv_heads, dims.features_per_head])
    names = [f"{name}/{part}" for part in ("mem_k", "mem_v")]
    columns, stddev = dims.kv_heads_and_features, dims.embd.size**-0.5
    weights = [ctx.variable(n, [dims.learned_memory, columns], ctx.normal(n, stddev)) for n in names]
    return [mtf.reshape(weight, shape) for weight in weights]
