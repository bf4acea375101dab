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
from gpt_mesh.models.attention.kind import Kind
from gpt_mesh.models.attention.kinds import KINDS
from gpt_mesh.models.attention.layer import attention
from gpt_mesh.models.context import Context, constant
from gpt_mesh.models.experts.mixture import Balance
from gpt_mesh.models.feed_forward import FEED_FORWARDS, feed_forward_name
from gpt_mesh.models.norms import NORMS, after, before, gained, norm_of
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


def outputs(ctx: Context, tokens: mtf.Tensor) -> mtf.Tensor:
    """What the model computes for each position: logits or, with `reward_head`, rewards."""
    return (rewards if ctx.model.reward_head else score)(ctx, forward(ctx, tokens).features)


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
    features = _last_norm(ctx, x)
    ctx.observe("ln_f", features)
    return Forward(features, balance)


def _last_norm(ctx: Context, x: mtf.Tensor) -> mtf.Tensor:
    if not ctx.model.gpt_neo_original:
        return norm_of(ctx.model).apply(ctx, x, "ln_f")
    return x if ctx.model.no_weight_tie else NORMS["layernorm"].apply(ctx, x, "ln_f")


def embed(ctx: Context, tokens: mtf.Tensor, cache: Cache) -> mtf.Tensor:
    """[batch, sequence, embd]: token embeddings, scaled and normalised if the config says so, plus position embeddings,
    with dropout.
    """
    x = kernels.embedding_lookup(token_embedding(ctx), tokens, ctx.dims.vocab)
    if ctx.model.embedding_scale is not None:
        x *= ctx.model.embedding_scale
    if ctx.model.embed_norm:
        x = norm_of(ctx.model).apply(ctx, x, "embed_norm")
    positions, rate = position_embedding(ctx.model).embed(ctx, cache.positions(ctx)), ctx.model.embed_dropout
    if positions is None or not ctx.model.gpt_neo_original:
        return ctx.dropout(x if positions is None else x + positions, rate, "embed")
    return ctx.dropout(x, rate, "embed") + ctx.dropout(positions, rate, "embed_positions")


class Block:
    """One transformer block: a function of the residual stream [batch, sequence, embd].

    Returns the new residual stream, followed by the parts of a `Balance` if the layer is a mixture of experts.
    """

    def __init__(self, ctx: Context, number: int, cache: Cache) -> None:
        model = ctx.model
        self.ctx, self.model, self.cache = ctx, model, cache
        self.kind = KINDS[model.attention_types[number]]
        self.feed_forward = FEED_FORWARDS[feed_forward_name(model, number)]
        self.site = f"h{number}"
        shared = "" if model.gpt_neo_original else "h0"
        self.name = shared if model.share_parameters else self.site
        self.share = 0.5 if model.macaron else 1.0  # of each feed-forward

    def __call__(self, x: mtf.Tensor) -> mtf.Tensor | tuple[mtf.Tensor, ...]:
        if self.model.macaron:  # half a feed-forward on either side of attention (Lu et al., 2019, arXiv:1906.02762)
            x += self._first_half(x)
        x, balance = self._parallel(x) if self.model.gpt_j_residual else self._sequential(x)
        return x if balance is None else (x, balance.loss, balance.load)

    def _first_half(self, x: mtf.Tensor) -> mtf.Tensor:
        """What the feed-forward before attention adds."""
        apply = FEED_FORWARDS[feed_forward_name(self.model)].apply
        if self.model.gpt_neo_original:  # without norm and gain
            y, _ = apply(self.ctx, x, f"{self.name}/mlp_macaron", f"{self.site}/mlp_mac")
            return self.ctx.dropout(y, self.model.res_dropout, f"{self.site}/residual_mac") * self.share
        y, _ = apply(self.ctx, self._before(x, "mac"), f"{self.name}/mlp_mac", f"{self.site}/mlp_mac")
        return self._after(y, "mac", self.share)

    def _sequential(self, x: mtf.Tensor) -> tuple[mtf.Tensor, Balance | None]:
        if self.kind is not None:
            x += self._attention(self._before(x, "1"), self.kind)
        elif self.model.gpt_neo_original:  # the layer takes its input for attention's output
            x += gained(self.ctx, x, f"{self.name}/norm_1")
        y, balance = self._feed_forward(self._before(x, "2"))
        return x + y, balance

    def _parallel(self, x: mtf.Tensor) -> tuple[mtf.Tensor, Balance | None]:
        """Both halves read x (Wang & Komatsuzaki, 2021, github.com/kingoflolz/mesh-transformer-jax): through one norm
        with `gpt_j_tied`. Their outputs are added first, so that a layout which splits both inside needs one sum over
        devices where nothing comes between (no bias, no dropout).
        """
        tied = self._before(x, "1") if self.model.gpt_j_tied else None
        attended = None
        if self.kind is not None:
            attended = self._attention(self._before(x, "1") if tied is None else tied, self.kind)
        y, balance = self._feed_forward(self._before(x, "2") if tied is None else tied)
        return x + (y if attended is None else attended + y), balance

    def _attention(self, h: mtf.Tensor, kind: Kind) -> mtf.Tensor:
        y = attention(self.ctx, h, f"{self.name}/attn", kind, self.cache, f"{self.site}/attn")
        return self._after(y, "1")

    def _feed_forward(self, h: mtf.Tensor) -> tuple[mtf.Tensor, Balance | None]:
        weights = self.feed_forward.weights
        y, balance = self.feed_forward.apply(self.ctx, h, f"{self.name}/{weights}", f"{self.site}/{weights}")
        return self._after(y, "2", self.share), balance

    def _before(self, x: mtf.Tensor, branch: str) -> mtf.Tensor:
        """The input of a branch, from the residual stream."""
        return before(self.ctx, x, f"{self.name}/norm_{branch}")

    def _after(self, y: mtf.Tensor, branch: str, share: float = 1.0) -> mtf.Tensor:
        """What is added to the residual stream, from the output of a branch."""
        y = after(self.ctx, y, f"{self.name}/norm_{branch}", f"{self.site}/residual_{branch}")
        return y if share == 1.0 else y * share


