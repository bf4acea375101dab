"""Plain TensorFlow functions run slice by slice on a mesh, and the operations that mesh-tensorflow lacks.

`kernel` is `mtf.slicewise` with a gradient that is right for every layout. mesh-tensorflow's own differentiates slice
by slice and stops there: a weight that is replicated beside split activations then gets the gradient of one slice only,
and an input whose all-reduce is still pending fails to lower. Here the gradient of each input is summed over the mesh
axes along which the work was split and the input was not.

In functions that run on slices, write `tf.equal(x, y)`: `x == y` compares two Python objects in a graph that a session
runs (TPUEstimator's).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from gpt_mesh.meshes.compat import mtf

import tensorflow as tf

from gpt_mesh.meshes import compat

SliceFunction = Callable[..., Any]


# A tensor of the mesh, or the shape and type of something that exists inside a function only.
Kept: TypeAlias = "mtf.Tensor | tuple[mtf.Shape, tf.DType]"


def kernel(
    fn: SliceFunction,
    inputs: Sequence[mtf.Tensor],
    outputs: Sequence[tuple[mtf.Shape, tf.DType]],
    splittable: Sequence[mtf.Dimension],
    name: str,
    gradient: SliceFunction | None = None,
    *,
    recompute: bool = False,
    flops: float = 0.0,
    kept: Sequence[Kept] | None = None,
    summed: Sequence[mtf.Dimension] = (),
    residuals: int = 0,
) -> list[mtf.Tensor]:
    """Run `fn` on each slice of `inputs`; its results are the slices of the outputs.

    Args:
        fn: takes one `tf.Tensor` per input, returns one per output (a tuple when there are several). Called again to
            differentiate it: XLA finds the common part; elsewhere it is recomputed instead of kept.
        inputs: mesh tensors. Those that lack a split dimension are replicated along it.
        outputs: shape and type of each output.
        splittable: dimensions along which slices of the result depend on the matching slices of the inputs alone.
        name: of the operation in the graph.
        gradient: takes the slices of inputs and outputs and the gradient of each output (None where it has none);
            returns the gradient of each floating input. Default: `fn` is differentiated.
        recompute: while differentiating, XLA recomputes the inside of `fn` from its inputs instead of keeping it:
            cheaper where memory is slow compared with arithmetic.
        flops: floating-point operations of the matmuls inside `fn`, on whole tensors; the gradient takes twice as many.
        kept: the tensors that the backward pass reads: mesh tensors, and shapes and types of those that exist only
            inside `fn`. Default: the floating inputs, and with a `gradient` the floating outputs.
        summed: dimensions over which slices of the outputs are parts of a sum: where one of them is split, the outputs
            are complete after an all-reduce.
        residuals: the number of results of `fn` after those of the outputs, of any shape, which `gradient` takes after
            the outputs.

    Raises:
        ValueError: on lowering, when the layout splits another dimension.
    """
    return Kernel(
        fn, inputs, outputs, splittable, name, gradient, recompute, flops, kept, [dim.name for dim in summed], residuals
    ).outputs


class SliceOperation(mtf.Operation):
    """An operation on slices that says what planning has to know of it.

    Attributes:
        flops: floating-point operations of its matmuls, on whole tensors.
    """

    flops: float = 0.0

    def summed(self, output: mtf.Tensor) -> set[str]:
        """Names of the dimensions over which slices of an output are parts of a sum: where one of them is split, the
        output is complete after an all-reduce.
        """
        del output
        return set()

    def _set_output(self, lowering: mtf.Lowering, output: mtf.Tensor, value: Any) -> None:
        """Set the value of an output; its all-reduce is done when the value is first used."""
        mesh_impl = lowering.mesh_impl(self)
        axes = {mesh_impl.tensor_dimension_to_mesh_axis(mtf.Dimension(name, 0)) for name in self.summed(output)}
        missing = axes - {None} - split_axes(mesh_impl, [output])
        lowering.set_tensor_lowering(output, sum_over(mesh_impl, value, missing))


class Kernel(SliceOperation, mtf.SlicewiseOperation):
    """mesh-tensorflow's operation, with a gradient of its own."""

    def __init__(
        self,
        fn: SliceFunction,
        inputs: Sequence[mtf.Tensor],
        outputs: Sequence[tuple[mtf.Shape, tf.DType]],
        splittable: Sequence[mtf.Dimension],
        name: str,
        gradient: SliceFunction | None,
        recompute: bool,
        flops: float,
        kept: Sequence[Kept] | None,
        summed: Sequence[str],
        residuals: int,
    ) -> None:
        shapes, dtypes = [mtf.Shape(shape) for shape, _ in outputs], [dtype for _, dtype in outputs]
        super().__init__(fn, list(inputs), shapes, dtypes, list(splittable), name=name)
        self._outputs = [mtf.Tensor(self, x.shape, x.dtype, index=i) for i, x in enumerate(self.outputs)]
        self.fn, self.fn_gradient, self.recompute = fn, gradient, recompute
        self.splittable, self.flops, self._summed = [dim.name for dim in splittable], flops, set(summed)
        self.residual_count = residuals
        self.residuals: list[Any] = []  # their slices, once lowered
        if kept is None:
            kept = [x for x in [*inputs, *(self.outputs if gradient else [])] if x.dtype.is_floating]
        self.kept = list(kept)

    def gradient(self, grad_ys: list[mtf.Tensor | None]) -> list[mtf.Tensor | None]:
        return KernelGradient(self, grad_ys).by_input

    def summed(self, output: mtf.Tensor) -> set[str]:
        del output
        return self._summed

    def lower(self, lowering: mtf.Lowering) -> None:
        mesh_impl = lowering.mesh_impl(self)
        for shape in (x.shape for x in self.inputs + self.outputs):
            for dim in shape.dims:
                if dim.name not in self.splittable and mesh_impl.tensor_dimension_to_mesh_axis(dim) is not None:
                    raise ValueError(
                        f"{self.name}: dimension {dim} of {shape} is split, but this operation needs it whole"
                    )
        found = mesh_impl.slicewise(self.fn, *[laid_out(lowering, x) for x in self.inputs])
        values = found if isinstance(found, tuple) else (found,)
        assert len(values) == len(self.outputs) + self.residual_count, (self.name, len(values))
        self.residuals = list(values[len(self.outputs) :])
        for output, value in zip(self.outputs, values, strict=False):
            self._set_output(lowering, output, value)


