"""What a layer knows of earlier positions.

One model function serves training and decoding; only the cache it is given differs.

* `FullPass`: every position is in this pass. Training, evaluation, scoring.
* `Prefill`: the same, and keeps what the positions after it will need: a prompt read in one pass.
* `Decode`: one new position, which adds to what was kept.

What is kept is a pair of tensors a layer: keys and values of softmax attention, sums over positions of linear
attention.
"""

from __future__ import annotations

from dataclasses import dataclass

from gpt_mesh.meshes.compat import mtf

from gpt_mesh.models.context import Context
from gpt_mesh.models.kernels import kernel

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
    """A full pass that keeps each attention layer's state in `states`, for decoding each row from its own end on."""

    def __init__(self, lengths: mtf.Tensor) -> None:
        """`lengths`: int32 [batch]; a row's positions from its length on are padding."""
        self.lengths = lengths
        self.states: list[State] = []

    def extend(self, ctx: Context, keys: mtf.Tensor, values: mtf.Tensor) -> State:
        """As in a full pass; keeps them as [batch, heads, memory_length, features_per_head]."""
        keys, values = super().extend(ctx, keys, values)
        dims = ctx.dims
        shape = mtf.Shape([dims.batch, dims.heads, dims.memory_length, dims.features_per_head])
        self.states.append((mtf.transpose(keys, shape), mtf.transpose(values, shape)))
        return keys, values


@dataclass(frozen=True)
class Place:
    """Where the new token of each row stands.

    Attributes:
        start: int32 [batch], the row's length when decoding began: what is kept has its positions before that.
        count: int32 scalar, new tokens before this one, the same for all rows.
    """

    start: mtf.Tensor
    count: mtf.Tensor


class Decode:
    """One position (a sequence dimension of size 1) after those known.

    Rows may differ in length. So that nothing large is written for a token, a softmax layer has two parts: `kept`,
    which decoding only reads, with position i in slot i; and the new positions, with the n-th new token in slot n of
    all rows. In both, keys are turned (see `turned`): the product of one query and keys runs along positions, and XLA
    would turn all keys again for each token.
    """

    def __init__(self, place: Place, kept: list[State | None], states: list[State]) -> None:
        """
        Args:
            place: of the new token.
            kept: of each attention layer, keys [batch, heads, features_per_head, memory_length] and values [batch,
                heads, memory_length, features_per_head]; None for linear attention.
            states: of each attention layer, in order: the same of new positions, with new_positions in place of
                memory_length, or the sums of linear attention. Replaced layer by layer.
        """
        self.place, self.kept, self.states = place, kept, list(states)
        self._layer = 0

    def positions(self, ctx: Context) -> mtf.Tensor:
        """int32 [batch, sequence], of the one new position of each row."""
        return mtf.broadcast(self.place.start + self.place.count, mtf.Shape([ctx.dims.batch, ctx.dims.sequence]))

    def take(self) -> State:
        """What the layer at hand has; to be replaced with `put`."""
        return self.states[self._layer]

    def put(self, state: State) -> None:
        """Keep this layer's new state, and turn to the next."""
        self.states[self._layer] = state
        self._layer += 1

    def extend(self, ctx: Context, keys: mtf.Tensor, values: mtf.Tensor) -> tuple[State, State]:
        """What is kept, and the new positions with this one, [batch, sequence, heads, features_per_head], among them.
        """
        kept, (old_keys, old_values) = self.kept[self._layer], self.take()
        assert kept is not None
        state = (self._write(ctx, old_keys, keys, axis=3), self._write(ctx, old_values, values, axis=2))
        self.put(state)
        return kept, state

    def _write(self, ctx: Context, new: mtf.Tensor, x: mtf.Tensor, axis: int) -> mtf.Tensor:
        """`new` with x, [batch, sequence, heads, features_per_head], in the slot `count` of new positions, its `axis`.
        """

        def write(new: tf.Tensor, x: tf.Tensor, count: tf.Tensor) -> tf.Tensor:
            here = tf.equal(tf.range(new.shape[axis]), count)
            here = here[None, None, :, None] if axis == 2 else here[None, None, None, :]
            return tf.where(here, tf.transpose(x, [0, 2, 1, 3] if axis == 2 else [0, 2, 3, 1]), new)

        split = [ctx.dims.batch, ctx.dims.heads]
        return kernel(write, [new, x, self.place.count], [(new.shape, new.dtype)], split, "cache_write")[0]


Cache = FullPass | Prefill | Decode


def turned(state: State) -> State:
    """Keys and values of softmax attention with the last two dimensions of the keys exchanged."""
    keys, values = state
    *rows, positions, features = keys.shape.dims
    return mtf.transpose(keys, mtf.Shape([*rows, features, positions])), values


def _as_memory(ctx: Context, x: mtf.Tensor) -> mtf.Tensor:
    return ctx.rename_positions(x, ctx.dims.sequence, ctx.dims.memory_length)