def token_embedding(ctx: Context) -> mtf.Tensor:
    """[vocab, embd]: embeds tokens, and unless `no_weight_tie` is set it also maps features to logits."""
    return ctx.variable("wte", [ctx.dims.vocab, ctx.dims.embd], ctx.normal("wte", 0.02))


def score(ctx: Context, x: mtf.Tensor) -> mtf.Tensor:
    """Features [..., embd] to logits [..., vocab], in the activation type."""
    logits = mtf.einsum([x, output_weight(ctx)], output_shape=[*x.shape.dims[:-1], ctx.dims.vocab])
    bias, cap = output_bias(ctx), ctx.model.final_logit_softcapping
    logits = logits if bias is None else logits + bias
    return logits if cap is None else _capped(ctx, logits, cap)


def rewards(ctx: Context, x: mtf.Tensor) -> mtf.Tensor:
    """The reward of the text up to each position, [batch, sequence] in float32, from features [batch, sequence, embd].

    With `reward_head`, in place of `score`.
    """
    weight = ctx.variable("reward", [ctx.dims.rewards, ctx.dims.embd], ctx.normal("reward", 0.02))
    found = mtf.einsum([x, weight], output_shape=[*x.shape.dims[:-1], ctx.dims.rewards])
    return mtf.cast(mtf.reshape(found, mtf.Shape(x.shape.dims[:-1])), ctx.statistics_dtype)


def _capped(ctx: Context, logits: mtf.Tensor, cap: float) -> mtf.Tensor:
    """cap · tanh(logits / cap), in the same shape and type (Gemma 2: Gemma Team, 2024, arXiv:2408.00118)."""

    def bounded(logits: tf.Tensor) -> tf.Tensor:
        return tf.cast(cap * tf.tanh(tf.cast(logits, ctx.statistics_dtype) / cap), logits.dtype)

    return kernels.kernel(bounded, [logits], [(logits.shape, logits.dtype)], logits.shape.dims, "softcap")[0]


def output_weight(ctx: Context) -> mtf.Tensor:
    """The matrix from features to logits: the token embedding [vocab, embd]; with `no_weight_tie` [embd, vocab]."""
    if not ctx.model.no_weight_tie:
        return token_embedding(ctx)
    name = f"{_head(ctx)}/kernel"
    scaled = ctx.model.gpt_neo_original and ctx.model.scale_by_in
    stddev = 0.02 * (ctx.dims.embd.size**-0.5 if scaled else 1.0)
    return ctx.variable(name, [ctx.dims.embd, ctx.dims.vocab], ctx.normal(name, stddev))


def output_bias(ctx: Context) -> mtf.Tensor | None:
    """[vocab], added to logits; None without `lm_head_bias`."""
    model = ctx.model
    if not model.lm_head_bias and not (model.gpt_neo_original and model.no_weight_tie):
        return None
    return ctx.variable(f"{_head(ctx)}/bias", [ctx.dims.vocab], constant(0.0))


def _head(ctx: Context) -> str:
    return "wte_final_linear/conv1d_main/linear_out" if ctx.model.gpt_neo_original else "linear_out"


def _pick(ctx: Context, x: mtf.Tensor, places: mtf.Tensor) -> mtf.Tensor:
    """x: [batch, sequence, embd] at one position of each row: [batch, embd]."""

    def pick(x: tf.Tensor, places: tf.Tensor) -> tf.Tensor:
        return tf.gather(x, places, batch_dims=1)

    shape = mtf.Shape([ctx.dims.batch, ctx.dims.embd])
    return kernels.kernel(pick, [x, places], [(shape, x.dtype)], shape.dims, "pick")[0]
