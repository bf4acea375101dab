"""Reward models: a number for each text, higher for the better of two."""

from __future__ import annotations

from typing import ClassVar

from gpt_mesh.meshes.compat import mtf

import tensorflow as tf

from gpt_mesh.models import gpt
from gpt_mesh.models.context import Context
from gpt_mesh.models.kernels import kernel
from gpt_mesh.objectives.objective import Comparison, Tensors
from gpt_mesh.objectives.preference import Judged, Preference, by_pair, by_text, pair_metrics


class Reward(Preference):
    """The model gives each text one number, its reward, read at the text's last token (Ouyang et al., 2022,
    arXiv:2203.02155), in place of logits.

    A preference is as likely as the sigmoid of the difference of the two rewards (Bradley and Terry, 1952).
    """

    name = "reward"
    predicts_next: ClassVar[bool] = False
    setting: ClassVar[str] = "objective = reward"
    task: ClassVar[str] = "reward models give each text a number"

    def pair_features(self, tokens: tf.Tensor) -> dict[str, tf.Tensor]:
        """The first n tokens of each text, and 1 in `last` at the last of them that is learned: [batch, 2, n]."""
        inputs = tokens[..., :-1]
        later = tf.cumsum(tf.cast(inputs >= 0, tf.int32), axis=-1, reverse=True)
        last = tf.logical_and(inputs >= 0, tf.equal(later, 1))
        return {"inputs": tf.maximum(inputs, -1 - inputs), "last": tf.cast(last, tf.float32)}

    def judge(self, ctx: Context, features: Tensors, total: mtf.Tensor) -> Judged:
        wide, texts = by_text(ctx, features)
        out = gpt.forward(wide, texts["inputs"], recompute=self.config.training.recompute_grad)
        by_position = gpt.rewards(wide, out.features)
        last = mtf.cast(texts["last"], by_position.dtype)
        rewards = mtf.reduce_sum(by_position * last, output_shape=[wide.dims.batch])
        centering, rows, dtype = self.config.preferences.reward_centering, [ctx.dims.batch], ctx.statistics_dtype

        def compare(chosen: tf.Tensor, rejected: tf.Tensor) -> tuple[tf.Tensor, ...]:
            nll = -tf.math.log_sigmoid(chosen - rejected)
            loss = nll + centering * tf.square(chosen + rejected)
            return loss, nll, chosen, rejected, tf.cast(chosen > rejected, dtype)

        outputs = [(mtf.Shape(rows), dtype)] * 5
        comparison = Comparison(*kernel(compare, by_pair(ctx, rewards), outputs, rows, "compare"))
        return Judged(comparison, pair_metrics(ctx, comparison), balance=out.balance)


OBJECTIVE = Reward
