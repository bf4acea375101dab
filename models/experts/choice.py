"""Which experts a token goes to: its gate's two favourites, as in algorithm 1 of GShard (Lepikhin et al., 2020,
arXiv:2006.16668), or its k favourites, as in Mixtral (Jiang et al., 2024, arXiv:2401.04088) and OLMoE (Muennighoff et
al., 2024, arXiv:2409.02060).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from gpt_mesh.meshes.compat import mtf

import tensorflow as tf

from gpt_mesh.models.context import Context
from gpt_mesh.models.dims import whole
from gpt_mesh.models.dropout import Draw
from gpt_mesh.models.experts.routing import Routing, to_groups
from gpt_mesh.models.kernels import kernel


@dataclass(frozen=True)
class Choice:
    """The experts that tokens choose, in float32 at least.

    Attributes:
        chosen: 1 at the expert of each choice, else 0, first choices first: [batch, ...tokens, whole_experts] each,
            where tokens are [sequence] or [groups, group_tokens]. A token without that choice has zeros.
        weights: of the same shape, the factor of each expert's output.
        loss: scalar, smaller the more evenly experts are used.
        ids, factors: [batch, sequence, expert_choices], int32 and float: the experts of a token and the factors of
            their outputs; None for `top_2`.
    """

    chosen: list[mtf.Tensor]
    weights: mtf.Tensor
    loss: mtf.Tensor
    ids: mtf.Tensor | None = None
    factors: mtf.Tensor | None = None

    @property
    def load(self) -> mtf.Tensor:
        """[whole_experts], the share of tokens that choose each expert."""
        return mean_by_expert(mtf.add_n(self.chosen))


def choose(ctx: Context, x: mtf.Tensor, routing: Routing, name: str, site: str) -> Choice:
    """Choose experts for x [batch, sequence, embd]."""
    logits = _gate_logits(ctx, x, name)
    return _top_2(ctx, logits, routing, site) if ctx.model.moe_params.moe_gating == "top_2" else _top_k(ctx, logits)


def mean_by_expert(sent: mtf.Tensor) -> mtf.Tensor:
    """[whole_experts], the mean of [..., whole_experts] over tokens."""
    return mtf.stop_gradient(mtf.reduce_mean(sent, output_shape=sent.shape.dims[-1:]))


def _gate_logits(ctx: Context, x: mtf.Tensor, name: str) -> mtf.Tensor:
    """[batch, sequence, whole_experts], computed in float32 at least: rounding would change which expert is chosen."""
    dims = ctx.dims
    experts = whole(dims.experts)
    stddev = 0.02 * (dims.embd.size**-0.5 if ctx.model.scale_by_in else 1.0)
    weight = ctx.variable(f"{name}/gating/kernel", [dims.embd, experts], ctx.normal(f"{name}/gating/kernel", stddev))
    wide = [mtf.cast(t, ctx.statistics_dtype) for t in (x, weight)]
    return mtf.einsum(wide, output_shape=[dims.batch, dims.sequence, experts])


def _unevenness(gates: mtf.Tensor, chosen: mtf.Tensor, tokens: mtf.Dimension) -> mtf.Tensor:
    """experts * sum over experts of mean gate * share of the tokens that chose it; means over `tokens`, then the mean
    over the other dimensions: 1 for each choice of a token at an even spread.
    """
    by_expert = mtf.Shape([dim for dim in gates.shape.dims if dim != tokens])
    gate, share = (mtf.reduce_mean(t, output_shape=by_expert) for t in (gates, chosen))
    return mtf.reduce_mean(gate * share) * float(gates.shape.dims[-1].size ** 2)


# ---------------------------------------------------------------------------------------------------------------------
# The k favourites
# ---------------------------------------------------------------------------------------------------------------------


def _top_k(ctx: Context, logits: mtf.Tensor) -> Choice:
    """The `moe_top_k` experts with the largest logits [batch, sequence, whole_experts].

    The loss is that of Switch Transformers (Fedus et al., 2021, arXiv:2101.03961, equation 4) over each sequence, with
    all choices of a token counted. For a single sequence and a single layer it is `load_balancing_loss_func` of Hugging
    Face's Mixtral, which takes means over the tokens of the whole batch and of all layers together.
    """
    dims, moe = ctx.dims, ctx.model.moe_params
    experts, choices = logits.shape.dims[-1], dims.expert_choices
    tokens = logits.shape.dims[:-1]
    shapes = [(logits.shape, logits.dtype)]
    shapes += [(mtf.Shape([*tokens, choices]), dtype) for dtype in (tf.int32, logits.dtype)]
    rank = _ranker(moe.moe_top_k, normalised=moe.moe_norm_topk_prob)
    gates, ids, weights = kernel(rank, [logits], shapes, tokens, "choose_experts")
    places = mtf.one_hot(ids, experts, dtype=logits.dtype)
    chosen = mtf.unstack(places, choices)
    loss = _unevenness(gates, mtf.add_n(chosen), dims.sequence)
    return Choice(chosen, mtf.einsum([places, weights], output_shape=logits.shape), loss, ids, weights)


def _ranker(count: int, *, normalised: bool) -> Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor, tf.Tensor]]:
    """A function of slices of logits [..., experts] that returns their softmax, and the experts with the `count`
    largest logits [..., count] in descending order with their weights: their part of that softmax, or `normalised` to a
    sum of 1.
    """

    def rank(logits: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        gates, ids = tf.nn.softmax(logits), tf.math.top_k(tf.stop_gradient(logits), count).indices
        places = tf.one_hot(ids, logits.shape[-1], dtype=logits.dtype)
        if normalised:  # the softmax of their logits alone, which cannot underflow
            return gates, ids, tf.nn.softmax(tf.reduce_sum(places * logits[..., None, :], -1))
        return gates, ids, tf.reduce_sum(places * gates[..., None, :], -1)

    return rank


# ---------------------------------------------------------------------------------------------------------------------
# The two favourites, of which the second is used under conditions
# ---------------------------------------------------------------------------------------------------------------------


def _top_2(ctx: Context, logits: mtf.Tensor, routing: Routing, site: str) -> Choice:
    """By gate logits [batch, sequence, whole_experts]. A token goes to the second expert as the policy says. Weights
    are the two gates, divided by their sum whether or not both are used.

    The loss counts first choices, within groups; with `moe_use_second_place_loss` half the same of second choices is
    added.
    """
    operands = [to_groups(ctx, logits, routing)]
    shape = operands[0].shape
    tokens = mtf.Shape(shape.dims[:-1])
    if routing.policy == "random":
        assert ctx.seed is not None, "nothing is random outside training"
        operands += Draw(tokens, ctx.seed, f"{site}/second_expert").outputs
    rank = _pair_ranker(routing.policy, routing.threshold)
    outputs = kernel(rank, operands, [(shape, logits.dtype)] * 5, tokens.dims, "choose_experts")
    gates, first, runner_up, second, weights = outputs
    loss = _unevenness(gates, first, routing.tokens)
    if ctx.model.moe_params.moe_use_second_place_loss:
        loss += 0.5 * _unevenness(gates * (1.0 - first), runner_up, routing.tokens)
    return Choice([first, second], weights, loss)


def _pair_ranker(policy: str, threshold: float) -> Callable[..., tuple[tf.Tensor, ...]]:
    """A function of slices of gate logits [..., experts], and under `random` of draws [...] in [0, 1).

    It returns [..., experts]: the gates; 1 at the largest gate, else 0; the same of the second largest; the latter
    where the policy sends the token there, else zeros; and the weights.
    """

    def rank(logits: tf.Tensor, *draws: tf.Tensor) -> tuple[tf.Tensor, ...]:
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

    return rank