class KernelGradient(SliceOperation):
    def __init__(self, forward: Kernel, grad_ys: list[mtf.Tensor | None]) -> None:
        self.forward, self.flops = forward, 2.0 * forward.flops
        self.given = [dy is not None for dy in grad_ys]
        results = forward.outputs if forward.fn_gradient else []
        given = [dy for dy in grad_ys if dy is not None]
        super().__init__([*forward.inputs, *results, *given], name=f"{forward.name}_grad")
        self.wanted = [x for x in forward.inputs if x.dtype.is_floating]
        self._outputs = [mtf.Tensor(self, x.shape, x.dtype, index=i) for i, x in enumerate(self.wanted)]
        self._splittable_dims, self._unsplittable_dims = self._initialize_splittable_and_unsplittable_dims(
            "unsplittable", forward.splittable
        )

    @property
    def by_input(self) -> list[mtf.Tensor | None]:
        gradients = iter(self.outputs)
        return [next(gradients) if x.dtype.is_floating else None for x in self.forward.inputs]

    def summed(self, output: mtf.Tensor) -> set[str]:
        del output
        return {name for x in self.forward.inputs + self.forward.outputs for name in x.shape.dimension_names}

    def lower(self, lowering: mtf.Lowering) -> None:
        work = self._given if self.forward.fn_gradient else self._differentiated
        operands = [laid_out(lowering, x) for x in self.inputs]
        operands[-sum(self.given) : -sum(self.given)] = self.forward.residuals
        values = lowering.mesh_impl(self).slicewise(work, *operands)
        for output, value in zip(self.outputs, values if len(self.outputs) > 1 else (values,), strict=True):
            self._set_output(lowering, output, value)

    def _given(self, *args: tf.Tensor) -> Any:
        """By the forward operation's own gradient."""
        known, grads = args[: -sum(self.given)], iter(args[-sum(self.given) :])
        assert self.forward.fn_gradient is not None
        return self.forward.fn_gradient(*known, *[next(grads) if given else None for given in self.given])

    def _differentiated(self, *args: tf.Tensor) -> Any:
        n_inputs = len(self.forward.inputs)
        # Fresh copies of the inputs keep `tf.gradients` inside this function: it searches every operation downstream.
        xs = [tf.identity(x) for x in args[:n_inputs]]
        xs = compat.optimization_barrier(xs) if self.forward.recompute else xs
        ys = self.forward.fn(*xs)
        ys = ys if isinstance(ys, (tuple, list)) else [ys]
        grads = tf.gradients(
            ys=[y for y, given in zip(ys, self.given, strict=True) if given],
            xs=[x for x in xs if x.dtype.is_floating],
            grad_ys=list(args[n_inputs:]),
            unconnected_gradients=tf.UnconnectedGradients.ZERO,
        )
        # Without a barrier here too, what follows takes the gradients before they are narrowed, and XLA stores them so.
        grads = compat.optimization_barrier(grads) if self.forward.recompute else grads
        return tuple(grads) if len(grads) > 1 else grads[0]


