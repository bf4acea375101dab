"""Collectives of an SPMD mesh: all-reduce, all-gather, all-to-all and permute within groups of devices.

Two implementations of the same operations:

* `RuntimeCollectives`: TensorFlow's collective operations, a ring over the devices of one or several processes. For
  programs that are not compiled.
* `CompiledCollectives`: XLA's, with NCCL between GPUs. The compiler schedules and combines them.

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
    """Operations that all devices of a mesh call together, each with its own slice."""

    def __init__(self, devices: Sequence[str]) -> None:
        """`devices`: full names; a device's index in this list is its position in the mesh."""
        self.devices = tuple(devices)

    @abc.abstractmethod
    def begin(self) -> None:
        """Called at the start of each device's program."""

    @abc.abstractmethod
    def all_reduce(self, x: tf.Tensor, position: tf.Tensor, groups: Groups, reduction: str) -> tf.Tensor:
        """The "SUM", "MAX" or "MIN" of x over the group, on each device of the group."""

    @abc.abstractmethod
    def all_gather(self, x: tf.Tensor, position: tf.Tensor, groups: Groups) -> tf.Tensor:
        """[group size, ...x]: the slices of the group, in its order, on each device of the group."""

    def all_to_all(self, x: tf.Tensor, position: tf.Tensor, groups: Groups) -> tf.Tensor:
        """For x [group size, ...]: row i of the result is this device's row of the group's i-th device."""
        return tf.gather(self.all_gather(x, position, groups), _place(groups, position), axis=1)

    def permute(self, x: tf.Tensor, position: tf.Tensor, sources: Sequence[int | None]) -> tf.Tensor:
        """The slice of the device at position `sources[own position]`; zeros where that is None."""
        everyone = self.all_gather(x, position, [range(len(sources))])
        found = tf.gather(everyone, _at([0 if s is None else s for s in sources], position))
        return tf.where(_at([s is not None for s in sources], position), found, tf.zeros_like(found))


class RuntimeCollectives(Collectives):
    """Collectives of TensorFlow's runtime. An all-gather is an all-reduce of slices padded with zeros: twice the
    traffic, but independent of the runtime's order of devices within a group.
    """

    _lock = threading.Lock()
    _instances = itertools.count(1)
    _next_group = itertools.count(1)
    _groups: ClassVar[dict[tuple[tuple[str, ...], tuple[tuple[int, ...], ...]], list[int]]] = {}

    def begin(self) -> None:
        """Does nothing."""

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
        """TensorFlow's operation; each call gets an instance key of its own."""
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
        """The group key of each position, unique in the process for each set of devices."""
        with self._lock:
            known = (self.devices, tuple(map(tuple, groups)))
            if known not in self._groups:
                numbered = zip(self._next_group, groups, strict=False)
                keys = {position: key for key, group in numbered for position in group}
                self._groups[known] = [keys[position] for position in range(len(keys))]
            return self._groups[known]


class CompiledCollectives(Collectives):
    """Collectives of XLA, as StableHLO. Its replicas are the mesh positions.

    XLA compiles a program for several replicas, and asks TensorFlow for their devices, only if the program has one of
    TensorFlow's collective operations over all of them; `begin` adds a small one. All-to-all and permute are gathers of
    which each device keeps a part: XLA's own fail in programs that TensorFlow starts ("device_count_ > 0").
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
    """This device's entry of a table: a scalar."""
    return tf.gather(tf.constant(values), position)


def _place(groups: Groups, position: tf.Tensor) -> tf.Tensor:
    """This device's index in its group: int32 scalar."""
    place = {member: i for group in groups for i, member in enumerate(group)}
    return _at([place[i] for i in range(len(place))], position)
