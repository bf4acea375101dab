"""The weights of a model, from its graph, with nothing allocated."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from gpt_mesh.meshes.compat import mtf

from gpt_mesh.config import ModelConfig
from gpt_mesh.models import gpt
from gpt_mesh.models.context import Context
from gpt_mesh.models.dims import Dims

import tensorflow as tf  # isort: skip


@functools.lru_cache(maxsize=8)
def weight_shapes(model: ModelConfig) -> dict[str, mtf.Shape]:
    """Dimensions of a model's weights by their names, at any size: the mesh graph is built, but not lowered."""
    with unallocated():
        mesh = mtf.Mesh(mtf.Graph(), "mesh")
        dims = Dims.of(model, 1, model.n_ctx)
        ctx = Context(mesh=mesh, dims=dims, model=model, dtype=tf.float32, axes={}, init_seed=0)
        gpt.outputs(ctx, mtf.zeros(mesh, [dims.batch, dims.sequence], tf.int32))
    return {weight.name: weight.shape for weight in mesh.graph.trainable_variables}


def weight_count(model: ModelConfig) -> int:
    """Trained parameters of a model."""
    return sum(shape.size for shape in weight_shapes(model).values())


@contextmanager
def unallocated() -> Iterator[None]:
    """Variables of mesh graphs that are built inside have names and shapes, but no memory."""

    def name_only(getter: Any, name: str, **unused: Any) -> _Named:
        del getter, unused
        return _Named(f"{name}:0")

    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.variable_scope(v1.get_variable_scope(), custom_getter=name_only):
        yield


class _Named:
    """Stands for a variable where only its name is asked for."""

    def __init__(self, name: str) -> None:
        self.name = name
