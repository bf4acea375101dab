"""The feed-forward half of a block."""

from __future__ import annotations

from meshes.compat import mtf
from models.activations import activate
from models.context import Context, constant


def feed_forward(ctx: Context, x: mtf.Tensor, name: str) -> mtf.Tensor:
    """Two dense layers with an activation between them.

    Args:
        x: [batch, sequence, embd], normalised.
        name: prefix of the weights, such as "h0/mlp".

    Returns:
        [batch, sequence, embd], to be added to the residual stream.
    """
    dims, model = ctx.dims, ctx.model
    h = dense(ctx, x, dims.embd, dims.intermediate_expanded, f"{name}/conv1d_main/c_fc")
    h = activate(ctx, h, model.activation_function, name)
    depth_scale = model.n_layer**-0.5 if model.scale_by_depth else 1.0
    return dense(ctx, h, dims.intermediate_expanded, dims.embd, f"{name}/conv1d_main/c_proj", depth_scale)


def dense(
    ctx: Context, x: mtf.Tensor, old: mtf.Dimension, new: mtf.Dimension, name: str, scale: float = 1.0
) -> mtf.Tensor:
    """x: [..., old] times `<name>/kernel` [old, new] plus `<name>/bias` [new]; `scale` multiplies the initial kernel.
    """
    stddev = 0.02 * scale * (old.size**-0.5 if ctx.model.scale_by_in else 1.0)
    kernel = ctx.variable(f"{name}/kernel", [old, new], ctx.normal(f"{name}/kernel", stddev))
    bias = ctx.variable(f"{name}/bias", [new], constant(0.0))
    shape = mtf.Shape([dim for dim in x.shape.dims if dim != old] + [new])
    return mtf.einsum([x, kernel], output_shape=shape) + bias
