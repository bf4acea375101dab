"""mesh-tensorflow's placement mesh (one explicit device per slice), with variables from a `VariableStore`.

mesh-tensorflow creates the copies between masters and slices as graph operations beside the model. A `tf.function` runs
every operation with a side effect, so those copies would run at each step; here the store makes them, outside the
graph.
"""

from __future__ import annotations

from typing import Any

from gpt_mesh.meshes.compat import mtf

import tensorflow as tf
from mesh_tensorflow import placement_mesh_impl

from gpt_mesh.meshes import products
from gpt_mesh.meshes.capabilities import Capabilities
from gpt_mesh.meshes.variables import VariableStore, regions


class PlacementMesh(Capabilities, placement_mesh_impl.PlacementMeshImpl):
    """A mesh over the devices of one host (or of several, by their full device names)."""

    def __init__(self, shape: mtf.Shape, layout: mtf.LayoutRules, devices: list[str], store: VariableStore) -> None:
        super().__init__(shape, layout, devices)
        self.store = store
        self.wants_buckets = self.size > 1

    def einsum(self, equation: str, *slices: tf.Tensor) -> tf.Tensor:
        """`tf.einsum`, or what is faster: mesh-tensorflow lets a mesh choose its own matmul."""
        return (products if self.cpu_products else tf).einsum(equation, *slices)

    class LaidOutVariable:
        """The slices of one `mtf.Variable` on this mesh."""

        def __init__(self, variable: mtf.Variable, mesh_impl: PlacementMesh) -> None:
            self._variable, self._mesh = variable, mesh_impl
            self.laid_out_tensor = mesh_impl.LaidOutTensor(mesh_impl.slices_of(variable))

        def assign_to_slices(self, assign_fn: Any, values: list[tf.Tensor]) -> tf.Operation:
            """Assign one value a slice, on the slice's device."""
            slices = self.laid_out_tensor.all_slices
            return tf.group(mtf.parallel(self._mesh.devices, assign_fn, [self._variable] * len(values), slices, values))

    def local(self, name: str) -> tf.Variable:
        """The whole variable `name` of the store, where graphs on this mesh read and assign it."""
        return self.store.masters[name]

    def slices_of(self, variable: mtf.Variable) -> list[tf.Variable]:
        """The TensorFlow variables, one a device, that hold `variable` on this mesh."""
        master = variable.get_master()
        if self.size == 1 and variable.master_dtype == variable.slice_dtype:
            return [master]
        parts = regions(self, variable.shape)
        return self.store.add_slices(variable.name, parts, variable.slice_dtype, self.devices)
