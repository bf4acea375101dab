"""Splits optimizer state over the devices that split the batch, instead of replicating it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gpt_mesh.meshes.compat import mtf

from gpt_mesh.meshes.devices import OPTIMIZER_PART


@dataclass(frozen=True)
class StateSplit:
    """The part of a weight's optimizer state that each replica keeps and updates (ZeRO, stage 1: Rajbhandari et al.,
    2019, arXiv:1910.02054).

    One dimension of a matrix's state is renamed to `optimizer_part`, which the mesh splits like the batch. Each device
    updates its part of the weight, and the parts are gathered. The results equal those of an unsplit update.

    Attributes:
        parts: number of parts; with 1, state is not split.
        axis: mesh axis of the batch.
        axes: mesh axis of each dimension that the layout splits, by name.
    """

    parts: int = 1
    axis: int | None = None
    axes: Mapping[str, int] = field(default_factory=dict)

    @staticmethod
    def by_batch(axes: Mapping[str, int], mesh_impl: Any) -> StateSplit:
        """Optimizer state split like the batch; `axes`: as above."""
        axis = axes.get("batch")
        return StateSplit() if axis is None else StateSplit(mesh_impl.shape.dims[axis].size, axis, axes)

    def shape(self, shape: mtf.Shape) -> mtf.Shape:
        """The shape of the optimizer state of a weight.

        Vectors, and weights that are already split along the batch's mesh axis, are not split.
        """
        if self.parts == 1 or len(shape) < 2 or self.axis in {self.axes.get(dim.name) for dim in shape.dims}:
            return shape
        for i, dim in enumerate(shape.dims):
            if dim.name not in self.axes and dim.size % self.parts == 0:
                part = mtf.Dimension(OPTIMIZER_PART, dim.size)
                return mtf.Shape([*shape.dims[:i], part, *shape.dims[i + 1 :]])
        return shape

    def part(self, x: mtf.Tensor) -> mtf.Tensor:
        """A weight, or its gradient, split like its state."""
        shape = self.shape(x.shape)
        # No reshape if nothing is split: mesh-tensorflow reshapes a sum before it is reduced, so the gradient would be
        # reduced twice, here and for its norm.
        return x if shape == x.shape else mtf.reshape(x, shape)
