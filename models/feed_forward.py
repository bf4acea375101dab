"""The feed-forward half of a block: `FEED_FORWARDS`, by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from gpt_mesh.meshes.compat import mtf

from gpt_mesh.config import ModelConfig
from gpt_mesh.models.activations import activate, activate_biased, activate_gated
from gpt_mesh.models.context import Context, constant
from gpt_mesh.models.experts.mixture import Balance, mixture_of_experts


@dataclass(frozen=True)
class FeedForward:
    """A kind of feed-forward.

    Attributes:
        apply: takes x [batch, sequence, embd], normalised; the prefix of the weights, such as "h0/mlp"; and the site
            for random draws (layers that share weights have different sites). Returns [batch, sequence, embd], to be
            added to the residual stream, and how a mixture uses its experts.
        weights: the last part of the prefix.
    """

    apply: Callable[[Context, mtf.Tensor, str, str], tuple[mtf.Tensor, Balance | None]]
    weights: str = "mlp"


def dense(ctx: Context, x: mtf.Tensor, name: str, site: str) -> tuple[mtf.Tensor, None]:
    """Two dense layers with an activation between them."""
    del site
    product, bias = _affine(ctx, x, ctx.dims.embd, ctx.dims.intermediate_expanded, f"{name}/conv1d_main/c_fc")
    return _contract(ctx, activate_biased(ctx, product, bias, ctx.model.activation_function, name), name), None


def gated(ctx: Context, x: mtf.Tensor, name: str, site: str) -> tuple[mtf.Tensor, None]:
    """Values times activated gates, both linear in x, then a dense layer (Shazeer, 2020, arXiv:2002.05202).

    Values and gates have kernels of their own, `c_fc` and `c_gate`; with `glu_columns` = interleaved they share `c_fc`,
    whose columns alternate: value 0, gate 0, value 1, gate 1, …
    """
    del site
    dims, activation, prefix = ctx.dims, ctx.model.activation_function, f"{name}/conv1d_main"
    if ctx.model.glu_columns == "separate":
        value, gate = (
            _add(*_affine(ctx, x, dims.embd, dims.intermediate_expanded, f"{prefix}/{part}"))
            for part in ("c_fc", "c_gate")
        )
        return _contract(ctx, activate_gated(ctx, value, gate, activation, name), name), None
    h = _add(*_affine(ctx, x, dims.embd, dims.gated_expanded, f"{prefix}/c_fc"))
    pairs = mtf.reshape(h, mtf.Shape([*h.shape.dims[:-1], dims.intermediate_expanded, dims.glu_halves]))
    value, gate = mtf.unstack(pairs, dims.glu_halves)
    return _contract(ctx, value * activate(ctx, gate, activation, name), name), None


FEED_FORWARDS: dict[str, FeedForward] = {
    "dense": FeedForward(dense),
    "gated": FeedForward(gated),
    "mixture": FeedForward(mixture_of_experts, "moe"),
}


def feed_forward_name(model: ModelConfig, layer: int | None = None) -> str:
    """The name in `FEED_FORWARDS` of a layer's second half; without a layer, of those that are no mixtures."""
    if layer in model.moe_layers:
        return "mixture"
    return "gated" if model.mlp_glu else "dense"


def _contract(ctx: Context, h: mtf.Tensor, name: str) -> mtf.Tensor:
    """h: [..., intermediate_expanded] through the last dense layer: [..., embd]."""
    scale = ctx.model.n_layer**-0.5 if ctx.model.scale_by_depth else 1.0
    dims = ctx.dims
    return _add(*_affine(ctx, h, dims.intermediate_expanded, dims.embd, f"{name}/conv1d_main/c_proj", scale))


def _affine(
    ctx: Context, x: mtf.Tensor, old: mtf.Dimension, new: mtf.Dimension, name: str, scale: float = 1.0
) -> tuple[mtf.Tensor, mtf.Tensor | None]:
    """x [..., old] times `<name>/kernel` [old, new], and `<name>/bias` [new] (None without `use_bias_in_mlp`); `scale`
    is that of the initial kernel.
    """
    stddev = 0.02 * scale * (old.size**-0.5 if ctx.model.scale_by_in else 1.0)
    kernel = ctx.variable(f"{name}/kernel", [old, new], ctx.normal(f"{name}/kernel", stddev))
    bias = ctx.variable(f"{name}/bias", [new], constant(0.0)) if ctx.model.use_bias_in_mlp else None
    shape = mtf.Shape([dim for dim in x.shape.dims if dim != old] + [new])
    return mtf.einsum([x, kernel], output_shape=shape), bias


def _add(x: mtf.Tensor, bias: mtf.Tensor | None) -> mtf.Tensor:
    return x if bias is None else x + bias
