"""What the modes share that use a trained model."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING, ParamSpec

from gpt_mesh.config import Config

if TYPE_CHECKING:  # TensorFlow takes seconds
    from gpt_mesh import api

P = ParamSpec("P")


def load(config: Config, arguments: argparse.Namespace, *, rewards: bool = False) -> api.Model:
    """The trained model. That it predicts text and has its tokenizer is checked first: building it takes longer.

    Args:
        rewards: whether it may also be a reward model.

    Raises:
        InputError: it cannot be loaded, or does not predict text.
    """
    from gpt_mesh import api
    from gpt_mesh.evaluation.validation import required_encoder
    from gpt_mesh.objectives.registry import check_predicts_next

    if not (rewards and config.model.reward_head):
        check_predicts_next(config)
    required_encoder(config)
    return api.Model(
        config,
        checkpoint=arguments.checkpoint,
        devices=arguments.gpu_ids,
        cluster=arguments.hosts,
        tpu=arguments.tpu,
    )


def keep(write: Callable[P, object], *values: P.args, **named: P.kwargs) -> None:
    """Write a result into the run's directory too. It may belong to somebody else: what fails there is a warning."""
    import tensorflow as tf

    from gpt_mesh.storage.files import reason
    from gpt_mesh.storage.progress import log

    try:
        write(*values, **named)
    except (OSError, tf.errors.OpError) as error:
        where = f"{error.filename}: " if isinstance(error, OSError) and error.filename else ""
        log.warning("not kept in model_path: %s%s", where, reason(error))
