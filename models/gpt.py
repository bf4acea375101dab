"""The GPT itself: embeddings, blocks, logits (Radford et al., 2019; Brown et al., 2020, arXiv:2005.14165).

Weights and their names are those of the published GPT-Neo checkpoints: `wte`, `wpe`, per layer `h{i}/norm_1`,
`h{i}/attn`, `h{i}/norm_2`, `h{i}/mlp`, and `ln_f`, all under `gpt2/`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from gpt_mesh.meshes.compat import mtf

import tensorflow as tf

from gpt_mesh.models import kernels
from gpt_mesh.models.attention.cache import Cache, FullPass
from gpt_mesh.models.attention.kinds import KINDS
from gpt_mesh.models.attention.layer import attention
from gpt_mesh.models.context import Context, constant
from gpt_mesh.models.feed_forward import feed_forward
from gpt_mesh.models.moe import Balance, mixture_of_experts
from gpt_mesh.models.norms import norm
from gpt_mesh.models.positions import position_embedding


@dataclass(frozen=True)
class Forward:
    """What a pass gives.

    Attributes:
        features: what `score` makes logits of: [batch, sequence, embd]; [batch, embd] where only one place was asked
            for.
        balance: of each mixture of experts, by its layer's name.
    """

    features: mtf.Tensor
    balance: dict[str, Balance] = field(default_factory=dict)


def logits(ctx: Context, tokens: mtf.Tensor, cache: Cache | None = None) -> mtf.Tensor:
    """Scores of each next token, [batch, sequence, vocab], for tokens int32 [batch, sequence]: see `forward`."""
    return score(ctx, forward(ctx, tokens, cache).features)


def next_logits(ctx: Context, tokens: mtf.Tensor, cache: Cache, places: mtf.Tensor | None = None) -> mtf.Tensor:
    """Scores [batch, vocab] of the token after one place of each row. `places`: int32 [batch]; None: the only place."""
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
        cache: what is known of earlier positions; default: there are none.
        recompute: keep only each block's input for the backward pass, and compute its inside again there (Chen et al.,
            2016, arXiv:1604.06174).
        places: int32 [batch]: score only this place of each row.
    """
    cache = FullPass() if cache is None else cache
    x, balance = embed(ctx, tokens, cache), {}
    for i in range(ctx.model.n_layer):
        layer = Layer(ctx, i, cache)
        outputs = mtf.recompute_grad(layer, [x]) if recompute else layer(x)
        x, parts = (outputs[0], outputs[1:]) if isinstance(outputs, (tuple, list)) else (outputs, ())
        if parts:
            balance[f"h{i}"] = Balance(*parts)
    x = x if places is None else _pick(ctx, x, places)
    return Forward(norm(ctx, x, "ln_f"), balance)


def _pick(ctx: Context, x: mtf.Tensor, places: mtf.Tensor) -> mtf.Tensor:
    """x: [batch, sequence, embd] at one place of each row: [batch, embd]."""

    def pick(x: tf.Tensor, places: tf.Tensor) -> tf.Tensor:
        return tf.gather(x, places, batch_dims=1)

    shape = mtf.Shape([ctx.dims.batch, ctx.dims.embd])
    return kernels.kernel(pick, [x, places], [(shape, x.dtype)], shape.dims, "pick")[0]


def embed(ctx: Context, tokens: mtf.Tensor, cache: Cache) -> mtf.Tensor:
    """[batch, sequence, embd]: token plus position embeddings, with dropout."""
    x = kernels.embedding_lookup(token_embedding(ctx), tokens, ctx.dims.vocab)
    positions = position_embedding(ctx.model).embed(ctx, cache.positions(ctx))
    return ctx.dropout(x if positions is None else x + positions, ctx.model.embed_dropout, "embed")


def token_embedding(ctx: Context) -> mtf.Tensor:
    """[vocab, embd]: rows embed tokens on the way in and, unless `no_weight_tie`, score them on the way out."""
    return ctx.variable("wte", [ctx.dims.vocab, ctx.dims.embd], ctx.normal("wte", 0.02))


def score(ctx: Context, x: mtf.Tensor) -> mtf.Tensor:
    """Features [..., embd] to logits [..., vocab], in the activation type."""
    return mtf.einsum([x, output_weight(ctx)], output_shape=[*x.shape.dims[:-1], ctx.dims.vocab])


def output_weight(ctx: Context) -> mtf.Tensor:
    """What turns features into logits: [vocab, embd], the token embedding; [embd, vocab] with `no_weight_tie`."""
    if not ctx.model.no_weight_tie:
        return token_embedding(ctx)
    name = "linear_out/kernel"
    return ctx.variable(name, [ctx.dims.embd, ctx.dims.vocab], ctx.normal(name, 0.02))


class Layer:
    """One pre-norm transformer block: a function of the residual stream [batch, sequence, embd].

    Returns the new residual stream, followed by the parts of a `Balance` where the layer is a mixture of experts.
    """

    def __init__(self, ctx: Context, number: int, cache: Cache) -> None:
        self.ctx, self.model, self.cache = ctx, ctx.model, cache
        self.kind = KINDS[ctx.model.attention_types[number]]
        self.is_mixture = number in ctx.model.moe_layers
        self.site = f"h{number}"
        self.name = "h0" if ctx.model.share_parameters else self.site

    def __call__(self, x: mtf.Tensor) -> mtf.Tensor | tuple[mtf.Tensor, ...]:
        share = 1.0
        if (
            self.model.macaron
        ):  # a half-weight feed-forward on either side of attention (Lu et al., 2019, arXiv:1906.02762)
            share = 0.5
            x = self._branch(x, "mac", lambda h: feed_forward(self.ctx, h, f"{self.name}/mlp_mac"), share)
        if self.kind is not None:
            x = self._branch(x, "1", self._attention)
        parts: list[mtf.Tensor] = []

        def second_half(h: mtf.Tensor) -> mtf.Tensor:
            if not self.is_mixture:
                return feed_forward(self.ctx, h, f"{self.name}/mlp")
            h, balance = mixture_of_experts(self.ctx, h, f"{self.name}/moe", f"{self.site}/moe")
            parts.extend([balance.loss, balance.load])
            return h

        x = self._branch(x, "2", second_half, share)
        return (x, *parts) if parts else x

    def _attention(self, h: mtf.Tensor) -> mtf.Tensor:
        return attention(self.ctx, h, f"{self.name}/attn", self.kind, self.cache, f"{self.site}/attn")

    def _branch(
        self, x: mtf.Tensor, number: str, function: Callable[[mtf.Tensor], mtf.Tensor], share: float = 1.0
    ) -> mtf.Tensor:
        """x plus a share of `function` of x, normalised; or, with `rezero`, times a learned gain that begins at 0
        instead of normalised (Bachlechner et al., 2020, arXiv:2003.04887).
        """
        ctx, model = self.ctx, self.model
        y = function(x if model.rezero else norm(ctx, x, f"{self.name}/norm_{number}"))
        y = ctx.dropout(y, model.res_dropout, f"{self.site}/residual_{number}")
        if model.rezero:
            y *= ctx.variable(f"{self.name}/norm_rezero_{number}/g", [], constant(0.0))
        return x + y if share == 1.0 else x + y * share
