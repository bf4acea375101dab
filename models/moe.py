"""Feed-forward layers that are mixtures of experts: each token goes to the two experts that its gates favour (Shazeer
et al., 2017, arXiv:1701.06538), as in algorithm 1 of GShard (Lepikhin et al., 2020, arXiv:2006.16668).

In training an expert takes a bounded number of tokens from each group of tokens, so that all experts do the same work;
tokens beyond it skip that expert, first choices having precedence over second ones. Groups are parts of one sequence:
neither the layout nor the division into microbatches changes who competes with whom.

Where there is room for every token (always outside training, unless the config says otherwise), every expert reads
every token and the gates of those not chosen are zero. A token's output is then a function of that token alone, the
same whether a sequence is read in one pass or token by token. That costs as many feed-forward layers as there are
experts, where routing costs about `moe_capacity_factor_train` of them, but needs no tensor of groups and capacities.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from gpt_mesh.meshes.compat import mtf

import tensorflow as tf

from gpt_mesh.models.activations import activate
from gpt_mesh.models.context import Context
from gpt_mesh.models.dims import token_groups, whole
from gpt_mesh.models.dropout import Draw
from gpt_mesh.models.kernels import kernel

MIN_CAPACITY = 4  # tokens of a group; in a small group the even split is too small for chance fluctuations


@dataclass(frozen=True)
class Balance:
    """How evenly a mixture uses its experts.

    Attributes:
        loss: scalar, to be added to the loss as it is: `moe_loss_coef` times experts * sum over experts of mean gate *
            share of first choices, averaged over groups (1 at an even spread). With `moe_use_second_place_loss` plus
            half the same of the second choices.
        load: [whole_experts], the tokens that each expert took, as a share of all tokens. A token that two experts took
            counts for both: the sum lies between 0 and 2.
    """

    loss: mtf.Tensor
    load: mtf.Tensor


def mixture_of_experts(ctx: Context, x: mtf.Tensor, name: str, site: str) -> tuple[mtf.Tensor, Balance]:
    """A mixture of experts in place of a feed-forward layer.

    Args:
        x: [batch, sequence, embd], normalised.
        name: prefix of the weights, such as "h0/moe".
        site: name of this layer for random draws; layers that share weights have each their own.

    Returns:
        [batch, sequence, embd], to be added to the residual stream: zeros for a token that no expert took.

    Raises:
        ValueError: x has other dimensions.
    """
    dims = ctx.dims
    if x.shape.dims != [dims.batch, dims.sequence, dims.embd]:
        raise ValueError(f"{name}: needs [batch, sequence, embd], not {x.shape}")
    routing = Routing.of(ctx)
    choice = _choose(ctx, _gate_logits(ctx, x, name), routing, site)
    if routing.capacity.size < routing.tokens.size:
        y, load = _routed(ctx, x, choice, routing, name, site)
    else:
        y, load = _every_expert(ctx, x, choice, name, site), _mean_by_expert(choice.first + choice.second)
    return y, Balance(_balance_loss(ctx, choice), load)


@dataclass(frozen=True)
class Routing:
    """How tokens reach experts in one graph.

    Attributes:
        groups, tokens: a sequence is `groups` times `tokens`.
        capacity: tokens of a group that an expert takes at most.
        policy: when a token goes to its second expert, one of `config.SECOND_EXPERT_POLICIES`.
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
        if factor is not None:
            capacity = min(tokens, max(MIN_CAPACITY, math.ceil(factor * tokens / moe.moe_num_experts)))
        return cls(
            *token_groups(ctx.dims, tokens, capacity),
            policy=moe.moe_second_policy_train if ctx.train else moe.moe_second_policy_eval,
            threshold=moe.moe_second_threshold_train if ctx.train else moe.moe_second_threshold_eval,
        )


@dataclass(frozen=True)
class Choice:
    """The experts that tokens choose: all [batch, groups, group_tokens, whole_experts], float32 at least.

    Attributes:
        gates: softmax over experts.
        first, runner_up: 1 at the largest gate, and at the second largest, else 0.
        second: `runner_up` where the policy sends the token there too, else zeros.
        weights: what each expert's output counts: the two gates, divided by their sum whether or not both are used.
    """

    gates: mtf.Tensor
    first: mtf.Tensor
    runner_up: mtf.Tensor
    second: mtf.Tensor
    weights: mtf.Tensor


def _gate_logits(ctx: Context, x: mtf.Tensor, name: str) -> mtf.Tensor:
    """[batch, sequence, whole_experts], computed in float32 at least: rounding would change which expert is chosen."""
    dims = ctx.dims
    experts = whole(dims.experts)
    stddev = 0.02 * (dims.embd.size**-0.5 if ctx.model.scale_by_in else 1.0)
    weight = ctx.variable(f"{name}/gating/kernel", [dims.embd, experts], ctx.normal(f"{name}/gating/kernel", stddev))
    wide = [mtf.cast(t, ctx.statistics_dtype) for t in (x, weight)]
    return mtf.einsum(wide, output_shape=[dims.batch, dims.sequence, experts])


