"""Meshes for a graph that a session runs, as TPUEstimator does: `SimdMesh` on TPU cores, `CpuMesh` to rehearse it.

Both are mesh-tensorflow's own, with whole ("master") variables under their names in checkpoints, slices on the devices,
and operations that copy between the two.
"""

from __future__ import annotations

from typing import Any

from gpt_mesh.meshes.compat import mtf

import tensorflow as tf
from mesh_tensorflow import placement_mesh_impl, simd_mesh_impl

from gpt_mesh.meshes.capabilities import Capabilities

_UPPER_HALF = -(2**16)  # as a mask of int32 bits: sign, exponent and the first 7 bits of a float32's fraction


class _RemembersVariables(Capabilities):
    """A mesh that knows what was laid out on it. Like a `mtf.Lowering` it copies for mesh-tensorflow's hooks."""

    laid_out: list[Any]

    def copy_masters_to_slices(self) -> tf.Operation:
        """After initialising or restoring."""
        return tf.group([variable.copy_master_to_slices for variable in self.laid_out])

    def copy_slices_to_masters(self) -> tf.Operation:
        """Before saving."""
        return tf.group([variable.copy_slices_to_master for variable in self.laid_out])


class CpuMesh(_RemembersVariables, placement_mesh_impl.PlacementMeshImpl):
    """A mesh over virtual CPU devices."""

    def __init__(self, shape: mtf.Shape, layout: mtf.LayoutRules) -> None:
        self.laid_out = []
        size = shape.size
        # One device needs no name: then masters are the slices.
        super().__init__(shape, layout, [""] if size == 1 else [f"/device:CPU:{i}" for i in range(size)])

    class LaidOutVariable(placement_mesh_impl.PlacementMeshImpl.LaidOutVariable):
        """Masters and slices of one variable."""

        def __init__(self, variable: mtf.Variable, mesh_impl: CpuMesh) -> None:
            super().__init__(variable, mesh_impl)
            mesh_impl.laid_out.append(self)


class SimdMesh(_RemembersVariables, simd_mesh_impl.SimdMeshImpl):
    """A mesh over TPU cores. The graph is that of one core, which finds its place in the mesh when it runs."""

    def __init__(self, shape: mtf.Shape, layout: mtf.LayoutRules, device_assignment: Any, hosts: list[str]) -> None:
        """
        Args:
            device_assignment: which core is which replica, as TPUEstimator gives it to a model function.
            hosts: devices that whole variables are spread over, by size.
        """
        self.laid_out = []
        self.variable_placer = mtf.utils.BalancedVariablePlacer(hosts)
        super().__init__(
            shape,
            layout,
            device_assignment=device_assignment,
            logical_to_physical=logical_to_physical(shape, device_assignment),
        )

    class LaidOutVariable(simd_mesh_impl.SimdMeshImpl.LaidOutVariable):
        """Masters and slices of one variable."""

        def __init__(self, variable: mtf.Variable, mesh_impl: SimdMesh) -> None:
            super().__init__(variable, mesh_impl)
            mesh_impl.laid_out.append(self)

    def alltoall(self, x: Any, mesh_axis: int, split_axis: int, concat_axis: int) -> Any:
        """As mesh-tensorflow's, which narrows float32 to bfloat16 on the way because of a defect in TPUs' float32
        all-to-all. Here three bfloat16 numbers carry the 24 bits of each fraction, so that none is lost.
        """
        value = x.to_laid_out_tensor().one_slice
        if value.dtype != tf.float32:
            return super().alltoall(x, mesh_axis, split_axis, concat_axis)
        parts = self.LaidOutTensor([tf.stack(bfloat16_parts(value))])
        parts = super().alltoall(parts, mesh_axis, split_axis + 1, concat_axis + 1)
        high, middle, low = (tf.cast(part, tf.float32) for part in tf.unstack(parts.one_slice))
        return self.LaidOutTensor([high + (middle + low)])

    def export_to_tf_tensor(self, x: mtf.Tensor, laid_out_x: Any) -> tf.Tensor:
        """The whole tensor, on every core; mesh-tensorflow's exports only what is not split."""
        for tensor_axis, mesh_axis in enumerate(self.tensor_layout(x).tensor_axis_to_mesh_axis):
            if mesh_axis is not None:
                laid_out_x = self.allconcat(laid_out_x, mesh_axis, tensor_axis)
        return laid_out_x.one_slice


def bfloat16_parts(x: tf.Tensor) -> list[tf.Tensor]:
    """Three bfloat16 tensors whose sum, smallest first, is the float32 x exactly.

    By bit masks, not by casts: a compiler may take a cast there and back for nothing.
    """
    high = _upper_half(x)
    middle = _upper_half(x - high)
    return [tf.cast(part, tf.bfloat16) for part in (high, middle, x - high - middle)]


def _upper_half(x: tf.Tensor) -> tf.Tensor:
    """The float32 x cut to what bfloat16 can hold."""
    return tf.bitcast(tf.bitwise.bitwise_and(tf.bitcast(x, tf.int32), _UPPER_HALF), tf.float32)


def logical_to_physical(shape: mtf.Shape, device_assignment: Any) -> list[int]:
    """The replica that stands at each place of the mesh.

    Neighbours along the mesh's last dimensions are neighbours on the TPU's torus: mesh-tensorflow's tiling, where it
    has one (v2 and v3: chips of two cores in a rectangle whose sides are powers of two), else the replicas' own order.
    """
    # mesh-tensorflow asks an absl flag for the cores of a chip, and absl would read this program's command line.
    tf.compat.v1.flags.FLAGS.mark_as_parsed()
    x, y, z, cores = (int(size) for size in device_assignment.topology.mesh_shape)
    replicas = {tuple(place): i for i, place in enumerate(device_assignment.core_assignment[:, 0].tolist())}
    known = cores == simd_mesh_impl.FLAGS.logical_cores_per_chip and all(n & (n - 1) == 0 for n in (x, y * z))
    if not known or not len(replicas) == x * y * z * cores == shape.size:
        return list(range(shape.size))
    tiled = simd_mesh_impl.auto_logical_to_physical_tpu(
        shape.to_integer_list, [x, y, z, cores], return_coordinates=True, device_assignment=device_assignment
    )
    return [replicas[column, row % y, row // y, core] for row, column, core in tiled]
