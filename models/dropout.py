"""Dropout whose mask is a function of (seed, step, site, position), the same on a mesh of any shape.

Each element's keep-or-drop draw is a hash of its index in the whole tensor, so a slice draws exactly the part of the
mask that it holds, and the backward pass draws it again instead of keeping it. The hash is Chris Wellons' `lowbias32`
integer finaliser (https://nullprogram.com/blog/2018/07/31/), applied twice with the key in between.
"""

from __future__ import annotations

import zlib
from typing import Any

from gpt_mesh.meshes.compat import mtf

import tensorflow as tf

from gpt_mesh.models import kernels


def dropout(x: mtf.Tensor, rate: float, seed: mtf.Tensor, site: str) -> mtf.Tensor:
    """Zero each element with probability `rate`, and scale the others by 1 / (1 - rate).

    Args:
        x: of any shape.
        rate: in [0, 1).
        seed: int32 scalar on the mesh; another for each step.
        site: a name of this place in the model: two places with the same name share their mask.
    """
    return x if rate == 0.0 else _Dropout(x, rate, seed, site).outputs[0]


class _Dropout(mtf.Operation):
    def __init__(self, x: mtf.Tensor, rate: float, seed: mtf.Tensor, site: str) -> None:
        super().__init__([x, seed], name="dropout")
        self.rate, self.site = rate, site
        self._outputs = [mtf.Tensor(self, x.shape, x.dtype)]
        self._splittable_dims, self._unsplittable_dims = self._initialize_all_dimensions_as_splittable()

    def gradient(self, grad_ys: list[mtf.Tensor]) -> list[mtf.Tensor | None]:
        return [_Dropout(grad_ys[0], self.rate, self.inputs[1], self.site).outputs[0], None]

    def lower(self, lowering: mtf.Lowering) -> None:
        mesh_impl = lowering.mesh_impl(self)
        x, seed = self.inputs
        strides = _strides(x.shape)

        def drop(x_slice: tf.Tensor, seed_slice: tf.Tensor, *begin: tf.Tensor) -> tf.Tensor:
            u = uniform(x_slice.shape.as_list(), begin, strides, _site_key(seed_slice, self.site))
            scale = tf.where(u >= self.rate, 1.0 / (1.0 - self.rate), 0.0)
            return x_slice * tf.cast(scale, x_slice.dtype)

        begin = [kernels.first_index(mesh_impl, x.shape, dim) for dim in x.shape.dims]
        lowering.set_tensor_lowering(
            self.outputs[0],
            mesh_impl.slicewise(
                drop, lowering.tensors[x].to_laid_out_tensor(), lowering.tensors[seed].to_laid_out_tensor(), *begin
            ),
        )


class Draw(mtf.Operation):
    """Uniform random numbers, float32 in [0, 1): each a hash of seed, site and its place in the whole tensor."""

    def __init__(self, shape: mtf.Shape, seed: mtf.Tensor, site: str) -> None:
        super().__init__([seed], name="draw")
        self.site = site
        self._outputs = [mtf.Tensor(self, shape, tf.float32)]
        self._splittable_dims, self._unsplittable_dims = self._initialize_all_dimensions_as_splittable()

    def lower(self, lowering: mtf.Lowering) -> None:
        mesh_impl = lowering.mesh_impl(self)
        shape = self.outputs[0].shape
        sizes, strides = mesh_impl.slice_shape(shape), _strides(shape)

        def draw(seed: tf.Tensor, *begin: tf.Tensor) -> tf.Tensor:
            return uniform(sizes, begin, strides, _site_key(seed, self.site))

        begin = [kernels.first_index(mesh_impl, shape, dim) for dim in shape.dims]
        seed = lowering.tensors[self.inputs[0]].to_laid_out_tensor()
        lowering.set_tensor_lowering(self.outputs[0], mesh_impl.slicewise(draw, seed, *begin))


def _site_key(seed: tf.Tensor, site: str) -> tf.Tensor:
    """uint32 key of a place in the model, at the step that the int32 seed stands for."""
    return tf.bitwise.bitwise_xor(tf.cast(seed, tf.uint32), tf.constant(zlib.crc32(site.encode()), tf.uint32))


def _strides(shape: mtf.Shape) -> list[int]:
    """How far apart neighbours along each dimension are in the whole tensor, in elements."""
    strides, product = [], 1
    for dim in reversed(shape.dims):
        strides.append(product)
        product *= dim.size
    return strides[::-1]


def uniform(shape: list[int], begin: Any, strides: list[int], key: tf.Tensor) -> tf.Tensor:
    """float32 in [0, 1) for each element of a slice, a hash of its place in the whole tensor and of `key`.

    Args:
        shape: of the slice.
        begin: the slice's first index along each dimension (int32 scalars).
        strides: of the whole tensor; indices wrap at 2**32 elements.
        key: uint32, broadcast against the slice.
    """
    index = tf.zeros([1] * len(shape), tf.uint32)
    for axis, (size, first, stride) in enumerate(zip(shape, begin, strides, strict=True)):
        along = (tf.range(size, dtype=tf.int32) + first) * tf.constant(_as_int32(stride), tf.int32)
        index += tf.reshape(tf.cast(along, tf.uint32), [-1 if i == axis else 1 for i in range(len(shape))])
    bits = _mix(tf.bitwise.bitwise_xor(_mix(index), _mix(key)))
    return tf.cast(tf.bitwise.right_shift(bits, tf.constant(8, tf.uint32)), tf.float32) * 2.0**-24


def _mix(x: tf.Tensor) -> tf.Tensor:
    """lowbias32: a bijection of the 32-bit integers in which each input bit flips each output bit about half the time.
    """
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B), (16, None)):
        x = tf.bitwise.bitwise_xor(x, tf.bitwise.right_shift(x, tf.constant(shift, tf.uint32)))
        if factor is not None:
            x *= tf.constant(factor, tf.uint32)
    return x


def _as_int32(value: int) -> int:
    """The 32-bit two's complement of `value`, whose products agree with unsigned ones modulo 2**32."""
    return (value + 2**31) % 2**32 - 2**31


def step_seed(seed: int, step: tf.Tensor) -> tf.Tensor:
    """int32 scalar that differs for each (seed, step)."""
    key = _mix(tf.cast(step, tf.uint32)) + tf.constant(seed % 2**32, tf.uint32)
    return tf.bitcast(_mix(key), tf.int32)


def mixed_key(seeds: tf.Tensor, counter: tf.Tensor) -> tf.Tensor:
    """uint32 keys for `uniform`, one for each int32 seed, another at each count."""
    return _mix(_mix(tf.bitcast(seeds, tf.uint32)) + tf.bitcast(counter, tf.uint32))


def row_keys(tokens: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """int32 [batch]: a hash of each row of int32 [batch, n] and of the seed, an int32 scalar."""
    columns = tf.range(tokens.shape[1], dtype=tf.int32)[None, :]
    mixed = _mix(_mix(tf.bitcast(tokens, tf.uint32)) + tf.bitcast(columns, tf.uint32))
    return tf.bitwise.bitwise_xor(tf.reduce_sum(tf.bitcast(mixed, tf.int32), 1), seed)
