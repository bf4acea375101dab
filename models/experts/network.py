"""The experts: dense layers without biases, with an activation between them, and with `moe_glu` a gate."""

from __future__ import annotations

from dataclasses import dataclass

from gpt_mesh.meshes.compat import mtf

from gpt_mesh.models.activations import activate, activate_gated
from gpt_mesh.models.context import Context
from gpt_mesh.models.experts.routing import apart, from_groups


@dataclass(frozen=True)
class Weights:
    """The matrices of all experts, or of one network that all tokens read.

    Attributes:
        up: [experts, embd, hidden]; without experts [embd, hidden].
        gate: of the same shape; None without `moe_glu`.
        down: [experts, hidden, embd]; without experts [hidden, embd].
    """

    up: mtf.Tensor
    gate: mtf.Tensor | None
    down: mtf.Tensor

    @classmethod
    def of(cls, ctx: Context, name: str, outer: list[mtf.Dimension], hidden: mtf.Dimension) -> Weights:
        """The weights `<name>/wi`, `<name>/wg` and `<name>/wo`; `outer`: dimensions before those of a matrix."""
        model, embd = ctx.model, ctx.dims.embd

        def matrix(last: str, old: mtf.Dimension, new: mtf.Dimension, scale: float = 1.0) -> mtf.Tensor:
            stddev = 0.02 * (old.size**-0.5 if model.scale_by_in else 1.0) * scale
            full = f"{name}/{last}"
            return ctx.variable(full, [*outer, old, new], ctx.normal(full, stddev))

        up = matrix("wi", embd, hidden)
        gate = matrix("wg", embd, hidden) if model.moe_params.moe_glu else None
        down = matrix("wo", hidden, embd, model.n_layer**-0.5 if model.scale_by_depth else 1.0)
        return cls(up, gate, down)


def every_expert(ctx: Context, x: mtf.Tensor, weights: mtf.Tensor, name: str, site: str) -> mtf.Tensor:
    """Every expert reads every token, and counts by its weight.

    Args:
        x: [batch, sequence, embd].
        weights: [batch, ...tokens, whole_experts], as in a `Choice`.
    """
    dims = ctx.dims
    rows, positions = (apart(ctx, dim, dims.experts) for dim in (dims.batch, dims.sequence))
    weights = mtf.cast(weights, ctx.dtype)
    weights = from_groups(ctx, weights) if dims.sequence not in weights.shape.dims else weights
    weights = mtf.reshape(weights, mtf.Shape([rows, positions, dims.experts]))
    read = mtf.reshape(x, mtf.Shape([rows, positions, dims.embd]))
    return mtf.reshape(experts(ctx, read, weights.shape, name, site, weights), x.shape)


def experts(
    ctx: Context, x: mtf.Tensor, inside: mtf.Shape, name: str, site: str, weights: mtf.Tensor | None = None
) -> mtf.Tensor:
    """The experts themselves.

    Args:
        x: [..., embd].
        inside: dimensions of the hidden features but the last, experts among them.
        weights: of `inside`, what each hidden feature is multiplied by.

    Returns:
        The shape of x: summed over experts where x does not have them.
    """
    dims = ctx.dims
    matrices = Weights.of(ctx, f"{name}/experts", [dims.experts], dims.expert_hidden)
    hidden = _hidden(ctx, x, mtf.Shape([*inside.dims, dims.expert_hidden]), matrices, name, f"{site}/experts")
    return mtf.einsum([hidden if weights is None else hidden * weights, matrices.down], output_shape=x.shape)


def shared_expert(ctx: Context, x: mtf.Tensor, name: str, site: str) -> mtf.Tensor:
    """An expert of `moe_shared_expert_size` hidden features that reads every token [batch, sequence, embd] (Dai et al.,
    2024, arXiv:2401.06066).
    """
    hidden = ctx.dims.shared_expert_hidden
    matrices = Weights.of(ctx, f"{name}/shared", [], hidden)
    shape = mtf.Shape([*x.shape.dims[:-1], hidden])
    inside = _hidden(ctx, x, shape, matrices, f"{name}/shared", f"{site}/shared")
    return mtf.einsum([inside, matrices.down], output_shape=x.shape)


def _hidden(ctx: Context, x: mtf.Tensor, shape: mtf.Shape, matrices: Weights, name: str, site: str) -> mtf.Tensor:
    """Hidden features of that shape. `name`: prefix of the activation's learned scalars."""
    activation, rate = ctx.model.moe_activation, ctx.model.moe_params.moe_dropout_rate
    up = mtf.einsum([x, matrices.up], output_shape=shape)
    if matrices.gate is None:
        hidden = activate(ctx, up, activation, name)
    else:
        gate = mtf.einsum([x, matrices.gate], output_shape=shape)
        hidden = activate_gated(ctx, up, gate, activation, name)
    return ctx.dropout(hidden, rate, site)
