"""Learning-rate schedules."""

from __future__ import annotations

import math
from collections.abc import Callable

import tensorflow as tf

from gpt_mesh.config import OptimizerConfig

FINAL_FRACTION = 0.1


def cosine(progress: tf.Tensor) -> tf.Tensor:
    """Half a cosine (Loshchilov & Hutter, 2016, arXiv:1608.03983)."""
    return 0.5 * (1.0 + tf.cos(math.pi * progress))


def linear(progress: tf.Tensor) -> tf.Tensor:
    """A straight line."""
    return 1.0 - progress


def none(progress: tf.Tensor) -> tf.Tensor:
    """No decay."""
    return tf.ones_like(progress)


# By their names in a config (`lr_decay`): from the share of the decay that is over, a float32 scalar in [0, 1], to the
# share of the learning rate that is left to decay, 1 to 0.
SCHEDULES: dict[str, Callable[[tf.Tensor], tf.Tensor]] = {"cosine": cosine, "linear": linear, "none": none}


def learning_rate(config: OptimizerConfig, step: tf.Tensor) -> tf.Tensor:
    """The learning rate at a step (a scalar integer tensor): float32 scalar.

    It decays from `lr` to a tenth of it over `lr_decay_end` steps, counted from step 0. During the warm-up, the first
    `warmup_steps`, it is multiplied by step / warmup_steps, so that step 0 has learning rate 0.
    """
    now = tf.cast(step, tf.float32)
    progress = tf.minimum(now / float(config.lr_decay_end), 1.0)
    lr = config.lr * (FINAL_FRACTION + (1.0 - FINAL_FRACTION) * SCHEDULES[config.lr_decay](progress))
    return lr * tf.minimum(now / float(config.warmup_steps), 1.0) if config.warmup_steps else lr
