"""SPMD: one program that all devices of a mesh run in parallel, each on its own slices.

The mesh graph is lowered only once, for a device that gets its position in the mesh as an argument, so the graph does
not grow with the number of devices. On GPUs XLA compiles each device's program as a whole, including collectives.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from gpt_mesh.meshes.compat import mtf

import tensorflow as tf

from gpt_mesh.meshes import compat
from gpt_mesh.meshes.capabilities import Capabilities
from gpt_mesh.meshes.collectives import Collectives
from gpt_mesh.meshes.variables import VariableStore, regions


class Program:
    """The devices, variables and collectives of a run and, while a graph is traced, the position of its device."""

    def __init__(self, devices: Sequence[str], store: VariableStore, collectives: Collectives, compiled: bool) -> None:
        self.devices, self.store, self.collectives, self.compiled = list(devices), store, collectives, compiled
        self._position: tf.Tensor | None = None

    @property
    def position(self) -> tf.Tensor:
        """int32 scalar: the position in the mesh of the device that runs the program."""
        assert self._position is not None, "only available while a program is traced"
        return self._position

    def function(self, build: Callable[..., Any], specs: Sequence[tf.TensorSpec]) -> _Parallel:
        """Trace `build` once for these specs; returns a function that runs it on all devices in parallel.

        Every device gets the same arguments; the result is the first device's.
        """
        inner = self._trace(build, specs)

        def everywhere(*args: tf.Tensor) -> Any:
            results = []
            for position, device in enumerate(self.devices):
                with tf.device(device):
                    captured = [self.store.counterpart(x, position) for x in inner.captured_inputs]
                    results.append(compat.call_function(inner, [tf.constant(position), *args], captured))
            return results

        # Not a tf.function, whose control dependencies would run the devices' programs one after another; they wait for
        # each other.
        return _Parallel(tf.compat.v1.wrap_function(everywhere, list(specs)))

    def _trace(self, build: Callable[..., Any], specs: Sequence[tf.TensorSpec]) -> Any:
        def program(position: tf.Tensor, *args: tf.Tensor) -> Any:
            self._position = position
            try:
                self.collectives.begin()
                return build(*args)
            finally:
                self._position = None

        with tf.device(None):  # the caller chooses the device
            # Not inlined into the function for all devices: inlining would give each device's loops different names,
            # and collectives inside them would not match.
            function = tf.function(
                program,
                autograph=False,
                jit_compile=self.compiled or None,
                experimental_attributes={"_noinline": True},
            )
            return function.get_concrete_function(tf.TensorSpec([], tf.int32), *specs)


class _Parallel:
    """A call of all devices' programs; returns the result of the first."""

    def __init__(self, programs: Any) -> None:
        self._programs, self.graph = programs, programs.graph

    def __call__(self, *args: tf.Tensor) -> Any:
        return self._programs(*args)[0]


class LocalVariable:
    """The variable of the device that runs the program; each device has its own variable of this name.

    A `tf.Variable` would be read and assigned on its own device, which during tracing is the first one.
    """

    def __init__(self, variable: tf.Variable) -> None:
        self._handle, self.dtype = variable.handle, variable.dtype
        self._shape = variable.shape

    def read_value(self) -> tf.Tensor:
        """The variable's value."""
        return tf.ensure_shape(tf.raw_ops.ReadVariableOp(resource=self._handle, dtype=self.dtype), self._shape)

    def assign(self, value: tf.Tensor, name: str | None = None) -> tf.Operation:
        """Assign a value."""
        del name
        return tf.raw_ops.AssignVariableOp(resource=self._handle, value=tf.cast(value, self.dtype))


