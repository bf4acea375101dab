"""What a layer knows of earlier positions.

One model function serves training and decoding; only the cache that it is given differs.

* `FullPass`: every position is in this pass. Training, evaluation, scoring.
* `Packed`: the same, where a row holds several samples. Fine-tuning.
* `Prefill`: as `FullPass`, and it keeps the state that decoding continues from: a prompt read in one pass.
* `Decode`: one new position of each row, which changes that state.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from gpt_mesh.meshes.compat import mtf

from gpt_mesh.models.attention.kind import DecodePosition, Heads, Kind, Loop, State
from gpt_mesh.models.context import Context

import tensorflow as tf  # isort: skip  (after compat, which quiets its start-up)


class FullPass:
    """Positions 0 … sequence-1, in one pass."""

    def positions(self, ctx: Context) -> mtf.Tensor:
        """int32 [sequence]: the position of each query in its sequence."""
        return mtf.range(ctx.mesh, ctx.dims.sequence, tf.int32)

    def attend(self, ctx: Context, kind: Kind, heads: Heads) -> mtf.Tensor:
        """[batch, sequence, heads, features_per_head]."""
        return kind.full(ctx, heads)


class Packed(FullPass):
    """A full pass over rows that hold several samples, each of which attends to itself alone."""

    def __init__(self, starts: mtf.Tensor) -> None:
        """`starts`: int32 [batch, sequence], the first position of each position's sample."""
        self.starts = starts

    def positions(self, ctx: Context) -> mtf.Tensor:
        """int32 [batch, sequence]: the position of each query in its sample."""
        places = mtf.range(ctx.mesh, ctx.dims.sequence, tf.int32)
        return mtf.add(places, mtf.negative(self.starts), output_shape=self.starts.shape)

    def attend(self, ctx: Context, kind: Kind, heads: Heads) -> mtf.Tensor:
        """[batch, sequence, heads, features_per_head]."""
        places = mtf.range(ctx.mesh, ctx.dims.sequence, tf.int32)
        return kind.full(ctx, dataclasses.replace(heads, positions=places, starts=self.starts))


class Prefill(FullPass):
    """A full pass that keeps each attention layer's state in `states`, for decoding each row from its own end on."""

    def __init__(self, lengths: mtf.Tensor) -> None:
        """`lengths`: int32 [batch]; a row's positions from its length on are padding."""
        self.lengths = lengths
        self.states: list[State] = []

    def attend(self, ctx: Context, kind: Kind, heads: Heads) -> mtf.Tensor:
        attended, state = kind.prefill(ctx, heads, self.lengths)
        self.states.append(state)
        return attended


class Decode:
    """One position (a sequence dimension of size 1) after those known; rows may differ in length."""

    def __init__(self, place: DecodePosition, loops: Sequence[Loop]) -> None:
        """
        Args:
            place: of the new token.
            loops: the state of each attention layer, in order.
        """
        self.place = place
        self._waiting = list(reversed(loops))
        self.current: list[State] = []  # of the layers that have run, with the new position

    def positions(self, ctx: Context) -> mtf.Tensor:
        """int32 [batch, sequence], of the one new position of each row."""
        return mtf.broadcast(self.place.start + self.place.count, mtf.Shape([ctx.dims.batch, ctx.dims.sequence]))

    def attend(self, ctx: Context, kind: Kind, heads: Heads) -> mtf.Tensor:
        """[batch, sequence, heads, features_per_head]."""
        attended, current = kind.step(ctx, heads, self.place, self._waiting.pop())
        self.current.append(current)
        return attended


Cache = FullPass | Packed | Prefill | Decode
