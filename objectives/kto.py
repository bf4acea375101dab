"""Kahneman-Tversky optimization: completions that are desirable or not, without a partner to compare them with."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

from gpt_mesh.meshes.compat import mtf

import tensorflow as tf

from gpt_mesh.models.context import Context
from gpt_mesh.models.kernels import kernel
from gpt_mesh.objectives.objective import PARTS, Comparison, Tensors
from gpt_mesh.objectives.preference import (
    Judged,
    Preference,
    log_probabilities,
    reference_log_probabilities,
    text_features,
)
from gpt_mesh.steps import microbatches


class Whole(NamedTuple):
    """Scalars of a whole batch: the number of its examples, and the estimate of the divergence from the reference, in
    nats.
    """

    examples: mtf.Tensor
    divergence: mtf.Tensor


class Kto(Preference):
    """Desirable completions gain value and undesirable ones lose it, against a reference point (Ethayarajh et al.,
    2024, arXiv:2402.01306).

    An example has a completion in one of its two places: as the chosen text it is desirable, as the rejected one it is
    not; the other text has no token that is learned. A completion's reward is `kto_beta` times its log-ratio of the
    model and the reference. The reference point is an estimate of their divergence: the mean log-ratio, at least 0, of
    the completions of the batch after the prompts of their neighbours. It is computed across the whole batch, without
    gradient and dropout, as in trl.
    """

    name = "kto"

    @property
    def needs_reference(self) -> bool:
        return True

    def pair_features(self, tokens: tf.Tensor) -> dict[str, tf.Tensor]:
        """Of each example its completion, whether it is desirable, and (`other_…`) its prompt with the completion of
        the example before: [batch, n] each but for `desirable`, [batch].
        """
        desirable = tf.reduce_any(tokens[:, 0] >= 0, axis=-1)
        own = tf.where(desirable[:, None], tokens[:, 0], tokens[:, 1])
        found = text_features(own)
        found |= {f"other_{name}": x for name, x in text_features(_exchanged(own)).items()}
        return {**found, "desirable": tf.cast(desirable, tf.float32)}

    def total(self, ctx: Context, features: Tensors, count: int = 1) -> Whole:
        names = ["other_inputs", "other_labels", "other_weights"]
        others = {name: features[name] for name in names}

        def divergence(ctx: Context, tensors: dict[str, mtf.Tensor]) -> tuple[dict[str, mtf.Tensor], list[mtf.Tensor]]:
            ctx, given = dataclasses.replace(ctx, seed=None), [tensors[name] for name in names]
            ratios = log_probabilities(ctx, *given).sums - reference_log_probabilities(ctx, *given)
            return {"sum": mtf.reduce_sum(mtf.stop_gradient(ratios))}, []

        outputs, _ = microbatches.accumulate(ctx, others, count, divergence)
        examples = super().total(ctx, features)
        return Whole(examples, mtf.stop_gradient(mtf.maximum(outputs["sum"] / examples, 0.0)))

    def examples(self, total: Whole) -> mtf.Tensor:
        return total.examples

    def judge(self, ctx: Context, features: Tensors, total: Whole) -> Judged:
        given = features["inputs"], features["labels"], features["weights"]
        policy = log_probabilities(ctx, *given, recompute=self.config.training.recompute_grad)
        ratios = policy.sums - reference_log_probabilities(ctx, *given)
        settings, rows, dtype = self.config.preferences, [ctx.dims.batch], ctx.statistics_dtype

        def compare(ratios: tf.Tensor, desirable: tf.Tensor, divergence: tf.Tensor) -> tuple[tf.Tensor, ...]:
            desirable, beta = tf.cast(desirable, dtype), settings.kto_beta
            sign = 2.0 * desirable - 1.0
            value = sign * beta * (ratios - divergence)
            weights = desirable * settings.kto_desirable_weight + (1.0 - desirable) * settings.kto_undesirable_weight
            loss, correct = weights * (1.0 - tf.sigmoid(value)), tf.cast(value > 0, dtype)
            rewards = beta * ratios
            return loss, -tf.math.log_sigmoid(value), rewards * desirable, rewards * (1.0 - desirable), correct

        operands = [ratios, features["desirable"], total.divergence]
        found = Comparison(*kernel(compare, operands, [(mtf.Shape(rows), dtype)] * 5, rows, "compare"))
        return Judged(found, self._metrics(found, features, policy.sums), {"kl": total.divergence}, policy.balance)

    def _metrics(self, found: Comparison, features: Tensors, sums: mtf.Tensor) -> dict[str, mtf.Tensor]:
        """Means over desirable and over undesirable completions, as sums with the numbers of both beside them."""
        desirable = mtf.cast(features["desirable"], sums.dtype)
        others = 1.0 - desirable
        values = {
            "rewards/chosen": (found.chosen, desirable), "rewards/rejected": (found.rejected, others),
            "logps/chosen": (sums * desirable, desirable), "logps/rejected": (sums * others, others),
        }  # fmt: skip
        return {
            part: x
            for name, (value, number) in values.items()
            for part, x in ((name, value), (f"{name}{PARTS}", number))
        }


def _exchanged(tokens: tf.Tensor) -> tf.Tensor:
    """Each prompt with the completion of the row before, the first row's with that of the last: marked ids [batch, n].

    A completion reaches from the first learned token to the last one. What is too long is cut off at the end.
    """
    width, place = tokens.shape[1], tf.range(tokens.shape[1])[None, :]
    learned = tf.cast(tokens >= 0, tf.int32)
    begin = tf.argmax(learned, 1, output_type=tf.int32)[:, None]
    end = width - tf.argmax(tf.reverse(learned, [1]), 1, output_type=tf.int32)[:, None]
    other, first, last = (tf.roll(x, 1, 0) for x in (tokens, begin, end))
    source = first + place - begin
    moved = tf.gather(other, tf.clip_by_value(source, 0, width - 1), batch_dims=1)
    nothing = tf.constant(-1, tokens.dtype)  # id 0, not learned
    return tf.where(place < begin, tokens, tf.where(source < last, moved, nothing))


OBJECTIVE = Kto
