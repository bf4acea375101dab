"""Learning-rate schedules."""

from __future__ import annotations

import math

import tensorflow as tf

from gpt_mesh.config import OptimizerConfig

FINAL_FRACTION = 0.1


def learning_rate(config: OptimizerConfig, step: tf.Tensor) -> tf.Tensor:
    """The learning rate at a step (a scalar integer tensor): float32 scalar.

    Decays from `lr` to a tenth of it over `lr_decay_end` steps, counted from step 0, along half a cosine (Loshchilov &
    Hutter, 2016, arXiv:1608.03983) or a line. In the first `warmup_steps` it is multiplied by step / warmup_steps, so
    that step 0 has learning rate 0.
    """
    now = tf.cast(step, tf.float32)
    progress = tf.minimum(now / float(config.lr_decay_end), 1.0)
    if config.lr_decay == "cosine":
        remaining = 0.5 * (1.0 + tf.cos(math.pi * progress))
    elif config.lr_decay == "linear":
        remaining = 1.0 - progress
    else:
        remaining = tf.ones_like(progress)
    lr = config.lr * (FINAL_FRACTION + (1.0 - FINAL_FRACTION) * remaining)
    return lr * tf.minimum(now / float(config.warmup_steps), 1.0) if config.warmup_steps else lr
