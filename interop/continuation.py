"""Prefill and advance in one graph of plain TensorFlow, a group of rows at a time."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any

from gpt_mesh.meshes.compat import mtf

import tensorflow as tf

from gpt_mesh.config import Config
from gpt_mesh.interop.branches import for_size, separate, sizes_to
from gpt_mesh.meshes.placement import PlacementMesh
from gpt_mesh.meshes.variables import VariableStore
from gpt_mesh.models.attention.kinds import positions_axes
from gpt_mesh.models.next_token import Controls
from gpt_mesh.sample import Batch, BatchState, build_advance, build_prefill, continue_rows

GROUP = 8  # rows that advance together: a step reads all weights, for one row or for eight
MIN_LENGTH, MIN_ROOM = 32, 256  # sizes of the smallest graphs: tokens of a prompt, and positions in the caches


class ReadingMesh(PlacementMesh):
    """One device, which reads weights as tensors, since TensorFlow cannot vectorise a gather from a variable."""

    def __init__(self, store: VariableStore) -> None:
        super().__init__(mtf.Shape([]), mtf.LayoutRules([]), [""], store)

    def slices_of(self, variable: mtf.Variable) -> list[tf.Tensor]:
        """See `PlacementMesh`."""
        return [tf.cast(variable.get_master().read_value(), variable.slice_dtype)]


def lengths_of(n_ctx: int) -> list[int]:
    """The lengths, of prompts and of scored tokens, that have a graph."""
    return sizes_to(n_ctx, MIN_LENGTH, 4)


def to_length(tokens: tf.Tensor, length: int) -> tf.Tensor:
    """[rows, length], truncated or padded at the end."""
    missing = tf.maximum(0, length - tf.shape(tokens)[1])
    return tf.ensure_shape(tf.pad(tokens[:, :length], [[0, 0], [0, missing]]), [tokens.shape[0], length])


class Continuation:
    """Continues prompts with the weights of a store, on one device, uncompiled."""

    def __init__(self, config: Config, store: VariableStore, eos_ids: tuple[int, ...]) -> None:
        """`eos_ids`: each of them ends a row; empty: rows only end at their length."""
        self._config, self._store, self._eos_ids = config, store, eos_ids
        self._mesh_impl = ReadingMesh(store)
        self._lengths = lengths_of(config.model.n_ctx)
        self._rooms = sizes_to(config.model.n_ctx, MIN_ROOM, 8)
        self._axes = positions_axes(config.model)
        self._readers: dict[int, Any] = {}

    def of(self, prompts: tf.Tensor, lengths: tf.Tensor, ends: tf.Tensor, controls: Controls) -> tf.Tensor:
        """The new tokens of each row, int32 [batch, maximum new tokens]; values after the end of a row are
        undefined.

        Args: see `sample.Batch`. The batch may have any size.
        """
        arrays = [prompts, lengths, ends, *controls]
        return tf.cond(
            tf.shape(prompts)[0] > 1, partial(self._in_groups, GROUP, arrays), partial(self._in_groups, 1, arrays)
        )

    def _in_groups(self, size: int, arrays: Sequence[tf.Tensor]) -> tf.Tensor:
        """The same in groups of `size` rows; the last group is padded with empty rows."""
        prompts, lengths, ends, *_ = arrays
        rows, max_new = tf.shape(prompts)[0], tf.maximum(0, tf.reduce_max(ends - lengths))
        count = -(-rows // size)
        index = tf.range(count * size)

        def grouped(x: tf.Tensor) -> tf.Tensor:
            return tf.reshape(x, tf.concat([[count, size], tf.shape(x)[1:]], 0))

        filled = [grouped(tf.gather(x, tf.minimum(index, rows - 1))) for x in arrays]
        real = grouped(index < rows)
        filled[1], filled[2] = tf.where(real, filled[1], 1), tf.where(real, filled[2], 0)
        continued = separate(self._group)

        def run(group: Sequence[tf.Tensor]) -> tf.Tensor:
            for x in group[1:]:
                x.set_shape([size])
            group[0].set_shape([size, None])
            found = continued(*group)
            return tf.pad(found, [[0, 0], [0, max_new - tf.shape(found)[1]]])

        result = tf.TensorSpec([size, None], tf.int32)
        found = tf.map_fn(run, filled, fn_output_signature=result, parallel_iterations=1)
        return tf.reshape(found, [count * size, max_new])[:rows]

    def _group(self, prompts: tf.Tensor, lengths: tf.Tensor, ends: tf.Tensor, *controls: tf.Tensor) -> tf.Tensor:
        """New tokens of a group, int32 [group, added]."""
        longest, size = tf.reduce_max(lengths), lengths.shape[0]
        inside = tf.cast(tf.sequence_mask(lengths, tf.shape(prompts)[1]), tf.int32)
        places = tf.stack([tf.broadcast_to(tf.range(size)[:, None], tf.shape(prompts)), prompts], -1)
        seen = tf.scatter_nd(places, inside, [size, self._config.model.n_vocab]) > 0
        first, seen, *caches = self._read([prompts, lengths, ends, seen, *controls], longest)
        state = BatchState(first, lengths, ends, seen, Controls(*controls), caches)
        room = tf.maximum(longest, tf.reduce_max(ends))
        return for_size(self._rooms, room, lambda size: separate(partial(self._continue, state, size))())

    def _read(self, inputs: Sequence[tf.Tensor], longest: tf.Tensor) -> list[tf.Tensor]:
        """The result of `sample.build_prefill` for a `sample.Batch`, with keys and values padded to `longest`. Rows are
        processed one by one, so that none is padded to the length of another.
        """

        def read(row: Sequence[tf.Tensor]) -> list[tf.Tensor]:
            found: list[tf.Tensor] = for_size(self._lengths, row[1], lambda length: self._reader(length)(longest, *row))
            return found

        forms = [tf.TensorSpec(x.shape[1:], x.dtype) for x in inputs]
        outputs = self._reader(self._lengths[0]).get_concrete_function(tf.TensorSpec([], tf.int32), *forms).outputs
        results = [tf.TensorSpec(x.shape, x.dtype) for x in outputs]
        found: list[tf.Tensor] = tf.map_fn(read, list(inputs), fn_output_signature=results, parallel_iterations=1)
        return [tf.ensure_shape(x, [inputs[0].shape[0], *x.shape[1:]]) for x in found]

    def _reader(self, length: int) -> Any:
        """Prefill of a prompt of at most this length. All groups share this function, whose graph is the largest."""

        def read(longest: tf.Tensor, *row: tf.Tensor) -> list[tf.Tensor]:
            arrays = [x[None] for x in row]
            batch = Batch.from_arrays([to_length(arrays[0], length), *arrays[1:]])
            with self._store.scope():
                first, seen, *caches = build_prefill(
                    batch, config=self._config, mesh_impl=self._mesh_impl, eos_ids=self._eos_ids, top=None
                )
            kept = zip(caches, self._axes, strict=True)
            found = [first, seen, *(_resized(x, axis, longest) for x, axis in kept)]
            return [x[0] for x in found]

        if length not in self._readers:
            self._readers[length] = separate(read)
        return self._readers[length]

    def _continue(self, state: BatchState, room: int) -> tf.Tensor:
        """The new tokens, from a graph with caches of `room` positions."""
        caches = [_resized(x, axis, room) for x, axis in zip(state.caches, self._axes, strict=True)]

        def advance(state: BatchState, limit: tf.Tensor) -> list[tf.Tensor]:
            with self._store.scope():
                return build_advance(
                    state, limit, config=self._config, mesh_impl=self._mesh_impl, eos_ids=self._eos_ids, top=None
                )

        return continue_rows(dataclasses.replace(state, caches=caches), advance, self._eos_ids)


def _resized(cache: tf.Tensor, axis: int | None, size: int | tf.Tensor) -> tf.Tensor:
    """A cache cut or padded to `size` positions along `axis`; unchanged if it has no such axis."""
    if axis is None:
        return cache
    missing = tf.maximum(0, size - tf.shape(cache)[axis])
    cut = cache[(slice(None),) * axis + (slice(size),)]
    padded = tf.pad(cut, [[0, missing if i == axis else 0] for i in range(cache.shape.rank)])
    shape = cache.shape.as_list()
    return tf.ensure_shape(padded, [*shape[:axis], size if isinstance(size, int) else None, *shape[axis + 1 :]])
