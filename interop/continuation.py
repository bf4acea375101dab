"""Prompts continued in one graph of plain TensorFlow, a group of rows at a time."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any

from gpt_mesh.meshes.compat import mtf

import tensorflow as tf

from gpt_mesh.config import Config
from gpt_mesh.interop.branches import apart, at_least, sizes_to
from gpt_mesh.meshes.placement import PlacementMesh
from gpt_mesh.meshes.variables import VariableStore
from gpt_mesh.models.attention.kinds import positions_axes
from gpt_mesh.models.next_token import Controls
from gpt_mesh.sample import Inputs, build_advance, build_prefill

GROUP = 8  # rows that go on together: a step reads all weights, for one row or for eight
CHUNK = 32  # tokens between two mergers of new keys and values with the older ones
FIRST_LENGTH, FIRST_ROOM = 32, 256  # the smallest graphs: of prompts, and of positions that a group has room for


class ReadingMesh(PlacementMesh):
    """One device, on which weights are read as tensors: TensorFlow cannot vectorise a lookup in a variable."""

    def __init__(self, store: VariableStore) -> None:
        super().__init__(mtf.Shape([]), mtf.LayoutRules([]), [""], store)

    def slices_of(self, variable: mtf.Variable) -> list[tf.Tensor]:
        """See `PlacementMesh`."""
        return [tf.cast(variable.get_master().read_value(), variable.slice_dtype)]


def lengths_of(n_ctx: int) -> list[int]:
    """Of prompts, and of what is scored: those that have a graph."""
    return sizes_to(n_ctx, FIRST_LENGTH, 4)


def to_length(tokens: tf.Tensor, length: int) -> tf.Tensor:
    """[rows, length], cut or padded at the end."""
    missing = tf.maximum(0, length - tf.shape(tokens)[1])
    return tf.ensure_shape(tf.pad(tokens[:, :length], [[0, 0], [0, missing]]), [tokens.shape[0], length])


@dataclasses.dataclass(frozen=True)
class _State:
    """A group between two tokens: see `sample.build_advance`. Softmax layers have room for the prompts alone."""

    newest: tf.Tensor
    seen: tf.Tensor
    lengths: tf.Tensor
    ends: tf.Tensor
    controls: Controls
    states: Sequence[tf.Tensor]


class Continuation:
    """Continues prompts with the weights of a store, on one device, uncompiled."""

    def __init__(self, config: Config, store: VariableStore, eos_id: int | None) -> None:
        """`eos_id`: where a row ends; None: only at its length."""
        self._config, self._store, self._eos_id = config, store, eos_id
        self._mesh_impl = ReadingMesh(store)
        self._lengths = lengths_of(config.model.n_ctx)
        self._rooms = sizes_to(config.model.n_ctx, FIRST_ROOM, 8)
        self._axes = positions_axes(config.model)
        self._readers: dict[int, Any] = {}

    def of(self, prompts: tf.Tensor, lengths: tf.Tensor, ends: tf.Tensor, controls: Controls) -> tf.Tensor:
        """The new tokens of each row, int32 [batch, most of a row]; what follows a row's end means nothing.

        Args: see `sample.Inputs`. The batch may have any size.
        """
        arrays = [prompts, lengths, ends, *controls]
        return tf.cond(
            tf.shape(prompts)[0] > 1, partial(self._in_groups, GROUP, arrays), partial(self._in_groups, 1, arrays)
        )

    def _in_groups(self, size: int, arrays: Sequence[tf.Tensor]) -> tf.Tensor:
        """The same, by groups of so many rows, the last filled up with rows that end before they begin."""
        prompts, lengths, ends, *_ = arrays
        rows, most = tf.shape(prompts)[0], tf.maximum(0, tf.reduce_max(ends - lengths))
        count = -(-rows // size)
        index = tf.range(count * size)

        def grouped(x: tf.Tensor) -> tf.Tensor:
            return tf.reshape(x, tf.concat([[count, size], tf.shape(x)[1:]], 0))

        filled = [grouped(tf.gather(x, tf.minimum(index, rows - 1))) for x in arrays]
        real = grouped(index < rows)
        filled[1], filled[2] = tf.where(real, filled[1], 1), tf.where(real, filled[2], 0)
        continued = apart(self._group)

        def run(group: Sequence[tf.Tensor]) -> tf.Tensor:
            for x in group[1:]:
                x.set_shape([size])
            group[0].set_shape([size, None])
            found = continued(*group)
            return tf.pad(found, [[0, 0], [0, most - tf.shape(found)[1]]])

        result = tf.TensorSpec([size, None], tf.int32)
        found = tf.map_fn(run, filled, fn_output_signature=result, parallel_iterations=1)
        return tf.reshape(found, [count * size, most])[:rows]

    def _group(self, prompts: tf.Tensor, lengths: tf.Tensor, ends: tf.Tensor, *controls: tf.Tensor) -> tf.Tensor:
        """New tokens of a group, int32 [group, added]."""
        longest, size = tf.reduce_max(lengths), lengths.shape[0]
        inside = tf.cast(tf.sequence_mask(lengths, tf.shape(prompts)[1]), tf.int32)
        places = tf.stack([tf.broadcast_to(tf.range(size)[:, None], tf.shape(prompts)), prompts], -1)
        seen = tf.scatter_nd(places, inside, [size, self._config.model.n_vocab]) > 0
        first, seen, *states = self._read([prompts, lengths, ends, seen, *controls], longest)
        state = _State(first, seen, lengths, self._without_ended(ends, first[:, None]), Controls(*controls), states)
        room = tf.maximum(longest, tf.reduce_max(ends))
        return at_least(self._rooms, room, lambda size: apart(partial(self._go_on, state, size))())

    def _read(self, inputs: Sequence[tf.Tensor], longest: tf.Tensor) -> list[tf.Tensor]:
        """What `sample.build_prefill` gives for `sample.Inputs`, keys and values padded to `longest`. One row after
        another, so that none is padded to another's length.
        """

        def read(row: Sequence[tf.Tensor]) -> list[tf.Tensor]:
            found: list[tf.Tensor] = at_least(self._lengths, row[1], lambda length: self._reader(length)(longest, *row))
            return found

        forms = [tf.TensorSpec(x.shape[1:], x.dtype) for x in inputs]
        outputs = self._reader(self._lengths[0]).get_concrete_function(tf.TensorSpec([], tf.int32), *forms).outputs
        results = [tf.TensorSpec(x.shape, x.dtype) for x in outputs]
        found: list[tf.Tensor] = tf.map_fn(read, list(inputs), fn_output_signature=results, parallel_iterations=1)
        return [tf.ensure_shape(x, [inputs[0].shape[0], *x.shape[1:]]) for x in found]

    def _reader(self, length: int) -> Any:
        """Reads a prompt of at most that length; for all groups the same function, as it has the largest graph."""

        def read(longest: tf.Tensor, *row: tf.Tensor) -> list[tf.Tensor]:
            arrays = [x[None] for x in row]
            inputs = Inputs.of([to_length(arrays[0], length), *arrays[1:]])
            with self._store.scope():
                first, seen, *states = build_prefill(
                    inputs, config=self._config, mesh_impl=self._mesh_impl, eos_id=self._eos_id, top=None
                )
            kept = zip(states, self._axes, strict=True)
            found = [first, seen, *(_resized(x, axis, longest) for x, axis in kept)]
            return [x[0] for x in found]

        if length not in self._readers:
            self._readers[length] = apart(read)
        return self._readers[length]

    def _go_on(self, state: _State, room: int) -> tf.Tensor:
        """The first new tokens and those after them, in a graph with room for so many positions."""
        states = [_resized(x, axis, room) for x, axis in zip(state.states, self._axes, strict=True)]

        def unfinished(newest: tf.Tensor, seen: Any, lengths: tf.Tensor, ends: tf.Tensor, *rest: Any) -> tf.Tensor:
            del newest, seen, rest
            return tf.reduce_any(ends > lengths + 1)

        def advance(
            newest: tf.Tensor, seen: tf.Tensor, lengths: tf.Tensor, ends: tf.Tensor, new: tf.Tensor, *states: tf.Tensor
        ) -> list[tf.Tensor]:
            limit = tf.minimum(CHUNK, tf.reduce_max(ends - lengths) - 1)
            with self._store.scope():
                count, tokens, seen, *after = build_advance(
                    newest, limit, lengths, ends, seen, state.controls, states, config=self._config,
                    mesh_impl=self._mesh_impl, eos_id=self._eos_id, top=None, chunk=CHUNK,
                )  # fmt: skip
            added = tokens[:, :count]
            ends = self._without_ended(ends, added)
            return [added[:, -1], seen, lengths + count, ends, tf.concat([new, added], 1), *after]

        first = state.newest[:, None]
        begun = [state.newest, state.seen, state.lengths, state.ends, first, *states]
        shapes = [x.shape for x in begun]
        shapes[4] = tf.TensorShape([first.shape[0], None])
        return tf.while_loop(unfinished, advance, begun, shape_invariants=shapes)[4]

    def _without_ended(self, ends: tf.Tensor, added: tf.Tensor) -> tf.Tensor:
        """`ends` of rows, 0 for those that have an end of text among their new tokens [group, added]."""
        return ends if self._eos_id is None else tf.where(tf.reduce_any(tf.equal(added, self._eos_id), 1), 0, ends)


def _resized(state: tf.Tensor, axis: int | None, size: int | tf.Tensor) -> tf.Tensor:
    """A state cut or padded to `size` positions along `axis`; unchanged if it has no such axis."""
    if axis is None:
        return state
    missing = tf.maximum(0, size - tf.shape(state)[axis])
    cut = state[(slice(None),) * axis + (slice(size),)]
    padded = tf.pad(cut, [[0, missing if i == axis else 0] for i in range(state.shape.rank)])
    shape = state.shape.as_list()
    return tf.ensure_shape(padded, [*shape[:axis], size if isinstance(size, int) else None, *shape[axis + 1 :]])
