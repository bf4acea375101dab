"""What the programs of an SPMD mesh say to each other: sums, gathers, exchanges, within groups of devices.

Two implementations of the same operations:

* `RuntimeCollectives`, TensorFlow's own collective operations: a ring between devices of one process or of several.
  For programs that are not compiled.
* `CompiledCollectives`, XLA's: NCCL between GPUs, scheduled and combined by the compiler with the rest of the program.

Groups are given as lists of mesh positions that cover the mesh; every group has the same size, and every device calls
the same operation with the same groups.
"""

from __future__ import annotations

import abc
import itertools
import threading
from collections.abc import Sequence
from typing import ClassVar

import tensorflow as tf

from gpt_mesh.meshes.stablehlo import Module

Groups = Sequence[Sequence[int]]

_REDUCTIONS = {"SUM": ("Add", "add"), "MAX": ("Max", "maximum"), "MIN": ("Min", "minimum")}


class Collectives(abc.ABC):
    """Operations that every device of a mesh calls together, each with its own slice."""

    def __init__(self, devices: Sequence[str]) -> None:
        """`devices`: full names; a device's place in this list is its position in the mesh."""
        self.devices = tuple(devices)

    @abc.abstractmethod
    def begin(self) -> None:
        """Called where the program of a device begins."""

    @abc.abstractmethod
    def all_reduce(self, x: tf.Tensor, position: tf.Tensor, groups: Groups, reduction: str) -> tf.Tensor:
        """The sum ("SUM"), "MAX" or "MIN" of x over the device's group, on each of its devices."""

    @abc.abstractmethod
    def all_gather(self, x: tf.Tensor, position: tf.Tensor, groups: Groups) -> tf.Tensor:
        """[group size, ...x]: the slices of the group, in the group's order, on each of its devices."""

    def all_to_all(self, x: tf.Tensor, position: tf.Tensor, groups: Groups) -> tf.Tensor:
        """For x [group size, ...]: row i of the result is what the group's i-th device has in this device's row."""
        return tf.gather(self.all_gather(x, position, groups), _place(groups, position), axis=1)

    def permute(self, x: tf.Tensor, position: tf.Tensor, sources: Sequence[int | None]) -> tf.Tensor:
        """The slice of the device at position `sources[own position]`; zeros where that is None."""
        everyone = self.all_gather(x, position, [range(len(sources))])
        found = tf.gather(everyone, _at([0 if s is None else s for s in sources], position))
        return tf.where(_at([s is not None for s in sources], position), found, tf.zeros_like(found))


class RuntimeCollectives(Collectives):
    """By TensorFlow's runtime. A gather is a sum of slices padded with zeros, which needs no agreement on who stands
    where in a group, at twice the traffic.
    """

    _lock = threading.Lock()
    _instances = itertools.count(1)
    _next_group = itertools.count(1)
    _groups: ClassVar[dict[tuple[tuple[str, ...], tuple[tuple[int, ...], ...]], list[int]]] = {}

    def begin(self) -> None:
        """Nothing to do."""

    def all_reduce(self, x: tf.Tensor, position: tf.Tensor, groups: Groups, reduction: str) -> tf.Tensor:
        if len(groups[0]) == 1:
            return x
        narrow = x.dtype in (tf.bool, tf.uint32)
        x_or_wide = tf.cast(x, tf.int64) if narrow else x
        y = self.reduce(x_or_wide, len(groups[0]), _at(self.keys(groups), position), _REDUCTIONS[reduction][0])
        return tf.cast(tf.ensure_shape(y, x.shape), x.dtype)

    def all_gather(self, x: tf.Tensor, position: tf.Tensor, groups: Groups) -> tf.Tensor:
        size = len(groups[0])
        mine = tf.one_hot(_place(groups, position), size, on_value=True, off_value=False, dtype=tf.bool)
        rows = tf.where(tf.reshape(mine, [size] + [1] * x.shape.rank), x[None], tf.zeros([], x.dtype))
        return self.all_reduce(rows, position, groups, "SUM")

    def reduce(self, x: tf.Tensor, size: int, key: int | tf.Tensor, merge: str) -> tf.Tensor:
        """TensorFlow's own operation; each call in a program is a meeting of its own."""
        return tf.raw_ops.CollectiveReduceV2(
            input=x,
            group_size=size,
            group_key=key,
            instance_key=next(self._instances),
            ordering_token=[],
            merge_op=merge,
            final_op="Id",
        )

    def keys(self, groups: Groups) -> list[int]:
        """The key of each position's group: one for each set of devices, in the whole process."""
        with self._lock:
            known = (self.devices, tuple(map(tuple, groups)))
            if known not in self._groups:
                numbered = zip(self._next_group, groups, strict=False)
                keys = {position: key for key, group in numbered for position in group}
                self._groups[known] = [keys[position] for position in range(len(keys))]
            return self._groups[known]


class CompiledCollectives(Collectives):
    """By XLA, as StableHLO, whose replicas are the mesh positions.

    XLA takes a program for one of several replicas, and asks TensorFlow which devices they are, when the program has
    one of TensorFlow's collective operations over all of them: `begin` puts a small one there. Exchanges are gathers of
    which each device keeps a part: XLA's own ones fail in programs that TensorFlow starts ("device_count_ > 0").
    """

    def begin(self) -> None:
        size, whole = len(self.devices), RuntimeCollectives(self.devices)
        whole.reduce(tf.zeros([1]), size, whole.keys([range(size)])[0], "Add")

    def all_reduce(self, x: tf.Tensor, position: tf.Tensor, groups: Groups, reduction: str) -> tf.Tensor:
        if len(groups[0]) == 1:
            return x
        module = Module([x])
        return module.run([module.all_reduce(module.arguments[0], _REDUCTIONS[reduction][1], groups)])[0]

    def all_gather(self, x: tf.Tensor, position: tf.Tensor, groups: Groups) -> tf.Tensor:
        module = Module([x[None]])
        return module.run([module.all_gather(module.arguments[0], groups)])[0]


def _at(values: Sequence[int | bool], position: tf.Tensor) -> tf.Tensor:
    """The value that a table has for this device: a scalar."""
    return tf.gather(tf.constant(values), position)


def _place(groups: Groups, position: tf.Tensor) -> tf.Tensor:
    """Where this device stands in its group: int32 scalar."""
    place = {member: i for group in groups for i, member in enumerate(group)}
    return _at([place[i] for i in range(len(place))], position)
