"""Gradients summed over the devices that split the batch, in buckets of many gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gpt_mesh.meshes.compat import mtf

import tensorflow as tf

BYTES = 32 * 2**20  # of a bucket: enough to saturate a link, and complete well before the last gradient is computed


def reduce_together(gradients: Sequence[mtf.Tensor], mesh_impl: Any) -> list[mtf.Tensor]:
    """All-reduce gradients in buckets, which saves the latency of many small messages.

    With XLA, whose own pass combines all-reduces, gradients are returned unchanged.
    """
    if not mesh_impl.wants_buckets:
        return list(gradients)
    return _ReduceTogether(gradients).outputs


class _ReduceTogether(mtf.Operation):
    def __init__(self, tensors: Sequence[mtf.Tensor]) -> None:
        super().__init__(list(tensors), name="reduce_together")
        self._outputs = [mtf.Tensor(self, x.shape, x.dtype, index=i) for i, x in enumerate(tensors)]
        self._splittable_dims, self._unsplittable_dims = self._initialize_all_dimensions_as_splittable()

    def lower(self, lowering: mtf.Lowering) -> None:
        mesh_impl = lowering.mesh_impl(self)
        waiting: dict[Any, list[tuple[mtf.Tensor, Any]]] = {}
        for x, out in zip(self.inputs, self.outputs, strict=True):
            value = lowering.tensors[x]
            if isinstance(value, mtf.LazyAllreduceSum) and value._reduced is None:
                waiting.setdefault((tuple(value.mesh_axes), x.dtype), []).append((out, value.laid_out_input))
            else:
                lowering.set_tensor_lowering(out, value)
        for (axes, dtype), entries in waiting.items():
            for bucket in _buckets(entries, dtype.size):
                values = _reduced(mesh_impl, [value for _, value in bucket], list(axes))
                for (out, _), value in zip(bucket, values, strict=True):
                    lowering.set_tensor_lowering(out, value)


def _buckets(entries: list[tuple[mtf.Tensor, Any]], itemsize: int) -> list[list[tuple[mtf.Tensor, Any]]]:
    """Groups of consecutive entries of at most BYTES; a larger entry has its own bucket."""
    buckets: list[list[tuple[mtf.Tensor, Any]]] = []
    room = 0
    for entry in entries:
        size = itemsize * tf.TensorShape(entry[1].slice_shape).num_elements()
        if not buckets or size > room:
            buckets.append([])
            room = BYTES
        buckets[-1].append(entry)
        room -= size
    return buckets


def _reduced(mesh_impl: Any, values: list[Any], axes: list[int]) -> list[Any]:
    """Sum laid-out tensors over mesh axes in a single all-reduce."""
    if len(values) == 1:
        return [mesh_impl.allreduce(values[0], axes, "SUM")]
    shapes = [value.slice_shape for value in values]
    sizes = [tf.TensorShape(shape).num_elements() for shape in shapes]

    def join(*slices: tf.Tensor) -> tf.Tensor:
        return tf.concat([tf.reshape(x, [-1]) for x in slices], 0)

    def part(joined: tf.Tensor) -> tuple[tf.Tensor, ...]:
        return tuple(tf.reshape(x, shape) for x, shape in zip(tf.split(joined, sizes), shapes, strict=True))

    return list(mesh_impl.slicewise(part, mesh_impl.allreduce(mesh_impl.slicewise(join, *values), axes, "SUM")))
