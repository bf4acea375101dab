"""Where a layer's keys and values come from: this pass alone, or also from the positions before it.

One model function serves training and decoding; only the cache it is given differs.

* `FullPass`: every position sees the keys of this pass. Training, evaluation, scoring.
* `Prefill`: the same, and keeps them: a prompt read in one pass.
* `Decode`: one new position, whose keys join those kept before.
"""

from __future__ import annotations

from meshes.compat import mtf
from models.context import Context
from models.kernels import kernel

import tensorflow as tf  # isort: skip  (after compat, which quiets its start-up)

State = tuple[mtf.Tensor, mtf.Tensor]


class FullPass:
    """Positions 0 … sequence-1, in one pass."""

    def positions(self, ctx: Context) -> mtf.Tensor:
        """int32 [sequence]: the position of each query in its sequence."""
        return mtf.range(ctx.mesh, ctx.dims.sequence, tf.int32)

    def extend(self, ctx: Context, keys: mtf.Tensor, values: mtf.Tensor) -> State:
        """Keys and values of this pass, [batch, sequence, heads, features_per_head], as [batch, memory_length, …]."""
        return _as_memory(ctx, keys), _as_memory(ctx, values)


class Prefill(FullPass):
    """A full pass that keeps each layer's keys and values, padded to `memory` positions, in `states`."""

    def __init__(self, memory: mtf.Dimension) -> None:
        self.memory = memory
        self.states: list[State] = []

    def extend(self, ctx: Context, keys: mtf.Tensor, values: mtf.Tensor) -> State:
        keys, values = super().extend(ctx, keys, values)
        missing = self.memory.size - ctx.dims.memory_length.size
        pad = [mtf.pad(x, [0, missing], ctx.dims.memory_length.name) if missing else x for x in (keys, values)]
        self.states.append((pad[0], pad[1]))
        return keys, values


class Decode:
    """One position (a sequence dimension of size 1) after the kept ones; `states` are taken and replaced layer by
    layer.
    """

    def __init__(self, position: mtf.Tensor, states: list[State]) -> None:
        """`position`: int32 scalar, of the new token. `states`: of each layer, in order."""
        self.position = position
        self.states = list(states)
        self._layer = 0

    def positions(self, ctx: Context) -> mtf.Tensor:
        return mtf.broadcast(self.position, mtf.Shape([ctx.dims.sequence]))

    def extend(self, ctx: Context, keys: mtf.Tensor, values: mtf.Tensor) -> State:
        old_keys, old_values = self.states[self._layer]
        state = (self._write(ctx, old_keys, keys), self._write(ctx, old_values, values))
        self.states[self._layer] = state
        self._layer += 1
        return state

    def _write(self, ctx: Context, memory: mtf.Tensor, new: mtf.Tensor) -> mtf.Tensor:
        """`memory` with the slot of the new position replaced."""
        new = mtf.reshape(new, mtf.Shape([dim for dim in new.shape.dims if dim != ctx.dims.sequence]))
        slots = mtf.range(ctx.mesh, ctx.dims.memory_length, tf.int32)

        def write(memory: tf.Tensor, new: tf.Tensor, slots: tf.Tensor, position: tf.Tensor) -> tf.Tensor:
            return tf.where(tf.reshape(slots == position, [1, -1, 1, 1]), new[:, None], memory)

        operands = [memory, new, slots, self.position]
        return kernel(write, operands, [(memory.shape, memory.dtype)], memory.shape.dims, "cache_write")[0]


Cache = FullPass | Prefill | Decode


def _as_memory(ctx: Context, x: mtf.Tensor) -> mtf.Tensor:
    return mtf.replace_dimensions(x, ctx.dims.sequence, ctx.dims.memory_length)
