"""The model function that TPUEstimator calls: the graph builders, in a graph that a session runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import gpt_mesh.meshes.compat  # noqa: F401  (before TensorFlow, which it keeps quiet)

import tensorflow as tf

from gpt_mesh.config import Config
from gpt_mesh.model_fns import build_eval, build_train
from gpt_mesh.models.dropout import step_seed
from gpt_mesh.objectives.registry import objective_of


class Host(Protocol):
    """What surrounds a model function: where it runs, and what becomes of what it builds."""

    config: Config

    def mesh(self, params: Mapping[str, Any], batch: int, positions: int | None) -> Any:
        """The mesh for batches of that size; `params`: TPUEstimator's; `positions`: None when decoding."""

    def spec(self, out: Any, mesh_impl: Any) -> Any:
        """The `TPUEstimatorSpec` of what was built; of the features themselves, when decoding."""


def model_fn(features: Mapping[str, tf.Tensor], mode: str, params: Mapping[str, Any], host: Host) -> Any:
    """TPUEstimator's model function.

    Args:
        features: `tokens`, int32 [batch, n_ctx + 1]; in evaluation `weights` too, float32 [batch, n_ctx]; when
            decoding, the arrays of `sample.Batch`.
        mode: "train", "eval" or "infer".
        params: in which TPUEstimator says where the TPU's cores are.
    """
    config = host.config
    if mode == "infer":  # `Host.spec` builds decoding
        return host.spec(features, host.mesh(params, features["prompts"].shape[0], None))
    mesh_impl = host.mesh(params, features["tokens"].shape[0], config.model.n_ctx)
    objective = objective_of(config)
    if mode == "eval":
        given = objective.features(features["tokens"], weights=features["weights"])
        return host.spec(build_eval(given, config, mesh_impl), mesh_impl)
    step = tf.cast(tf.compat.v1.train.get_global_step().read_value(), tf.int32)
    given = objective.features(features["tokens"], step_seed(config.training.seed, step))
    return host.spec(build_train(given, config, mesh_impl, step), mesh_impl)