def _choose(ctx: Context, logits: mtf.Tensor, routing: Routing, site: str) -> Choice:
    """Choose experts by gate logits [batch, sequence, whole_experts]."""
    operands = [_to_groups(ctx, logits, routing)]
    shape = operands[0].shape
    tokens = mtf.Shape(shape.dims[:-1])
    if routing.policy == "random":
        assert ctx.seed is not None, "nothing is random outside training"
        operands += Draw(tokens, ctx.seed, f"{site}/second_expert").outputs
    choose = _chooser(routing.policy, routing.threshold)
    return Choice(*kernel(choose, operands, [(shape, logits.dtype)] * 5, tokens.dims, "choose_experts"))


def _chooser(policy: str, threshold: float) -> Callable[..., tuple[tf.Tensor, ...]]:
    """A function of slices of gate logits [..., experts], and under `random` of draws [...] in [0, 1), that returns the
    parts of a `Choice`.
    """

    def choose(logits: tf.Tensor, *draws: tf.Tensor) -> tuple[tf.Tensor, ...]:
        gates, count = tf.nn.softmax(logits), logits.shape[-1]
        first = tf.one_hot(tf.argmax(gates, -1), count, dtype=gates.dtype)
        # Not gates * (1 - first): where the other gates underflow to 0 that could name the first expert again.
        runner_up = tf.one_hot(tf.argmax(gates - 2.0 * first, -1), count, dtype=gates.dtype)
        top, next_to_top = (tf.reduce_sum(gates * mask, -1, keepdims=True) for mask in (first, runner_up))
        share = next_to_top / (top + next_to_top)
        if policy in ("threshold", "random"):
            bound = tf.cast(draws[0][..., None], gates.dtype) * threshold if draws else threshold
            second = runner_up * tf.cast(share > bound, gates.dtype)
        else:
            second = runner_up if policy == "all" else tf.zeros_like(runner_up)
        return gates, first, runner_up, second, first * (1.0 - share) + second * share

    return choose


def _balance_loss(ctx: Context, choice: Choice) -> mtf.Tensor:
    """`Balance.loss`."""
    moe, tokens = ctx.model.moe_params, choice.gates.shape.dims[2]

    def uneven(gates: mtf.Tensor, chosen: mtf.Tensor) -> mtf.Tensor:
        by_expert = mtf.Shape([dim for dim in gates.shape.dims if dim != tokens])
        gate, routed = (mtf.reduce_mean(t, output_shape=by_expert) for t in (gates, chosen))
        return mtf.reduce_mean(gate * routed) * float(moe.moe_num_experts**2)

    loss = uneven(choice.gates, choice.first)
    if moe.moe_use_second_place_loss:
        loss += 0.5 * uneven(choice.gates * (1.0 - choice.first), choice.runner_up)
    return loss * moe.moe_loss_coef


def _mean_by_expert(sent: mtf.Tensor) -> mtf.Tensor:
    """[whole_experts], the mean of [batch, groups, group_tokens, whole_experts] over tokens."""
    return mtf.stop_gradient(mtf.reduce_mean(sent, output_shape=sent.shape.dims[-1:]))


def _routed(
    ctx: Context, x: mtf.Tensor, choice: Choice, routing: Routing, name: str, site: str
) -> tuple[mtf.Tensor, mtf.Tensor]:
    """Each expert reads the tokens that it has room for: the mixture's output, and the load.

    A layout may split batch and experts along one mesh dimension. Then tokens change devices, all to all, on the way to
    the experts and back.
    """
    dims, groups, tokens, capacity = ctx.dims, routing.groups, routing.tokens, routing.capacity
    rows = _beside_experts(ctx, dims.batch)
    experts = dims.experts if rows == dims.batch else whole(dims.experts)
    slots = _assign_slots(ctx, choice, capacity)
    load = _mean_by_expert(mtf.reduce_sum(slots, reduced_dim=capacity))
    # 0 or 1, and the weights: [batch, groups, group_tokens, experts, expert_capacity].
    combine = slots * choice.weights
    slots, combine = (
        mtf.cast(mtf.reshape(t, mtf.Shape([dims.batch, groups, tokens, experts, capacity])), ctx.dtype)
        for t in (slots, combine)
    )
    x = _to_groups(ctx, x, routing)
    read = mtf.einsum([x, slots], output_shape=[dims.batch, groups, experts, capacity, dims.embd])
    read = mtf.reshape(read, mtf.Shape([rows, groups, dims.experts, capacity, dims.embd]))
    written = _experts(ctx, read, mtf.Shape([rows, groups, dims.experts, capacity]), name, site)
    written = mtf.reshape(written, mtf.Shape([dims.batch, groups, experts, capacity, dims.embd]))
    y = mtf.einsum([written, combine], output_shape=x.shape)
    return mtf.reshape(_from_groups(ctx, y), mtf.Shape([dims.batch, dims.sequence, dims.embd])), load


