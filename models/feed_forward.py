"""The feed-forward half of a block."""

from __future__ import annotations

from gpt_mesh.meshes.compat import mtf

from gpt_mesh.models.activations import activate, activate_biased
from gpt_mesh.models.context import Context, constant


def feed_forward(ctx: Context, x: mtf.Tensor, name: str) -> mtf.Tensor:
    """Two dense layers with an activation between them.

    Args:
        x: [batch, sequence, embd], normalised.
        name: prefix of the weights, such as "h0/mlp".

    Returns:
        [batch, sequence, embd], to be added to the residual stream.
    """
    dims, model = ctx.dims, ctx.model
    if model.mlp_glu:
        h = _gated(ctx, x, name)
    else:
        product, bias = _affine(ctx, x, dims.embd, dims.intermediate_expanded, f"{name}/conv1d_main/c_fc")
        h = activate_biased(ctx, product, bias, model.activation_function, name)
    depth_scale = model.n_layer**-0.5 if model.scale_by_depth else 1.0
    return dense(ctx, h, dims.intermediate_expanded, dims.embd, f"{name}/conv1d_main/c_proj", depth_scale)


def _gated(ctx: Context, x: mtf.Tensor, name: str) -> mtf.Tensor:
    """[batch, sequence, intermediate_expanded]: values times activated gates, both linear in x (Shazeer, 2020,
    arXiv:2002.05202). Columns of the one kernel alternate: value 0, gate 0, value 1, gate 1, …
    """
    dims = ctx.dims
    h = dense(ctx, x, dims.embd, dims.gated_expanded, f"{name}/conv1d_main/c_fc")
    pairs = mtf.reshape(h, mtf.Shape([*h.shape.dims[:-1], dims.intermediate_expanded, dims.glu_halves]))
    value, gate = mtf.unstack(pairs, dims.glu_halves)
    return value * activate(ctx, gate, ctx.model.activation_function, name)


def dense(
    ctx: Context, x: mtf.Tensor, old: mtf.Dimension, new: mtf.Dimension, name: str, scale: float = 1.0
) -> mtf.Tensor:
    """x: [..., old] times `<name>/kernel` [old, new] plus `<name>/bias` [new]; `scale` multiplies the initial kernel.
    """
    product, bias = _affine(ctx, x, old, new, name, scale)
    return product + bias


def _affine(
    ctx: Context, x: mtf.Tensor, old: mtf.Dimension, new: mtf.Dimension, name: str, scale: float = 1.0
) -> tuple[mtf.Tensor, mtf.Tensor]:
    """The two terms of `dense`."""
    stddev = 0.02 * scale * (old.size**-0.5 if ctx.model.scale_by_in else 1.0)
    kernel = ctx.variable(f"{name}/kernel", [old, new], ctx.normal(f"{name}/kernel", stddev))
    bias = ctx.variable(f"{name}/bias", [new], constant(0.0))
    shape = mtf.Shape([dim for dim in x.shape.dims if dim != old] + [new])
    return mtf.einsum([x, kernel], output_shape=shape), bias
