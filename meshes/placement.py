"""mesh-tensorflow's placement mesh (one explicit device per slice), with variables from a `VariableStore`.

mesh-tensorflow adds the copies between masters and slices to the model's graph. A `tf.function` runs every operation
with a side effect, so these copies would run at each step. Here the store makes them, outside the graph.
"""

from __future__ import annotations

from typing import Any

from gpt_mesh.meshes.compat import mtf

import tensorflow as tf
from mesh_tensorflow import placement_mesh_impl

from gpt_mesh.meshes import cpu_matmul
from gpt_mesh.meshes.capabilities import Capabilities
from gpt_mesh.meshes.variables import VariableStore, regions


class PlacementMesh(Capabilities, placement_mesh_impl.PlacementMeshImpl):
    """A mesh over devices of one host or, with full device names, of several."""

    def __init__(self, shape: mtf.Shape, layout: mtf.LayoutRules, devices: list[str], store: VariableStore) -> None:
        super().__init__(shape, layout, devices)
        self.store = store
        self.wants_buckets = self.size > 1

    def einsum(self, equation: str, *slices: tf.Tensor) -> tf.Tensor:
        """`tf.einsum`, or a faster implementation of it."""
        return (cpu_matmul if self.cpu_kernels else tf).einsum(equation, *slices)

    class LaidOutVariable:
        """The slices of one `mtf.Variable` on this mesh."""

        def __init__(self, variable: mtf.Variable, mesh_impl: PlacementMesh) -> None:
            self._variable, self._mesh = variable, mesh_impl
            self.laid_out_tensor = mesh_impl.LaidOutTensor(mesh_impl.slices_of(variable))

        def assign_to_slices(self, assign_fn: Any, values: list[tf.Tensor]) -> tf.Operation:
            """Assign one value to each slice, on the slice's device."""
            slices = self.laid_out_tensor.all_slices
            return tf.group(mtf.parallel(self._mesh.devices, assign_fn, [self._variable] * len(values), slices, values))

    def local(self, name: str) -> tf.Variable:
        """The whole variable `name` of the store, as graphs on this mesh read and assign it."""
        return self.store.masters[name]

    def slices_of(self, variable: mtf.Variable) -> list[tf.Variable]:
        """The TensorFlow variables, one for each device, that hold `variable` on this mesh."""
        master = variable.get_master()
        if self.size == 1 and variable.master_dtype == variable.slice_dtype:
            return [master]
        parts = regions(self, variable.shape)
        return self.store.add_slices(variable.name, parts, variable.slice_dtype, self.devices)
