"""The GPT itself: embeddings, blocks, logits (Radford et al., 2019; Brown et al., 2020, arXiv:2005.14165).

Weights and their names are those of the published GPT-Neo checkpoints: `wte`, `wpe`, per layer `h{i}/norm_1`,
`h{i}/attn`, `h{i}/norm_2`, `h{i}/mlp`, and `ln_f`, all under `gpt2/`.
"""

from __future__ import annotations

from meshes.compat import mtf
from models import kernels
from models.attention import attention
from models.cache import Cache, FullPass
from models.context import Context
from models.feed_forward import feed_forward
from models.norms import norm


def logits(ctx: Context, tokens: mtf.Tensor, cache: Cache | None = None) -> mtf.Tensor:
    """Scores of each next token.

    Args:
        tokens: int32 [batch, sequence], ids in [0, n_vocab).
        cache: keys and values of earlier positions; default: there are none.

    Returns:
        [batch, sequence, vocab] in the activation type.
    """
    cache = FullPass() if cache is None else cache
    x = embed(ctx, tokens, cache)
    for i, kind in enumerate(ctx.model.attention_types):
        x = block(ctx, x, f"h{i}", kind, cache)
    x = norm(ctx, x, "ln_f")
    return mtf.einsum([x, token_embedding(ctx)], output_shape=[*tokens.shape.dims, ctx.dims.vocab])


def token_embedding(ctx: Context) -> mtf.Tensor:
    """[vocab, embd]: rows embed tokens on the way in and score them on the way out."""
    return ctx.variable("wte", [ctx.dims.vocab, ctx.dims.embd], ctx.normal("wte", 0.02))


def embed(ctx: Context, tokens: mtf.Tensor, cache: Cache) -> mtf.Tensor:
    """[batch, sequence, embd]: token plus position embeddings, with dropout."""
    dims = ctx.dims
    x = kernels.embedding_lookup(token_embedding(ctx), tokens, dims.vocab)
    wpe = ctx.variable("wpe", [dims.embed_sequence, dims.embd], ctx.normal("wpe", 0.01))
    if dims.sequence.size == dims.embed_sequence.size:
        x += mtf.replace_dimensions(wpe, dims.embed_sequence, dims.sequence)
    else:
        x += kernels.embedding_lookup(wpe, cache.positions(ctx), dims.embed_sequence)
    return ctx.dropout(x, ctx.model.embed_dropout, "embed")


def block(ctx: Context, x: mtf.Tensor, name: str, kind: str, cache: Cache) -> mtf.Tensor:
    """One pre-norm transformer block on the residual stream x: [batch, sequence, embd]."""
    a = attention(ctx, norm(ctx, x, f"{name}/norm_1"), f"{name}/attn", kind, cache)
    x += ctx.dropout(a, ctx.model.res_dropout, f"{name}/attn")
    m = feed_forward(ctx, norm(ctx, x, f"{name}/norm_2"), f"{name}/mlp")
    return x + ctx.dropout(m, ctx.model.res_dropout, f"{name}/mlp")
