"""The variables of a run, shared by all of its graphs.

Training, evaluation and sampling are separate mesh graphs over the same weights. Each graph asks for its variables by
name (through `mtf.get_variable`); the store returns the one variable of that name, so no weight exists twice and
nothing is copied when a run switches between training and evaluation.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf


@dataclass(frozen=True)
class Slice:
    """One device's part of a variable: `region` is the part of the whole array that `variable` holds."""

    region: tuple[slice, ...]
    variable: tf.Variable


def regions(mesh: Any, shape: Any) -> list[tuple[slice, ...]]:
    """The part of a variable of that shape (`mtf.Shape`) that each position of the mesh (`mtf.MeshImpl`) holds."""
    sizes = mesh.slice_shape(shape)
    begins = (mesh.slice_begin(shape, position) for position in range(mesh.size))
    return [tuple(slice(b, b + size) for b, size in zip(begin, sizes, strict=True)) for begin in begins]


class VariableStore:
    """Variables by name, created on first use, outside the graph that uses them.

    A mesh of one device reads and updates the whole ("master") variable, on that device. With a larger mesh the masters
    are on the host and each device has its slice (`add_slices`); `scatter` and `gather` copy between the two.
    """

    def __init__(self, master_device: str) -> None:
        """`master_device`: the device of whole variables, such as "/device:GPU:0"."""
        self._master_device = master_device
        self._masters: dict[str, tf.Variable] = {}
        self._slices: dict[str, list[Slice]] = {}

    @contextlib.contextmanager
    def scope(self) -> Iterator[None]:
        """Within it, `tf.compat.v1.get_variable` (and so `mtf.get_variable`) finds and creates its variables here."""
        with tf.compat.v1.variable_scope(tf.compat.v1.get_variable_scope(), custom_getter=self._get):
            yield

    def _get(
        self,
        getter: Callable[..., tf.Variable],
        name: str,
        shape: Any = None,
        dtype: Any = None,
        initializer: Any = None,
        trainable: bool = True,
        **unused: Any,
    ) -> tf.Variable:
        del getter, unused
        if name not in self._masters:
            self._masters[name] = _create(
                name, lambda: initializer(shape, dtype), dtype, trainable, self._master_device
            )
        return self._masters[name]

    def scalar(self, name: str, dtype: tf.DType) -> tf.Variable:
        """The scalar variable of this name, initialised to 0."""
        if name not in self._masters:
            self._masters[name] = _create(name, lambda: tf.zeros([], dtype), dtype, False, self._master_device)
        return self._masters[name]

    def add(self, name: str, value: Any) -> None:
        """Create a variable with this name and value."""
        value = tf.convert_to_tensor(value)
        self._masters[name] = _create(name, lambda: value, value.dtype, True, self._master_device)

    def add_slices(
        self, name: str, regions: list[tuple[slice, ...]], dtype: tf.DType, devices: list[str]
    ) -> list[tf.Variable]:
        """The slice variables of master `name`, one for each device, created and filled on first use."""
        if name not in self._slices:
            parts = []
            for i, (region, device) in enumerate(zip(regions, devices, strict=True)):
                initial = functools.partial(self._part, name, region, dtype)
                parts.append(Slice(region, _create(f"{name}_slice_{i}", initial, dtype, True, device)))
            self._slices[name] = parts
        return [part.variable for part in self._slices[name]]

    def add_copies(self, name: str, devices: list[str]) -> list[tf.Variable]:
        """Full copies of master `name`, one for each device."""
        whole = self._masters[name]
        return self.add_slices(name, [(slice(None),) * whole.shape.rank] * len(devices), whole.dtype, devices)

    def counterpart(self, captured: Any, position: int) -> Any:
        """The slice at `position` that corresponds to a slice captured for the first device."""
        for parts in self._slices.values():
            if parts[0].variable.handle is captured:
                return parts[position].variable.handle
        return captured

    def _part(self, name: str, region: tuple[slice, ...], dtype: tf.DType) -> tf.Tensor:
        whole = self._masters[name]
        with tf.device(whole.device):  # so that only the part is transferred
            return tf.cast(whole.read_value()[region], dtype)

    def scatter(self) -> None:
        """Fill all slices from their masters. Called after restoring."""
        for name, parts in self._slices.items():
            for part in parts:
                part.variable.assign(self._part(name, part.region, part.variable.dtype))

    def gather(self) -> None:
        """Copy all slices to their masters. Called before saving. If devices hold the same part, the first is read."""
        for name, parts in self._slices.items():
            whole = self._masters[name]
            value = np.empty(whole.shape.as_list(), whole.dtype.as_numpy_dtype)
            for part in {_bounds(part.region): part for part in reversed(parts)}.values():
                value[part.region] = part.variable.numpy()
            whole.assign(value)

    @property
    def masters(self) -> Mapping[str, tf.Variable]:
        """Whole variables by name. After training steps on several devices, call `gather` before reading them."""
        return self._masters


def _bounds(region: tuple[slice, ...]) -> tuple[tuple[int, int], ...]:
    """A region as a hashable key; slices are hashable only since Python 3.12."""
    return tuple((part.start, part.stop) for part in region)


def _create(name: str, initial_value: Callable[[], Any], dtype: tf.DType, trainable: bool, device: str) -> tf.Variable:
    # A `tf.function` that lifts a variable out of its first trace would be traced twice.
    with tf.init_scope(), tf.device(device):
        return tf.Variable(
            initial_value,
            name=name,
            dtype=dtype,
            trainable=trainable,
            experimental_enable_variable_lifting=False,
        )
