"""Direct preference optimization, and its relatives."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from gpt_mesh.meshes.compat import mtf

import tensorflow as tf

from gpt_mesh.config import PreferenceConfig
from gpt_mesh.models.context import Context
from gpt_mesh.models.kernels import kernel
from gpt_mesh.objectives.objective import Comparison, Tensors
from gpt_mesh.objectives.preference import (
    Judged,
    Preference,
    by_pair,
    by_text,
    log_probabilities,
    pair_metrics,
    reference_log_probabilities,
)

# From the log-ratios of chosen and rejected texts, as sums and as means over tokens, to losses: [batch] each.
PairLoss: TypeAlias = Callable[[PreferenceConfig, tf.Tensor, tf.Tensor], tf.Tensor]


def _sigmoid(config: PreferenceConfig, margin: tf.Tensor, mean_margin: tf.Tensor) -> tf.Tensor:
    """The negative log-likelihood of the preference (Bradley-Terry), some of them the wrong way round (Mitchell, 2023,
    ericmitchell.ai/cdpo.pdf).
    """
    logits, flipped = config.dpo_beta * margin, config.dpo_label_smoothing
    return -(1.0 - flipped) * tf.math.log_sigmoid(logits) - flipped * tf.math.log_sigmoid(-logits)


def _ipo(config: PreferenceConfig, margin: tf.Tensor, mean_margin: tf.Tensor) -> tf.Tensor:
    """The squared distance from a margin of 1 / (2 beta) (Azar et al., 2023, arXiv:2310.12036, equation 17)."""
    return tf.square(mean_margin - 1.0 / (2.0 * config.dpo_beta))


def _hinge(config: PreferenceConfig, margin: tf.Tensor, mean_margin: tf.Tensor) -> tf.Tensor:
    """What a margin lacks (SLiC: Zhao et al., 2023, arXiv:2305.10425; on log-ratios: Liu et al., 2023,
    arXiv:2309.06657).
    """
    return tf.nn.relu(1.0 - config.dpo_beta * margin)


LOSSES: dict[str, PairLoss] = {"sigmoid": _sigmoid, "ipo": _ipo, "hinge": _hinge}
"""By `dpo_loss`."""


class Dpo(Preference):
    """The chosen text becomes likelier than the rejected one, compared with a frozen reference model (Rafailov et al.,
    2023, arXiv:2305.18290).

    A text's reward is `dpo_beta` times the log-ratio of its likelihoods by the model and by the reference.
    """

    name = "dpo"

    @property
    def needs_reference(self) -> bool:
        return not self.config.preferences.dpo_reference_free

    def judge(self, ctx: Context, features: Tensors, total: mtf.Tensor) -> Judged:
        wide, texts = by_text(ctx, features)
        given = texts["inputs"], texts["labels"], texts["weights"]
        policy = log_probabilities(wide, *given, recompute=self.config.training.recompute_grad)
        ratios = policy.sums
        if self.needs_reference:
            ratios -= reference_log_probabilities(wide, *given)
        settings, rows, dtype = self.config.preferences, [ctx.dims.batch], ctx.statistics_dtype

        def compare(*given: tf.Tensor) -> tuple[tf.Tensor, ...]:
            chosen, rejected, chosen_tokens, rejected_tokens = given
            margin = chosen - rejected
            means = chosen / tf.maximum(chosen_tokens, 1.0) - rejected / tf.maximum(rejected_tokens, 1.0)
            loss = LOSSES[settings.dpo_loss](settings, margin, means)
            beta = settings.dpo_beta
            nll, correct = -tf.math.log_sigmoid(beta * margin), tf.cast(margin > 0, dtype)
            return loss, nll, beta * chosen, beta * rejected, correct

        operands = [*by_pair(ctx, ratios), *by_pair(ctx, policy.counts)]
        comparison = Comparison(*kernel(compare, operands, [(mtf.Shape(rows), dtype)] * 5, rows, "compare"))
        return Judged(comparison, pair_metrics(ctx, comparison, policy.sums), balance=policy.balance)


OBJECTIVE = Dpo
