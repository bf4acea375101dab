"""What objectives share that learn from preferences: pairs of texts, of which one is better."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from gpt_mesh.meshes.compat import mtf

import tensorflow as tf

from gpt_mesh.models import gpt, losses
from gpt_mesh.models.context import Context
from gpt_mesh.models.experts.mixture import Balance
from gpt_mesh.models.kernels import kernel
from gpt_mesh.objectives.objective import Comparison, Loss, Objective, Tensors
from gpt_mesh.objectives.reference import reference_context


@dataclass(frozen=True)
class Judged:
    """What an objective makes of a batch.

    Attributes:
        comparison: by example.
        metrics: more numbers to log the means of, [batch] each.
        scalars: numbers to log, of the whole batch each.
        balance: of each mixture of experts, by its layer.
    """

    comparison: Comparison
    metrics: Mapping[str, mtf.Tensor] = field(default_factory=dict)
    scalars: Mapping[str, mtf.Tensor] = field(default_factory=dict)
    balance: Mapping[str, Balance] = field(default_factory=dict)


@dataclass(frozen=True)
class LogProbabilities:
    """Of the learned tokens of each text: their sum in nats, and their number, [batch] each."""

    sums: mtf.Tensor
    counts: mtf.Tensor
    balance: Mapping[str, Balance]


class Preference(Objective):
    """An objective of examples of two texts, int32 [2, n + 1]: the chosen one and the rejected one.

    What both have in common, the prompt, and what follows them, is marked as not learned (`data.marks`). A window,
    [n + 1], is text whose learned tokens are predicted: such a model still generates and scores text.
    """

    pairs: ClassVar[bool] = True

    def features(
        self, tokens: tf.Tensor, seed: tf.Tensor | int | None = None, weights: tf.Tensor | None = None
    ) -> dict[str, tf.Tensor]:
        if tokens.shape.rank == 3:
            return self.pair_features(tokens)
        found = text_features(tokens)
        return found if weights is None else {**found, "weights": found["weights"] * weights}

    def pair_features(self, tokens: tf.Tensor) -> dict[str, tf.Tensor]:
        """The features of int32 [batch, 2, n + 1]: [batch, 2, n] each."""
        return text_features(tokens)

    def total(self, ctx: Context, features: Tensors, count: int = 1) -> mtf.Tensor:
        """The number of examples, a scalar."""
        return mtf.constant(ctx.mesh, float(ctx.dims.batch.size), dtype=ctx.statistics_dtype)

    def examples(self, total: mtf.Tensor) -> mtf.Tensor:
        """The number of examples in the whole batch, from what `total` returned."""
        return total

    def loss(self, ctx: Context, features: Tensors, total: mtf.Tensor) -> Loss:
        judged = self.judge(ctx, features, total)
        examples, found = self.examples(total), judged.comparison

        def share(x: mtf.Tensor) -> mtf.Tensor:
            return mtf.reduce_sum(x) / examples

        of_batch = mtf.constant(ctx.mesh, float(ctx.dims.batch.size), dtype=ctx.statistics_dtype) / examples
        metrics = {name: share(x) for name, x in judged.metrics.items()}
        metrics |= {name: x * of_batch for name, x in judged.scalars.items()}
        metrics["rewards/accuracy"] = share(found.correct)
        return Loss(share(found.loss), share(found.nll), judged.balance, metrics)

    def compare(self, ctx: Context, features: Tensors) -> Comparison:
        return self.judge(ctx, features, self.total(ctx, features)).comparison

    @abc.abstractmethod
    def judge(self, ctx: Context, features: Tensors, total: mtf.Tensor) -> Judged:
        """The losses, rewards and metrics of a batch or a microbatch. `total`: of the whole batch."""


def text_features(tokens: tf.Tensor) -> dict[str, tf.Tensor]:
    """Inputs, labels, and 1.0 for labels that are learned, [..., n] each, of marked ids [..., n + 1]."""
    ids = tf.maximum(tokens, -1 - tokens)
    learned = tf.cast(tokens[..., 1:] >= 0, tf.float32)
    return {"inputs": ids[..., :-1], "labels": ids[..., 1:], "weights": learned}


def log_probabilities(
    ctx: Context, inputs: mtf.Tensor, labels: mtf.Tensor, weights: mtf.Tensor, *, recompute: bool = False
) -> LogProbabilities:
    """Of the texts in a batch.

    Args:
        inputs, labels: int32 [batch, sequence].
        weights: [batch, sequence], 1 for labels that are learned.
        recompute: see `gpt.forward`.
    """
    out = gpt.forward(ctx, inputs, recompute=recompute)
    nll, _ = losses.cross_entropy(ctx, gpt.score(ctx, out.features), labels)
    weights = mtf.cast(weights, nll.dtype)
    rows = [ctx.dims.batch]
    sums = mtf.reduce_sum(mtf.negative(nll * weights), output_shape=rows)
    return LogProbabilities(sums, mtf.reduce_sum(weights, output_shape=rows), out.balance)


def reference_log_probabilities(
    ctx: Context, inputs: mtf.Tensor, labels: mtf.Tensor, weights: mtf.Tensor
) -> mtf.Tensor:
    """The sums of `log_probabilities` by the reference model: [batch]."""
    return log_probabilities(reference_context(ctx), inputs, labels, weights).sums


def by_text(ctx: Context, features: Tensors) -> tuple[Context, dict[str, mtf.Tensor]]:
    """Pairs as a batch of twice as many texts: its context, and its features [batch, sequence] from those that are
    [batch, 2, sequence]. A device keeps its own texts.
    """
    dims = ctx.dims
    batch = mtf.Dimension(dims.batch.name, 2 * dims.batch.size)
    rows = [batch, dims.sequence]

    def flat(x: tf.Tensor) -> tf.Tensor:
        return tf.reshape(x, [-1, x.shape[-1]])

    found = {
        name: kernel(flat, [x], [(mtf.Shape(rows), x.dtype)], rows, "by_text")[0]
        for name, x in features.items()
        if dims.pair in x.shape.dims
    }
    return dataclasses.replace(ctx, dims=dataclasses.replace(dims, batch=batch)), found


def by_pair(ctx: Context, x: mtf.Tensor) -> tuple[mtf.Tensor, mtf.Tensor]:
    """What belongs to the chosen texts and what to the rejected ones, [batch] each, of the texts in `by_text`."""
    rows = [ctx.dims.batch]

    def halves(x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return x[0::2], x[1::2]

    chosen, rejected = kernel(halves, [x], [(mtf.Shape(rows), x.dtype)] * 2, rows, "by_pair")
    return chosen, rejected


def pair_metrics(ctx: Context, found: Comparison, sums: mtf.Tensor | None = None) -> dict[str, mtf.Tensor]:
    """What is logged of pairs: rewards, margins and, of `sums` of log-probabilities by text, those of both texts."""
    metrics = {
        "rewards/chosen": found.chosen, "rewards/rejected": found.rejected,
        "rewards/margin": found.chosen - found.rejected,
    }  # fmt: skip
    if sums is not None:
        metrics["logps/chosen"], metrics["logps/rejected"] = by_pair(ctx, sums)
    return metrics