class SpmdMesh(Capabilities, mtf.MeshImpl):
    """Lowers a mesh graph to the program of one device."""

    def __init__(self, shape: mtf.Shape, layout: mtf.LayoutRules, program: Program) -> None:
        super().__init__(shape, layout)
        self.program = program
        self.wants_buckets = not program.compiled  # XLA combines all-reduces itself

    class LaidOutTensor:
        """A tensor's slice on the device that runs the program."""

        def __init__(self, slices: list[tf.Tensor]) -> None:
            (self.one_slice,) = slices

        @classmethod
        def from_tensor_list(cls, slices: list[tf.Tensor]) -> SpmdMesh.LaidOutTensor:
            return cls(slices)

        @property
        def tensor_list(self) -> list[tf.Tensor]:
            """The one slice, as the list of slices that mesh-tensorflow expects."""
            return [self.one_slice]

        all_slices = tensor_list

        @property
        def slice_shape(self) -> list[int]:
            shape: list[int] = self.one_slice.shape.as_list()
            return shape

        def to_laid_out_tensor(self) -> SpmdMesh.LaidOutTensor:
            return self

    class LaidOutVariable:
        """The slice of an `mtf.Variable` on the device that runs the program."""

        def __init__(self, variable: mtf.Variable, mesh_impl: SpmdMesh) -> None:
            self._variable = variable
            self._slice = mesh_impl.local_slice(variable)
            self.laid_out_tensor = mesh_impl.LaidOutTensor([self._slice.read_value()])

        def assign_to_slices(self, assign_fn: Any, values: list[tf.Tensor]) -> tf.Operation:
            """Assign this device's value."""
            return assign_fn(self._variable, self._slice, values[0])

    def local_slice(self, variable: mtf.Variable) -> LocalVariable:
        """This device's part of `variable`."""
        variable.get_master()
        parts, devices = regions(self, variable.shape), self.program.devices
        slices = self.program.store.add_slices(variable.name, parts, variable.slice_dtype, devices)
        return LocalVariable(slices[0])

    def local(self, name: str) -> LocalVariable:
        """This device's copy of a whole variable of the store."""
        return LocalVariable(self.program.store.add_copies(name, self.program.devices)[0])

    def laid_out_pnum(self) -> SpmdMesh.LaidOutTensor:
        return self.LaidOutTensor([self.program.position])

    def slicewise(self, fn: Callable[..., Any], *inputs: Any) -> Any:
        """Call `fn` on this device's slices. Other arguments (numbers, shapes) are passed unchanged."""
        results = fn(*[self._slice_of(x) for x in inputs])
        if not isinstance(results, tuple):
            return self.LaidOutTensor([results])
        return tuple(self.LaidOutTensor([x]) for x in results)

    def _slice_of(self, x: Any) -> Any:
        """This device's slice of a mesh tensor, after a pending all-reduce."""
        if isinstance(x, mtf.LazyAllreduceSum):
            x = x.to_laid_out_tensor()
        return x.one_slice if isinstance(x, self.LaidOutTensor) else x

    def _groups(self, mesh_axes: Sequence[int]) -> list[list[int]]:
        """Groups of positions that differ only along these mesh axes."""
        groups: dict[int, list[int]] = {}
        for position in range(self.size):
            groups.setdefault(mtf.pnum_to_group(self.shape, mesh_axes, position), []).append(position)
        return list(groups.values())

    def allreduce(self, x: Any, mesh_axes: Sequence[int], reduction_fn_string: str) -> Any:
        """All-reduce ("SUM", "MAX" or "MIN") over groups of devices."""
        t = x.to_laid_out_tensor().one_slice
        groups, position = self._groups(mesh_axes), self.program.position
        return self.LaidOutTensor([self.program.collectives.all_reduce(t, position, groups, reduction_fn_string)])

    def allconcat(self, x: Any, mesh_axis: int, concat_axis: int, stack: bool = False) -> Any:
        """The slices of a group, concatenated along a tensor axis, or with `stack` along a new one."""
        t = x.to_laid_out_tensor().one_slice
        rows = self.program.collectives.all_gather(t, self.program.position, self._groups([mesh_axis]))
        return self.LaidOutTensor([_move_first(rows, concat_axis) if stack else _join(rows, concat_axis)])

    def alltoall(self, x: Any, mesh_axis: int, split_axis: int, concat_axis: int) -> Any:
        """Split along one tensor axis, exchange the parts within a group, and concatenate them along another."""
        t = x.to_laid_out_tensor().one_slice
        parts = tf.stack(tf.split(t, self.shape[mesh_axis].size, axis=split_axis))
        rows = self.program.collectives.all_to_all(parts, self.program.position, self._groups([mesh_axis]))
        return self.LaidOutTensor([_join(rows, concat_axis)])

    def receive(self, x: Any, mesh_axis: int, source_pcoord: Sequence[int | None]) -> Any:
        """Receive from the device at `source_pcoord[own coordinate]` along a mesh axis; zeros where that is None."""
        sources: list[int | None] = []
        for position in range(self.size):
            coordinates = mtf.pnum_to_processor_coordinates(self.shape, position)
            source = source_pcoord[coordinates[mesh_axis]]
            coordinates[mesh_axis] = source or 0
            sources.append(None if source is None else mtf.processor_coordinates_to_pnum(self.shape, coordinates))
        t = x.to_laid_out_tensor().one_slice
        return self.LaidOutTensor([self.program.collectives.permute(t, self.program.position, sources)])

    def import_tf_tensor(self, x: mtf.Tensor, tf_x: tf.Tensor) -> Any:
        """This device's part of a tensor that every device has."""
        if self.tensor_layout(x.shape).is_fully_replicated:
            return self.LaidOutTensor([tf_x])
        begins = tf.constant([self.slice_begin(x.shape, position) for position in range(self.size)])
        return self.LaidOutTensor([tf.slice(tf_x, tf.gather(begins, self.program.position), self.slice_shape(x.shape))])

    def export_to_tf_tensor(self, x: mtf.Tensor, laid_out_x: Any) -> tf.Tensor:
        """The whole tensor, on every device."""
        laid_out = laid_out_x.to_laid_out_tensor()
        for tensor_axis, mesh_axis in enumerate(self.tensor_layout(x.shape).tensor_axis_to_mesh_axis):
            if mesh_axis is not None:
                laid_out = self.allconcat(laid_out, mesh_axis, tensor_axis)
        return laid_out.one_slice

    def random(self, shape: mtf.Shape, tf_fn: Any, kwargs: Any) -> Any:
        raise NotImplementedError("random numbers are functions of a seed: models/dropout.py")

    def einsum(self, equation: str, *slices: tf.Tensor) -> tf.Tensor:
        """`tf.einsum` of this device's slices."""
        return tf.einsum(equation, *slices)


def _move_first(rows: tf.Tensor, axis: int) -> tf.Tensor:
    """rows with their first axis moved to `axis`."""
    order = list(range(1, rows.shape.rank))
    return rows if axis == 0 else tf.transpose(rows, [*order[:axis], 0, *order[axis:]])


def _join(rows: tf.Tensor, axis: int) -> tf.Tensor:
    """rows[0], rows[1], … concatenated along `axis` of a row."""
    shape = rows.shape.as_list()
    joined = shape[1:]
    joined[axis] *= shape[0]
    return tf.reshape(_move_first(rows, axis), joined)
