"""The interface of optimizers, and what they share: slots, weight decay, elementwise updates."""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from typing import ClassVar

from gpt_mesh.meshes.compat import mtf

import tensorflow as tf

from gpt_mesh.config import OptimizerConfig
from gpt_mesh.meshes import native
from gpt_mesh.models.context import constant
from gpt_mesh.models.kernels import kernel
from gpt_mesh.steps.state_split import StateSplit

WHOLE = StateSplit()
MIN_NATIVE = 2**12  # elements of a tensor from which calling C pays off


def is_matrix(weight: mtf.Variable) -> bool:
    """Whether a weight has two dimensions or more: gains and biases do not decay."""
    return len(weight.shape) > 1


def is_no_norm_or_bias(weight: mtf.Variable) -> bool:
    """The original GPT-Neo's rule, by name: the gain and bias of the last norm, `ln_f`, decay too."""
    return "norm" not in weight.name and "bias" not in weight.name


class Optimizer(abc.ABC):
    """One update of the weights, as mesh operations.

    A subclass is the only one in its file in this folder, which has its name and ends with `OPTIMIZER = <the class>`
    (`registry.find`). It defines the slots of a weight and how one weight is updated.

    Attributes:
        name: what `opt_name` says in a config. Slots are variables `<weight>/<name>_<slot>`.
        config: constants of the update.
        lr, scale: float scalars on the mesh; gradients are multiplied by `scale` first.
        step: integer scalar on the mesh: the number of earlier steps.
        split: how slots are split over the replicas.
        cpu_kernels: see `Context`.
        decays: whether weight decay applies to a weight.
        proceed: boolean scalar on the mesh: whether to update at all; None: always.
    """

    name: ClassVar[str]

    def __init__(
        self,
        config: OptimizerConfig,
        lr: mtf.Tensor,
        scale: mtf.Tensor,
        step: mtf.Tensor,
        split: StateSplit = WHOLE,
        *,
        cpu_kernels: bool = False,
        decays: Callable[[mtf.Variable], bool] = is_matrix,
        proceed: mtf.Tensor | None = None,
    ) -> None:
        self.decays = decays
        self.config, self.lr, self.scale, self.step = config, lr, scale, step
        self.split, self.cpu_kernels, self.proceed = split, cpu_kernels, proceed

    @staticmethod
    @abc.abstractmethod
    def slot_shapes(config: OptimizerConfig, shape: mtf.Shape) -> dict[str, mtf.Shape]:
        """The slots of a weight of this shape, each with its own shape."""

    @abc.abstractmethod
    def update_one(self, weight: mtf.Variable, gradient: mtf.Tensor) -> list[mtf.Operation]:
        """Operations that update a weight and its slots. `gradient`: of the weight's shape, not yet scaled."""

    def update(self, weights: Sequence[mtf.Variable], gradients: Sequence[mtf.Tensor]) -> list[mtf.Operation]:
        """Operations that update all weights, given with their gradients in the same order."""
        pairs = zip(weights, gradients, strict=True)
        return [operation for weight, gradient in pairs for operation in self.update_one(weight, gradient)]

    def slots(self, weight: mtf.Variable) -> list[mtf.Variable]:
        """The weight's slots, in the order of `slot_shapes`: of its stored type, initially zero.

        A slot with the shape of its weight is split over the replicas; others are small and not split.
        """
        shapes = self.slot_shapes(self.config, weight.shape)
        return [
            mtf.get_variable(
                weight.mesh,
                f"{weight.name}/{self.name}_{slot}",
                self.split.shape(shape) if shape == weight.shape else shape,
                dtype=weight.master_dtype,
                initializer=constant(0.0),
                trainable=False,
            ).operation
            for slot, shape in shapes.items()
        ]

    def assign(self, variable: mtf.Variable, value: mtf.Tensor) -> mtf.Operation:
        """Give a weight or a slot a new value of its shape, unless this step is skipped."""
        if self.proceed is not None:
            shape = variable.shape
            inputs, outputs = [self.proceed, value, master_value(variable)], [(shape, variable.slice_dtype)]
            (value,) = kernel(tf.where, inputs, outputs, shape.dims, "unless_skipped")
        return mtf.assign(variable, value)

    def weight_decay(self, weight: mtf.Variable) -> float:
        """Decoupled weight decay of a weight (Loshchilov & Hutter, 2017, arXiv:1711.05101)."""
        return self.config.weight_decay if self.decays(weight) else 0.0

    def elementwise(
        self,
        weight: mtf.Variable,
        gradient: mtf.Tensor,
        new_values: Callable[..., tuple[tf.Tensor, ...]],
        native_values: Callable[..., tuple[tf.Tensor, ...]] | None = None,
    ) -> list[mtf.Operation]:
        """Update a weight whose slots all have its shape, element by element.

        Args:
            new_values: from plain tensors (weight, scaled gradient, learning rate, *slots), all of the weight's stored
                type, to (new weight, *new slots). Each device calls it for its part.
            native_values: the same in C, from (weight, gradient, *slots, learning rate, scale) as they are; called
                instead for large float32 tensors on CPUs.
        """
        dtype, slots = weight.master_dtype, self.slots(weight)

        def plain(w: tf.Tensor, g: tf.Tensor, *others: tf.Tensor) -> tuple[tf.Tensor, ...]:
            *values, lr, scale = others
            lr = tf.cast(lr, dtype)
            return new_values(w, tf.cast(g, dtype) * tf.cast(scale, dtype), lr, *values)

        values = [self.split.part(master_value(weight)), self.split.part(gradient), *[slot.value for slot in slots]]
        scalars = [self.lr, self.scale]
        use_native = self.cpu_kernels and all(map(fits_native, values)) and all(x.dtype == tf.float32 for x in scalars)
        function = native_values if native_values is not None and use_native else plain
        shape = values[0].shape
        outputs = [(shape, dtype)] * (1 + len(slots))
        new_weight, *new_slots = kernel(function, values + scalars, outputs, shape.dims, self.name)
        assigned = [self.assign(slot, value) for slot, value in zip(slots, new_slots, strict=True)]
        return [self.assign(weight, mtf.reshape(new_weight, weight.shape)), *assigned]


def fits_native(x: mtf.Tensor) -> bool:
    """Whether native/optimizer.c takes this tensor, and is faster."""
    return x.dtype == tf.float32 and x.shape.size >= MIN_NATIVE and native.known()


def master_value(weight: mtf.Variable) -> mtf.Tensor:
    """The weight as stored, not narrowed to the activation type."""
    return weight.value if weight.activation_dtype == weight.slice_dtype else _ReadStored(weight).outputs[0]


class _ReadStored(mtf.Operation):
    def __init__(self, weight: mtf.Variable) -> None:
        super().__init__([], mesh=weight.mesh, name="read_stored")
        self.weight = weight
        self._outputs = [mtf.Tensor(self, weight.shape, weight.slice_dtype)]
        self._splittable_dims, self._unsplittable_dims = self._initialize_all_dimensions_as_splittable()

    def lower(self, lowering: mtf.Lowering) -> None:
        stored = lowering.variables[self.weight].laid_out_tensor
        lowering.set_tensor_lowering(self.outputs[0], lowering.mesh_impl(self).slicewise(tf.identity, stored))