def _assign_slots(ctx: Context, choice: Choice, capacity: mtf.Dimension) -> mtf.Tensor:
    """[batch, groups, group_tokens, whole_experts, expert_capacity]: 1 where a token takes a slot of an expert, else 0.

    Within a group first choices take slots in the tokens' order, then second choices do.
    """

    def assign(first: tf.Tensor, second: tf.Tensor) -> tf.Tensor:
        taken = tf.reduce_sum(first, axis=-2, keepdims=True)
        slots = tf.zeros([], first.dtype)
        for chosen, before in ((first, 0.0), (second, taken)):
            place = tf.cumsum(chosen, axis=-2, exclusive=True) + before
            # A place beyond the capacity is no slot: its one-hot vector is zero.
            slots += chosen[..., None] * tf.one_hot(tf.cast(place, tf.int32), capacity.size, dtype=chosen.dtype)
        return slots

    first, second = choice.first, choice.second
    outputs = [(mtf.Shape([*first.shape.dims, capacity]), first.dtype)]
    return kernel(assign, [first, second], outputs, first.shape.dims[:2], "assign_slots")[0]


def _every_expert(ctx: Context, x: mtf.Tensor, choice: Choice, name: str, site: str) -> mtf.Tensor:
    """Every expert reads every token; those not chosen count nothing."""
    dims = ctx.dims
    rows, positions = (_beside_experts(ctx, dim) for dim in (dims.batch, dims.sequence))
    weights = _from_groups(ctx, mtf.cast(choice.weights, ctx.dtype))
    weights = mtf.reshape(weights, mtf.Shape([rows, positions, dims.experts]))
    read = mtf.reshape(x, mtf.Shape([rows, positions, dims.embd]))
    return mtf.reshape(_experts(ctx, read, weights.shape, name, site, weights), x.shape)


# A layout may split the sequence. Its slices are not the same slices of each group, but one `mtf.reshape` would take
# them for that. So the whole sequence is put together on the way, in both directions.


def _to_groups(ctx: Context, x: mtf.Tensor, routing: Routing) -> mtf.Tensor:
    """x: [batch, sequence, features] as [batch, groups, group_tokens, features]."""
    features = x.shape.dims[-1]
    x = mtf.reshape(x, mtf.Shape([ctx.dims.batch, whole(ctx.dims.sequence), features]))
    return mtf.reshape(x, mtf.Shape([ctx.dims.batch, routing.groups, routing.tokens, features]))


def _from_groups(ctx: Context, x: mtf.Tensor) -> mtf.Tensor:
    """x: [batch, groups, group_tokens, features] as [batch, whole_sequence, features]."""
    return mtf.reshape(x, mtf.Shape([ctx.dims.batch, whole(ctx.dims.sequence), x.shape.dims[-1]]))


def _beside_experts(ctx: Context, dim: mtf.Dimension) -> mtf.Dimension:
    """`dim` for a tensor that also has the dimension of experts: whole where the layout splits both along one mesh
    dimension.
    """
    axis = ctx.axes.get(dim.name)
    return whole(dim) if axis is not None and axis == ctx.axes.get(ctx.dims.experts.name) else dim


def _experts(
    ctx: Context, x: mtf.Tensor, inside: mtf.Shape, name: str, site: str, weights: mtf.Tensor | None = None
) -> mtf.Tensor:
    """The experts themselves: two dense layers without biases, with an activation between them.

    Args:
        x: [..., embd].
        inside: dimensions of the hidden features but the last, experts among them.
        weights: of `inside`, what each hidden feature is multiplied by.

    Returns:
        The shape of x: summed over experts where x does not have them.
    """
    dims, model = ctx.dims, ctx.model
    wi, wo = f"{name}/experts/wi", f"{name}/experts/wo"
    in_stddev, out_stddev = (
        0.02 * (width.size**-0.5 if model.scale_by_in else 1.0) for width in (dims.embd, dims.expert_hidden)
    )
    out_stddev *= model.n_layer**-0.5 if model.scale_by_depth else 1.0
    kernel_in = ctx.variable(wi, [dims.experts, dims.embd, dims.expert_hidden], ctx.normal(wi, in_stddev))
    kernel_out = ctx.variable(wo, [dims.experts, dims.expert_hidden, dims.embd], ctx.normal(wo, out_stddev))
    hidden = mtf.einsum([x, kernel_in], output_shape=mtf.Shape([*inside.dims, dims.expert_hidden]))
    hidden = activate(ctx, hidden, model.moe_activation, name)
    hidden = ctx.dropout(hidden, model.moe_params.moe_dropout_rate, f"{site}/experts")
    return mtf.einsum([hidden if weights is None else hidden * weights, kernel_out], output_shape=x.shape)
