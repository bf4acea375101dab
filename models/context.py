"""What every layer needs to know of the graph that it is built into."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gpt_mesh.meshes.compat import mtf

import tensorflow as tf

from gpt_mesh.config import ModelConfig
from gpt_mesh.models.dims import Dims
from gpt_mesh.models.dropout import dropout

Initializer = Callable[..., tf.Tensor]
REFERENCE = "reference/"  # before the names of the weights of a frozen reference model


def is_reference(variable: str) -> bool:
    """Whether a variable is a weight of the frozen reference model, by its name."""
    return variable.startswith(REFERENCE)


@dataclass(frozen=True)
class Context:
    """The mesh, the dimensions, the number types and the randomness of one graph.

    Attributes:
        mesh: where tensors live.
        dims: every named dimension.
        model: the architecture.
        dtype: type of activations. Weights are stored as float32 (float64 in float64 graphs) and cast to it.
        axes: the dimensions that the layout splits, by name, and the mesh axis along which it splits each.
        init_seed: seeds initial weights, each by its name, so that they do not depend on the order of creation.
        causal: whether a position sees only itself and those before it.
        seed: int32 scalar on the mesh in training graphs, another at each step; None outside training, where nothing
            is random.
        fused: whether operations that have a faster form take it.
        tensor_cores: whether this is compiled for GPUs with tensor cores: products of matrices cost little there beside
            reading and writing memory, and XLA calls kernels of cuDNN.
        cpu_kernels: whether this is compiled for CPUs, and products of a few rows go to `meshes.cpu_matmul`.
        observe: is called with the name of each layer and its output.
        reference: whether weights are those of the reference model, a second set that is not trained.
    """

    mesh: mtf.Mesh
    dims: Dims
    model: ModelConfig
    dtype: tf.DType
    axes: Mapping[str, int]
    init_seed: int
    causal: bool = True
    seed: mtf.Tensor | None = None
    fused: bool = True
    tensor_cores: bool = False
    cpu_kernels: bool = False
    observe: Callable[[str, mtf.Tensor], object] = lambda name, x: None
    reference: bool = False

    @property
    def train(self) -> bool:
        """Whether this is a training graph: dropout and other random choices are on."""
        return self.seed is not None

    @property
    def statistics_dtype(self) -> tf.DType:
        """Type of softmax, normalisation statistics and losses: never narrower than float32."""
        return tf.float32 if self.dtype in (tf.bfloat16, tf.float16) else self.dtype

    def variable(self, name: str, dims: Sequence[mtf.Dimension], initializer: Initializer) -> mtf.Tensor:
        """The weight `gpt2/<name>`, created on first use, as a tensor of the activation type."""
        dtype = mtf.VariableDType(self.statistics_dtype, self.statistics_dtype, self.dtype)
        return self._variable(name, mtf.Shape(list(dims)), dtype, initializer)

    def scalar(self, name: str, value: float) -> mtf.Tensor:
        """The learned scalar `gpt2/<name>`, at first `value`, never narrowed: its rounding would show everywhere."""
        dtype = mtf.VariableDType(self.statistics_dtype, self.statistics_dtype, self.statistics_dtype)
        return self._variable(name, mtf.Shape([]), dtype, constant(value))

    def _variable(self, name: str, shape: mtf.Shape, dtype: mtf.VariableDType, initializer: Initializer) -> mtf.Tensor:
        full = f"{REFERENCE if self.reference else ''}gpt2/{name}"
        trained = not self.reference
        return mtf.get_variable(self.mesh, full, shape, dtype=dtype, initializer=initializer, trainable=trained)

    def normal(self, name: str, stddev: float) -> Initializer:
        """Normally distributed initial values, a function of the seed and the weight's name alone."""

        def initialize(shape: Any, dtype: tf.DType, partition_info: Any = None) -> tf.Tensor:
            del partition_info
            key = (self.init_seed, zlib.crc32(name.encode()))
            return tf.cast(tf.random.stateless_normal(shape, key, stddev=stddev), dtype)

        return initialize

    def is_whole(self, *dims: mtf.Dimension) -> bool:
        """Whether the layout splits none of these dimensions."""
        return not any(dim.name in self.axes for dim in dims)

    def rename_positions(self, x: mtf.Tensor, old: mtf.Dimension, new: mtf.Dimension) -> mtf.Tensor:
        """`x` with `old`, a dimension over the positions of this graph, called `new`.

        Where a layout splits both, by way of a whole one: mesh-tensorflow's reshape from one split to another splits
        each slice once more before it joins them, which leaves positions in another order.
        """
        if not self.is_whole(old) and not self.is_whole(new):
            x, old = mtf.replace_dimensions(x, old, self.dims.whole_sequence), self.dims.whole_sequence
        return mtf.replace_dimensions(x, old, new)

    def dropout(self, x: mtf.Tensor, rate: float, site: str) -> mtf.Tensor:
        """Dropout while training, the identity otherwise. `site` names the place in the model."""
        return x if self.seed is None else dropout(x, rate, self.seed, site)


def constant(value: float) -> Initializer:
    """Initial values that are all `value`."""

    def initialize(shape: Any, dtype: tf.DType, partition_info: Any = None) -> tf.Tensor:
        del partition_info
        return tf.fill(shape, tf.cast(value, dtype))

    return initialize
