"""A few updates of weights of all ranks by an optimizer, outside of a model."""

from __future__ import annotations

from collections.abc import Mapping

from gpt_mesh.meshes.compat import mtf

import numpy as np
import tensorflow as tf

from gpt_mesh.config import OptimizerConfig
from gpt_mesh.meshes.variables import VariableStore
from gpt_mesh.models.context import constant
from gpt_mesh.optimizers import registry, schedules
from tests.support.models import mesh_of

SIZES = {"rows": 6, "columns": 4, "experts": 2}
SHAPES = {
    "matrix": ("rows", "columns"),
    "vector": ("columns",),
    "scalar": (),
    "experts": ("experts", "rows", "columns"),
}


def initial_weights(size: float = 1.0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {name: size * rng.standard_normal([SIZES[d] for d in dims]) for name, dims in SHAPES.items()}


def gradients(step: int) -> dict[str, np.ndarray]:
    """Gradients whose rows and columns differ in size by orders of magnitude; one row has none until step 3."""
    rng = np.random.default_rng(100 + step)
    found = {}
    for name, dims in SHAPES.items():
        g = rng.standard_normal([SIZES[d] for d in dims]) * 10.0 ** rng.uniform(-3, 1)
        found[name] = g * np.logspace(-2, 1, SIZES["columns"]) if dims else g
    if step < 3:
        found["matrix"][2] = 0
    return found


def run(
    config: OptimizerConfig,
    weights: Mapping[str, np.ndarray],
    steps: int,
    mesh_shape: str = "",
    layout: str = "",
    scale: float = 1.0,
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The weights after updates with `gradients(0)`, `gradients(1)`, …, and the slots, all float64."""
    store = VariableStore("/device:CPU:0")
    implementation = mesh_of(mesh_shape, layout, store)

    def build(step: tf.Tensor, *arrays: tf.Tensor) -> tf.Tensor:
        with store.scope():
            mesh = mtf.Mesh(mtf.Graph(), "mesh")
            shapes = {name: mtf.Shape([mtf.Dimension(d, SIZES[d]) for d in dims]) for name, dims in SHAPES.items()}
            variables = [
                mtf.get_variable(mesh, name, shape, dtype=tf.float64, initializer=constant(0.0)).operation
                for name, shape in shapes.items()
            ]
            g = [mtf.import_tf_tensor(mesh, a, s) for a, s in zip(arrays, shapes.values(), strict=True)]
            lr = mtf.import_tf_tensor(mesh, schedules.learning_rate(config, step))
            factor, step = mtf.constant(mesh, scale, dtype=tf.float32), mtf.import_tf_tensor(mesh, step)
            updates = registry.find(config.opt_name)(config, lr, factor, step).update(variables, g)
            lowering = mtf.Lowering(mesh.graph, {mesh: implementation}, autostack=False)
            with tf.control_dependencies([lowering.lowered_operation(op) for op in updates]):
                return tf.constant(0)

    def arguments(step: int) -> list[tf.Tensor]:
        return [tf.constant(step, tf.int64), *[tf.constant(g) for g in gradients(step).values()]]

    function = tf.function(build, autograph=False).get_concrete_function(*arguments(0))
    for name, weight in weights.items():
        store.masters[name].assign(weight)
    store.scatter()
    for step in range(steps):
        function(*arguments(step))
    store.gather()
    found = {name: variable.numpy() for name, variable in store.masters.items()}
    return {name: found.pop(name) for name in SHAPES}, found
