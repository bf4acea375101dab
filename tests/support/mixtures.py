"""One mixture of experts alone, on any mesh, with its gradients."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from gpt_mesh.meshes.compat import mtf

import numpy as np
import tensorflow as tf

from gpt_mesh import model_fns
from gpt_mesh.config import Config
from gpt_mesh.models.experts.mixture import mixture_of_experts
from tests.support.models import enlarge_weights, make_engine, tiny_config, weights_of

BATCH, LENGTH, EMBD, EXPERTS = 4, 16, 8, 4
SEED = 123


def mixture_config(
    *, mesh_shape: str = "", layout: str = "", keys: Mapping[str, Any] | None = None, **moe_params: Any
) -> Config:
    """Two layers of which the first is a mixture. keys: further keys of the config."""
    return tiny_config(
        n_embd=EMBD,
        n_ctx=LENGTH,
        train_batch_size=BATCH,
        moe_layers=[0],
        mesh_shape=mesh_shape,
        layout=layout,
        moe_params={"moe_num_experts": EXPERTS, "moe_hidden_size": 12, "moe_group_size": 8, **moe_params},
        **(keys or {}),
    )


def inputs(seed: int = 0, shape: tuple[int, ...] = (BATCH, LENGTH, EMBD)) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


class MixtureLayer:
    """One mixture alone, in float64, with weights that make its gates differ."""

    def __init__(self, config: Config, *, train: bool, seed: int = SEED, dtype: tf.DType = tf.float64) -> None:
        self.config, self.train, self.seed, self.dtype = config, train, seed, dtype
        self.engine = make_engine(config, compiled=False)
        self.run = self.engine.function(self._build)
        self.run.traced(tf.TensorSpec((BATCH, LENGTH, EMBD), tf.float64))
        enlarge_weights(self.engine)

    def _build(self, x: tf.Tensor) -> dict[str, Any]:
        ctx = model_fns.make_context(self.config, self.engine.mesh_impl, x.shape[0], x.shape[1], self.dtype)
        if self.train:
            ctx = dataclasses.replace(ctx, seed=mtf.constant(ctx.mesh, self.seed, dtype=tf.int32))
        dims = ctx.dims
        shape = mtf.Shape([dims.batch, dims.sequence, dims.embd])
        whole_x = mtf.import_tf_tensor(ctx.mesh, tf.cast(x, self.dtype), shape)
        y, balance = mixture_of_experts(ctx, whole_x, "h0/moe", "h0/moe")
        pull = mtf.import_tf_tensor(ctx.mesh, tf.cast(inputs(1, tuple(x.shape)), self.dtype), shape)
        objective = mtf.cast(mtf.reduce_sum(y * pull), ctx.statistics_dtype) + balance.loss
        variables = list(ctx.mesh.graph.trainable_variables)
        gradients = mtf.gradients([objective], [whole_x, *[v.value for v in variables]])
        lowering = mtf.Lowering(ctx.mesh.graph, {ctx.mesh: self.engine.mesh_impl}, autostack=False)
        export = lowering.export_to_tf_tensor
        names = ["x", *[v.name.removeprefix("gpt2/h0/moe/") for v in variables]]
        return {
            "y": export(y),
            "loss": export(balance.loss),
            "load": export(balance.load),
            "objective": export(objective),
            **{f"d/{name}": export(gradient) for name, gradient in zip(names, gradients, strict=True)},
        }

    def __call__(self, x: np.ndarray) -> dict[str, np.ndarray]:
        return {name: value.numpy() for name, value in self.run(x).items()}

    def weights(self) -> dict[str, np.ndarray]:
        """By the last part of their names, such as "experts/wi"."""
        return {name.removeprefix("h0/moe/"): value for name, value in weights_of(self.engine).items()}


def assert_close(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray], atol: float = 1e-11) -> None:
    assert found.keys() == wanted.keys()
    for name, array in wanted.items():
        np.testing.assert_allclose(found[name], array, rtol=0, atol=atol, err_msg=name)
