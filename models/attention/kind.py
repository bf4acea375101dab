"""What each kind of attention offers: three ways to run it, and the state that decoding keeps for it.

* `full`: all positions in one pass. Training, evaluation, scoring.
* `prefill`: the same for prompts, and the state after them.
* `step`: one new position of each row, given that state.

The code that decodes asks a kind for its state and does not look inside: a state is a tuple of tensors, described by
`Kind.state`. Within a loop over new tokens it has two parts, `Loop.fixed`, which the loop only reads, and
`Loop.current`, which every step replaces; `Kind.begin` and `Kind.merge` convert.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from gpt_mesh.meshes.compat import mtf

from gpt_mesh.models.context import Context
from gpt_mesh.models.dims import Dims
from gpt_mesh.models.positions import Bias

State = tuple[mtf.Tensor, ...]


@dataclass(frozen=True)
class Heads:
    """What a layer attends with: projected, rotated, not yet attended.

    Attributes:
        q: [batch, sequence, heads, features_per_head].
        k, v: [batch, sequence, kv_heads, features_per_head]. Each head is read by a group of consecutive heads of q.
        memory: learned keys and values that every query sees, each [learned_memory, kv_heads, features_per_head]; empty
            if the layer has none.
        positions: int32, of the queries: [sequence], or [batch, sequence] in a step.
        bias: a term of the logits that depends on positions, or None.
        site: name of the layer for dropout; layers that share weights have different sites.
        starts: int32 [batch, sequence], where rows hold several samples: the first position of each query's sample,
            before which it sees nothing. None: a row is one sample.
    """

    q: mtf.Tensor
    k: mtf.Tensor
    v: mtf.Tensor
    memory: Sequence[mtf.Tensor]
    positions: mtf.Tensor
    bias: Bias | None
    site: str
    starts: mtf.Tensor | None = None


@dataclass(frozen=True)
class StateTensor:
    """One tensor of a layer's state.

    Attributes:
        dims: its dimensions. It grows with the sequence if `memory_length` is one of them.
        wide: whether it has the type of statistics (float32 or wider), not that of activations.
    """

    dims: tuple[mtf.Dimension, ...]
    wide: bool = False

    @property
    def shape(self) -> mtf.Shape:
        return mtf.Shape(list(self.dims))

    @property
    def positions_axis(self) -> int | None:
        """The axis with one slot a position; None if the tensor has the same size for any number of positions."""
        names = [dim.name for dim in self.dims]
        return names.index("memory_length") if "memory_length" in names else None


@dataclass(frozen=True)
class DecodePosition:
    """Where the new token of each row stands.

    Attributes:
        start: int32 [batch], the row's length when the loop began: older positions come before it.
        count: int32 scalar, new tokens before this one, the same for all rows.
    """

    start: mtf.Tensor
    count: mtf.Tensor


class Loop(NamedTuple):
    """The state of one layer in a loop over new tokens: the part that it reads, and the part that it replaces."""

    fixed: State
    current: State


class Kind(abc.ABC):
    """A kind of attention."""

    @abc.abstractmethod
    def full(self, ctx: Context, heads: Heads) -> mtf.Tensor:
        """Attention of all positions to each other: [batch, sequence, heads, features_per_head]."""

    @abc.abstractmethod
    def prefill(self, ctx: Context, heads: Heads, lengths: mtf.Tensor) -> tuple[mtf.Tensor, State]:
        """The same, and the state after each row's first `lengths` positions; those from there on are padding.

        Args:
            lengths: int32 [batch].
        """

    @abc.abstractmethod
    def step(self, ctx: Context, heads: Heads, place: DecodePosition, loop: Loop) -> tuple[mtf.Tensor, State]:
        """Attention of one new position of each row (a sequence of size 1), and `Loop.current` with that position."""

    @abc.abstractmethod
    def state(self, dims: Dims) -> tuple[StateTensor, ...]:
        """The tensors of a state, in order."""

    def begin(self, ctx: Context, state: State) -> Loop:
        """A state as a loop over up to `new_positions` tokens uses it."""
        del ctx
        return Loop((), state)

    def merge(self, ctx: Context, state: State, current: State, place: DecodePosition) -> State:
        """The state after a loop: `state` with its new positions; `place` is that of the next token."""
        del ctx, state, place
        return current