def laid_out(lowering: mtf.Lowering, x: mtf.Tensor) -> Any:
    """The slices of `x`, its pending all-reduce done."""
    return lowering.tensors[x].to_laid_out_tensor()


def split_axes(mesh_impl: Any, tensors: Sequence[mtf.Tensor]) -> set[int]:
    """Mesh axes along which any of the tensors is split."""
    axes = {axis for x in tensors for axis in mesh_impl.tensor_layout(x).tensor_axis_to_mesh_axis}
    return {axis for axis in axes if axis is not None}


def sum_over(mesh_impl: Any, value: Any, axes: set[int]) -> Any:
    """`value` summed over mesh axes; done when it is first used, so that sums of such values are reduced once."""
    return mtf.LazyAllreduceSum(mesh_impl, value, sorted(axes)) if axes else value


def cast_sum(x: mtf.Tensor, dtype: tf.DType) -> mtf.Tensor:
    """`mtf.cast`, but for sums over devices that x still waits for: they come after it."""
    return x if x.dtype == dtype else LinearOperation(lambda t: tf.cast(t, dtype), x, [], dtype, "cast_sum").outputs[0]


def scaled(x: mtf.Tensor, scale: mtf.Tensor) -> mtf.Tensor:
    """x times a scalar; sums over devices that x still waits for come after it."""
    return LinearOperation(lambda t, s: t * tf.cast(s, t.dtype), x, [scale], x.dtype, "scaled").outputs[0]


class LinearOperation(mtf.Operation):
    """A function that is linear in its first input, whose pending all-reduce stays pending."""

    def __init__(
        self, fn: SliceFunction, x: mtf.Tensor, others: Sequence[mtf.Tensor], dtype: tf.DType, name: str
    ) -> None:
        super().__init__([x, *others], name=name)
        self.fn = fn
        self._outputs = [mtf.Tensor(self, x.shape, dtype)]
        self._splittable_dims, self._unsplittable_dims = self._initialize_all_dimensions_as_splittable()

    def lower(self, lowering: mtf.Lowering) -> None:
        mesh_impl = lowering.mesh_impl(self)
        value = lowering.tensors[self.inputs[0]]
        waits = isinstance(value, mtf.LazyAllreduceSum) and value._reduced is None
        others = [laid_out(lowering, x) for x in self.inputs[1:]]
        found = mesh_impl.slicewise(self.fn, value.laid_out_input if waits else value.to_laid_out_tensor(), *others)
        lowering.set_tensor_lowering(
            self.outputs[0], mtf.LazyAllreduceSum(mesh_impl, found, value.mesh_axes) if waits else found
        )


def embedding_lookup(table: mtf.Tensor, ids: mtf.Tensor, rows: mtf.Dimension) -> mtf.Tensor:
    """Rows of `table` by id, without a product of one-hot vectors; each dimension may be split.

    Args:
        table: [rows, ...features].
        ids: integers in [0, rows), of any shape.
        rows: the dimension of `table` that ids index.

    Returns:
        [...ids, ...features]. An id out of range gives zeros.
    """
    return _EmbeddingLookup(table, ids, rows).outputs[0]


