"""How tokens reach experts: groups that compete for experts' capacity, and what a layout asks for."""

from __future__ import annotations

import math
from dataclasses import dataclass

from gpt_mesh.meshes.compat import mtf

from gpt_mesh.models.context import Context
from gpt_mesh.models.dims import token_groups, whole

MIN_CAPACITY = 4  # tokens of a group; in a small group the even split is too small for chance fluctuations


@dataclass(frozen=True)
class Routing:
    """How tokens reach experts in one graph.

    Attributes:
        groups, tokens: a sequence is `groups` times `tokens`.
        capacity: tokens of a group that an expert takes at most.
        policy: when a token goes to its second expert under `top_2`: the value of `moe_second_policy_…`.
        threshold: of the policies `threshold` and `random`.
    """

    groups: mtf.Dimension
    tokens: mtf.Dimension
    capacity: mtf.Dimension
    policy: str
    threshold: float

    @classmethod
    def of(cls, ctx: Context) -> Routing:
        """By the config, for training or not."""
        moe, length = ctx.model.moe_params, ctx.dims.sequence.size
        tokens = max(n for n in range(1, min(length, moe.moe_group_size) + 1) if length % n == 0)
        factor = moe.moe_capacity_factor_train if ctx.train else moe.moe_capacity_factor_eval
        capacity = tokens
        if factor is not None and not moe.moe_dropless:
            counted = moe.moe_top_k if moe.moe_gating == "top_k" else 1  # choices of a token
            capacity = min(tokens, max(MIN_CAPACITY, math.ceil(factor * counted * tokens / moe.moe_num_experts)))
        return cls(
            *token_groups(ctx.dims, tokens, capacity),
            policy=moe.moe_second_policy_train if ctx.train else moe.moe_second_policy_eval,
            threshold=moe.moe_second_threshold_train if ctx.train else moe.moe_second_threshold_eval,
        )

    @property
    def is_limited(self) -> bool:
        """Whether an expert may have no room for a token."""
        return self.capacity.size < self.tokens.size


# A layout may split the sequence. Its slices are not the same slices of each group, but one `mtf.reshape` would take
# them for that. So the whole sequence is put together on the way, in both directions.


def to_groups(ctx: Context, x: mtf.Tensor, routing: Routing) -> mtf.Tensor:
    """x: [batch, sequence, features] as [batch, groups, group_tokens, features]."""
    features = x.shape.dims[-1]
    x = mtf.reshape(x, mtf.Shape([ctx.dims.batch, whole(ctx.dims.sequence), features]))
    return mtf.reshape(x, mtf.Shape([ctx.dims.batch, routing.groups, routing.tokens, features]))


def from_groups(ctx: Context, x: mtf.Tensor) -> mtf.Tensor:
    """x: [batch, groups, group_tokens, features] as [batch, whole_sequence, features]."""
    return mtf.reshape(x, mtf.Shape([ctx.dims.batch, whole(ctx.dims.sequence), x.shape.dims[-1]]))


def apart(ctx: Context, dim: mtf.Dimension, *others: mtf.Dimension) -> mtf.Dimension:
    """`dim` for a tensor that also has other dimensions: whole where the layout splits it along one mesh dimension with
    one of them.
    """
    axis = ctx.axes.get(dim.name)
    return whole(dim) if axis is not None and axis in [ctx.axes.get(other.name) for other in others] else dim
