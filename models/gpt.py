"""The GPT itself: embeddings, blocks, logits (Radford et al., 2019; Brown et al., 2020, arXiv:2005.14165).

Weights and their names are those of the published GPT-Neo checkpoints: `wte`, `wpe`, per layer `h{i}/norm_1`,
`h{i}/attn`, `h{i}/norm_2`, `h{i}/mlp`, and `ln_f`, all under `gpt2/`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from gpt_mesh.meshes.compat import mtf

import tensorflow as tf

from gpt_mesh.models import kernels
from gpt_mesh.models.attention.cache import Cache, FullPass
from gpt_mesh.models.attention.kinds import KINDS
from gpt_mesh.models.attention.layer import attention
from gpt_mesh.models.context import Context
from gpt_mesh.models.feed_forward import FEED_FORWARDS, feed_forward_name
from gpt_mesh.models.moe import Balance
from gpt_mesh.models.norms import norm_of
from gpt_mesh.models.positions import position_embedding


@dataclass(frozen=True)
class Forward:
    """The result of a pass.

    Attributes:
        features: what `score` maps to logits: [batch, sequence, embd]; [batch, embd] if only one position of each row
            was asked for.
        balance: of each mixture of experts, by its layer's name.
    """

    features: mtf.Tensor
    balance: dict[str, Balance] = field(default_factory=dict)


def logits(ctx: Context, tokens: mtf.Tensor, cache: Cache | None = None) -> mtf.Tensor:
    """Logits of each next token, [batch, sequence, vocab], for tokens int32 [batch, sequence]: see `forward`."""
    return score(ctx, forward(ctx, tokens, cache).features)


def next_logits(ctx: Context, tokens: mtf.Tensor, cache: Cache, places: mtf.Tensor | None = None) -> mtf.Tensor:
    """Logits [batch, vocab] of the token after one position of each row, `places` int32 [batch]; None: the only one."""
    if places is not None:
        return score(ctx, forward(ctx, tokens, cache, places=places).features)
    return mtf.reshape(logits(ctx, tokens, cache), mtf.Shape([ctx.dims.batch, ctx.dims.vocab]))


def forward(
    ctx: Context,
    tokens: mtf.Tensor,
    cache: Cache | None = None,
    *,
    recompute: bool = False,
    places: mtf.Tensor | None = None,
) -> Forward:
    """A pass through the model.

    Args:
        tokens: int32 [batch, sequence], ids in [0, n_vocab).
        cache: what is known of earlier positions; default: nothing.
        recompute: keep only each block's input for the backward pass, and recompute its inside there (Chen et al.,
            2016, arXiv:1604.06174).
        places: int32 [batch]: return features of only this position of each row.
    """
    cache = FullPass() if cache is None else cache
    x, balance = embed(ctx, tokens, cache), {}
    ctx.observe("embed", x)
    for number in range(ctx.model.n_layer):
        block = Block(ctx, number, cache)
        outputs = mtf.recompute_grad(block, [x]) if recompute else block(x)
        x, *parts = outputs if isinstance(outputs, (tuple, list)) else [outputs]
        if parts:
            balance[block.site] = Balance(*parts)
        ctx.observe(block.site, x)
    x = x if places is None else _pick(ctx, x, places)
    features = norm_of(ctx.model).apply(ctx, x, "ln_f")
    ctx.observe("ln_f", features)
    return Forward(features, balance)


def embed(ctx: Context, tokens: mtf.Tensor, cache: Cache) -> mtf.Tensor:
    """[batch, sequence, embd]: token plus position embeddings, with dropout."""
    x = kernels.embedding_lookup(token_embedding(ctx), tokens, ctx.dims.vocab)
    positions = position_embedding(ctx.model).embed(ctx, cache.positions(ctx))
    return ctx.dropout(x if positions is None else x + positions, ctx.model.embed_dropout, "embed")


class Block:
    """One transformer block: a function of the residual stream [batch, sequence, embd].

    Returns the new residual stream, followed by the parts of a `Balance` if the layer is a mixture of experts.
    """

    def __init__(self, ctx: Context, number: int, cache: Cache) -> None:
        model = ctx.model
        self.ctx, self.model, self.cache, self.norm = ctx, model, cache, norm_of(model)
        self.kind = KINDS[model.attention_types[number]]
        self.feed_forward = FEED_FORWARDS[feed_forward_name(model, number)]
        self.site = f"h{number}"
        self.name = "h0" if model.share_parameters else self.site

    def __call__(self, x: mtf.Tensor) -> mtf.Tensor | tuple[mtf.Tensor, ...]:
        share = 0.5 if self.model.macaron else 1.0
        if self.model.macaron:  # half a feed-forward on either side of attention (Lu et al., 2019, arXiv:1906.02762)
            outer = FEED_FORWARDS[feed_forward_name(self.model)]
            y, _ = outer.apply(self.ctx, self._before(x, "mac"), f"{self.name}/mlp_mac", f"{self.site}/mlp_mac")
            x += self._after(y, "mac", share)
        if self.kind is not None:
            h = self._before(x, "1")
            y = attention(self.ctx, h, f"{self.name}/attn", self.kind, self.cache, f"{self.site}/attn")
            x += self._after(y, "1")
        weights = self.feed_forward.weights
        h = self._before(x, "2")
        y, balance = self.feed_forward.apply(self.ctx, h, f"{self.name}/{weights}", f"{self.site}/{weights}")
        x += self._after(y, "2", share)
        return x if balance is None else (x, balance.loss, balance.load)

    def _before(self, x: mtf.Tensor, number: str) -> mtf.Tensor:
        """The input of a branch, from the residual stream."""
        return self.norm.before(self.ctx, x, f"{self.name}/norm_{number}")

    def _after(self, y: mtf.Tensor, number: str, share: float = 1.0) -> mtf.Tensor:
        """What is added to the residual stream, from the output of a branch."""
        y = self.ctx.dropout(y, self.model.res_dropout, f"{self.site}/residual_{number}")
        y = self.norm.after(self.ctx, y, f"{self.name}/norm_{number}")
        return y if share == 1.0 else y * share


def token_embedding(ctx: Context) -> mtf.Tensor:
    """[vocab, embd]: embeds tokens, and unless `no_weight_tie` is set it also maps features to logits."""
    return ctx.variable("wte", [ctx.dims.vocab, ctx.dims.embd], ctx.normal("wte", 0.02))


def score(ctx: Context, x: mtf.Tensor) -> mtf.Tensor:
    """Features [..., embd] to logits [..., vocab], in the activation type."""
    return mtf.einsum([x, output_weight(ctx)], output_shape=[*x.shape.dims[:-1], ctx.dims.vocab])


def output_weight(ctx: Context) -> mtf.Tensor:
    """The matrix from features to logits: the token embedding [vocab, embd]; with `no_weight_tie` [embd, vocab]."""
    if not ctx.model.no_weight_tie:
        return token_embedding(ctx)
    name = "linear_out/kernel"
    return ctx.variable(name, [ctx.dims.embd, ctx.dims.vocab], ctx.normal(name, 0.02))


def _pick(ctx: Context, x: mtf.Tensor, places: mtf.Tensor) -> mtf.Tensor:
    """x: [batch, sequence, embd] at one position of each row: [batch, embd]."""

    def pick(x: tf.Tensor, places: tf.Tensor) -> tf.Tensor:
        return tf.gather(x, places, batch_dims=1)

    shape = mtf.Shape([ctx.dims.batch, ctx.dims.embd])
    return kernels.kernel(pick, [x, places], [(shape, x.dtype)], shape.dims, "pick")[0]