class _EmbeddingLookup(SliceOperation):
    """Each slice looks up the ids in its range of rows and leaves zeros for others; summing over slices of rows
    completes it.
    """

    def __init__(self, table: mtf.Tensor, ids: mtf.Tensor, rows: mtf.Dimension) -> None:
        super().__init__([table, ids], name="embedding_lookup")
        self.rows = rows
        assert table.shape.dims[0] == rows, (table.shape, rows)
        self._outputs = [mtf.Tensor(self, mtf.Shape(ids.shape.dims + table.shape.dims[1:]), table.dtype)]
        self._splittable_dims, self._unsplittable_dims = self._initialize_all_dimensions_as_splittable()

    def gradient(self, grad_ys: list[mtf.Tensor]) -> list[mtf.Tensor | None]:
        table, ids = self.inputs
        return [_EmbeddingGradient(table, ids, grad_ys[0]).outputs[0], None]

    def summed(self, output: mtf.Tensor) -> set[str]:
        del output
        return {self.rows.name}

    def lower(self, lowering: mtf.Lowering) -> None:
        mesh_impl = lowering.mesh_impl(self)
        table, ids = self.inputs

        def lookup(table_slice: tf.Tensor, ids_slice: tf.Tensor, first: tf.Tensor) -> tf.Tensor:
            local, inside = _local_rows(ids_slice, first, table_slice.shape[0])
            found = tf.gather(table_slice, tf.where(inside, local, 0))
            return found * tf.cast(_expand(inside, found), found.dtype)

        value = mesh_impl.slicewise(
            lookup, laid_out(lowering, table), laid_out(lowering, ids), first_index(mesh_impl, table.shape, self.rows)
        )
        self._set_output(lowering, self.outputs[0], value)


class _EmbeddingGradient(SliceOperation):
    """Adds each position's gradient to the row it came from; summed over the mesh axes that split the ids."""

    def __init__(self, table: mtf.Tensor, ids: mtf.Tensor, dy: mtf.Tensor) -> None:
        super().__init__([ids, dy], name="embedding_lookup_grad")
        self._outputs = [mtf.Tensor(self, table.shape, dy.dtype)]
        self._splittable_dims, self._unsplittable_dims = self._initialize_all_dimensions_as_splittable()

    def summed(self, output: mtf.Tensor) -> set[str]:
        del output
        return set(self.inputs[0].shape.dimension_names)

    def lower(self, lowering: mtf.Lowering) -> None:
        mesh_impl = lowering.mesh_impl(self)
        ids, dy = self.inputs
        shape = self.outputs[0].shape
        n_rows = mesh_impl.slice_shape(shape)[0]

        def scatter(ids_slice: tf.Tensor, dy_slice: tf.Tensor, first: tf.Tensor) -> tf.Tensor:
            local, inside = _local_rows(ids_slice, first, n_rows)
            rows = tf.reshape(tf.where(inside, local, -1), [-1])  # a negative segment is dropped
            features = dy_slice.shape[ids_slice.shape.rank :]
            return tf.math.unsorted_segment_sum(tf.reshape(dy_slice, [-1, *features]), rows, n_rows)

        value = mesh_impl.slicewise(
            scatter, laid_out(lowering, ids), laid_out(lowering, dy), first_index(mesh_impl, shape, shape.dims[0])
        )
        self._set_output(lowering, self.outputs[0], value)


def first_index(mesh_impl: Any, shape: mtf.Shape, dim: mtf.Dimension) -> Any:
    """For each slice of a tensor of that shape, the global index (int32) of its first element along `dim`."""
    axis = mesh_impl.tensor_dimension_to_mesh_axis(dim)
    size = mesh_impl.slice_shape(shape)[shape.dims.index(dim)]
    if axis is None:
        return mesh_impl.slicewise(lambda: tf.constant(0, tf.int32))
    return mesh_impl.slicewise(lambda pcoord: tf.cast(pcoord, tf.int32) * size, mesh_impl.laid_out_pcoord(axis))


def _local_rows(ids: tf.Tensor, first: tf.Tensor, n_rows: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Ids counted from this slice's first row, and whether they fall into it."""
    local = tf.cast(ids, tf.int32) - first
    return local, tf.logical_and(local >= 0, local < n_rows)


def _expand(mask: tf.Tensor, like: tf.Tensor) -> tf.Tensor:
    """`mask` with trailing dimensions of size 1, up to the rank of `like`."""
    return tf.reshape(mask, mask.shape.as_list() + [1] * (like.shape.rank - mask.shape.rank))
