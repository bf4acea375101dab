"""The GPT itself: embeddings, blocks, logits (Radford et al., 2019; Brown et al., 2020, arXiv:2005.14165).

Weights and their names are those of the published GPT-Neo checkpoints: `wte`, `wpe`, per layer `h{i}/norm_1`,
`h{i}/attn`, `h{i}/norm_2`, `h{i}/mlp`, and `ln_f`, all under `gpt2/`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from meshes.compat import mtf

from models import kernels
from models.attention import attention
from models.cache import Cache, FullPass
from models.context import Context, constant
from models.feed_forward import feed_forward
from models.moe import Balance, mixture_of_experts
from models.norms import norm
from models.positions import position_embedding


@dataclass(frozen=True)
class Forward:
    """What a pass gives.

    Attributes:
        logits: [batch, sequence, vocab] in the activation type.
        balance: of each mixture of experts, by its layer's name.
    """

    logits: mtf.Tensor
    balance: dict[str, Balance] = field(default_factory=dict)


def logits(ctx: Context, tokens: mtf.Tensor, cache: Cache | None = None) -> mtf.Tensor:
    """Scores of each next token, [batch, sequence, vocab], for tokens int32 [batch, sequence]: see `forward`."""
    return forward(ctx, tokens, cache).logits


def forward(ctx: Context, tokens: mtf.Tensor, cache: Cache | None = None, *, recompute: bool = False) -> Forward:
    """A pass through the model.

    Args:
        tokens: int32 [batch, sequence], ids in [0, n_vocab).
        cache: what is known of earlier positions; default: there are none.
        recompute: keep only each block's input for the backward pass, and compute its inside again there (Chen et al.,
            2016, arXiv:1604.06174).
    """
    cache = FullPass() if cache is None else cache
    x, balance = embed(ctx, tokens, cache), {}
    for i in range(ctx.model.n_layer):
        layer = Layer(ctx, i, cache)
        outputs = mtf.recompute_grad(layer, [x]) if recompute else layer(x)
        x, parts = (outputs[0], outputs[1:]) if isinstance(outputs, (tuple, list)) else (outputs, ())
        if parts:
            balance[f"h{i}"] = Balance(*parts)
    return Forward(_score(ctx, norm(ctx, x, "ln_f")), balance)


def embed(ctx: Context, tokens: mtf.Tensor, cache: Cache) -> mtf.Tensor:
    """[batch, sequence, embd]: token plus position embeddings, with dropout."""
    x = kernels.embedding_lookup(token_embedding(ctx), tokens, ctx.dims.vocab)
    positions = position_embedding(ctx, cache)
    return ctx.dropout(x if positions is None else x + positions, ctx.model.embed_dropout, "embed")


def token_embedding(ctx: Context) -> mtf.Tensor:
    """[vocab, embd]: rows embed tokens on the way in and, unless `no_weight_tie`, score them on the way out."""
    return ctx.variable("wte", [ctx.dims.vocab, ctx.dims.embd], ctx.normal("wte", 0.02))


def _score(ctx: Context, x: mtf.Tensor) -> mtf.Tensor:
    """x: [batch, sequence, embd], normalised, to logits."""
    dims = ctx.dims
    if ctx.model.no_weight_tie:
        name = "linear_out/kernel"
        weight = ctx.variable(name, [dims.embd, dims.vocab], ctx.normal(name, 0.02))
    else:
        weight = token_embedding(ctx)
    return mtf.einsum([x, weight], output_shape=[dims.batch, dims.sequence, dims.vocab])


class Layer:
    """One pre-norm transformer block: a function of the residual stream [batch, sequence, embd].

    Returns the new residual stream, followed by the parts of a `Balance` where the layer is a mixture of experts.
    """

    def __init__(self, ctx: Context, number: int, cache: Cache) -> None:
        self.ctx, self.model, self.cache = ctx, ctx.model, cache
        self.kind = ctx.model.attention_types[number]
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
        if self.kind != "none":
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
