"""Experts of bounded capacity (GShard; Lepikhin et al., 2020, arXiv:2006.16668): each takes a bounded number of tokens
from each group of tokens, so that all experts do the same work. Tokens beyond it skip that expert, first choices having
precedence over later ones.

Groups are parts of one sequence: neither the layout nor the division into microbatches changes which tokens compete.
"""

from __future__ import annotations

from gpt_mesh.meshes.compat import mtf

import tensorflow as tf

from gpt_mesh.models.context import Context
from gpt_mesh.models.dims import whole
from gpt_mesh.models.experts import network
from gpt_mesh.models.experts.choice import Choice, mean_by_expert
from gpt_mesh.models.experts.routing import Routing, apart, from_groups, to_groups
from gpt_mesh.models.kernels import kernel


def routed(
    ctx: Context, x: mtf.Tensor, choice: Choice, routing: Routing, name: str, site: str
) -> tuple[mtf.Tensor, mtf.Tensor]:
    """Each expert reads the tokens that it has room for: the mixture's output, and the load.

    A layout may split batch and experts along one mesh dimension. Then tokens change devices, all to all, on the way to
    the experts and back.
    """
    dims, groups, tokens, capacity = ctx.dims, routing.groups, routing.tokens, routing.capacity
    rows = apart(ctx, dims.batch, dims.experts)
    experts = dims.experts if rows == dims.batch else whole(dims.experts)
    chosen = [_in_groups(ctx, x, routing) for x in choice.chosen]
    weights = _in_groups(ctx, choice.weights, routing)
    slots = _assign_slots(chosen, capacity)
    load = mean_by_expert(mtf.reduce_sum(slots, reduced_dim=capacity))
    # 0 or 1, and the weights: [batch, groups, group_tokens, experts, expert_capacity].
    combine = slots * weights
    slots, combine = (
        mtf.cast(mtf.reshape(t, mtf.Shape([dims.batch, groups, tokens, experts, capacity])), ctx.dtype)
        for t in (slots, combine)
    )
    x = to_groups(ctx, x, routing)
    read = mtf.einsum([x, slots], output_shape=[dims.batch, groups, experts, capacity, dims.embd])
    read = mtf.reshape(read, mtf.Shape([rows, groups, dims.experts, capacity, dims.embd]))
    written = network.experts(ctx, read, mtf.Shape([rows, groups, dims.experts, capacity]), name, site)
    written = mtf.reshape(written, mtf.Shape([dims.batch, groups, experts, capacity, dims.embd]))
    y = mtf.einsum([written, combine], output_shape=x.shape)
    return mtf.reshape(from_groups(ctx, y), mtf.Shape([dims.batch, dims.sequence, dims.embd])), load


def _in_groups(ctx: Context, x: mtf.Tensor, routing: Routing) -> mtf.Tensor:
    """A tensor of a `Choice` as [batch, groups, group_tokens, whole_experts]."""
    return x if routing.groups in x.shape.dims else to_groups(ctx, x, routing)


def _assign_slots(chosen: list[mtf.Tensor], capacity: mtf.Dimension) -> mtf.Tensor:
    """[batch, groups, group_tokens, whole_experts, expert_capacity]: 1 where a token takes a slot of an expert, else 0.

    Within a group first choices take slots in the tokens' order, then second choices do, and so on.
    """

    def assign(*chosen: tf.Tensor) -> tf.Tensor:
        slots, taken = tf.zeros([], chosen[0].dtype), tf.zeros([], chosen[0].dtype)
        for each in chosen:
            place = tf.cumsum(each, axis=-2, exclusive=True) + taken
            # A place beyond the capacity is no slot: its one-hot vector is zero.
            slots += each[..., None] * tf.one_hot(tf.cast(place, tf.int32), capacity.size, dtype=each.dtype)
            taken += tf.reduce_sum(each, axis=-2, keepdims=True)
        return slots

    dims, dtype = chosen[0].shape.dims, chosen[0].dtype
    return kernel(assign, chosen, [(mtf.Shape([*dims, capacity]), dtype)], dims[:2], "assign_slots")[0]
