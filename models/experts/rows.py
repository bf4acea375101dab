"""The rows that experts read, on one device: one for each token and chosen expert, ordered by expert.

Three forms give the same numbers, to rounding:

- `SortedRows`: as many rows as there are choices, sorted, multiplied by native/experts.c. For CPUs.
- `SlottedRows`: a fixed number of slots for each expert, in batched matmuls that all devices do well. Choices beyond
  them are in `Overflow`.
- `SeparateRows`: a matrix for each choice, for a few tokens of many experts. Without gradients.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from gpt_mesh.meshes.compat import mtf  # noqa: F401  (before TensorFlow, which it keeps quiet)

import tensorflow as tf

from gpt_mesh.meshes import native

SPARE = 1.25  # slots of an expert, as a multiple of an even split
MIN_SLOTS = 64  # of an expert; fewer save no time
ROUND = 8  # slots are a multiple of this number, as matmuls prefer
MAX_BLOCK = 512  # choices beyond the slots that are computed together


class Rows(ABC):
    """Rows, and the matmuls with each expert's own matrix.

    Attributes:
        token: int32 [rows], the token that a row reads.
        filled: [rows], 1.0, or 0.0 where a row stands for no choice; None: all are filled.
        choice: int32 [rows], the choice that a row stands for, numbered token by token.
        place: int32 [choices], the row of each choice; any row for one without.
        placed: [choices], 1.0, or 0.0 for a choice without a row; None: all have one.
    """

    token: tf.Tensor
    choice: tf.Tensor
    place: tf.Tensor
    filled: tf.Tensor | None = None
    placed: tf.Tensor | None = None

    @abstractmethod
    def times(self, rows: tf.Tensor, matrices: tf.Tensor, *, transposed: bool = False) -> tf.Tensor:
        """[rows, summed] times [experts, summed, columns], or transposed, [experts, columns, summed]."""

    @abstractmethod
    def outer(self, a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
        """[experts, columns of a, columns of b]: the sum over each expert's rows of products of a row of each."""

    def read(self, x: tf.Tensor) -> tf.Tensor:
        """The rows of x [tokens, features] that experts read."""
        return tf.gather(x, self.token)

    def weigh(self, weights: tf.Tensor) -> tf.Tensor:
        """[rows, 1], from the weight of each choice [tokens, choices]; 0 where a row is not filled."""
        found = tf.gather(tf.reshape(weights, [-1]), self.choice)
        return (found if self.filled is None else found * tf.cast(self.filled, found.dtype))[:, None]

    def by_choice(self, rows: tf.Tensor) -> tf.Tensor:
        """[choices, ...], from [rows, ...]: zeros for a choice without a row."""
        found = tf.gather(rows, self.place)
        if self.placed is None:
            return found
        return found * tf.cast(tf.reshape(self.placed, [-1, *[1] * (rows.shape.rank - 1)]), rows.dtype)


class SortedRows(Rows):
    """One row for each choice, in C."""

    def __init__(self, ids: tf.Tensor, experts: int) -> None:
        """`ids`: int32 [tokens, choices], each from 0 to experts - 1."""
        count = ids.shape.num_elements()
        results = [tf.TensorSpec([n], tf.int32) for n in (count, count, experts)]
        self.choice, self.place, self._ends = native.call("experts_sort", [tf.reshape(ids, [-1])], results)
        self.token, self._experts = self.choice // ids.shape[1], experts

    def times(self, rows: tf.Tensor, matrices: tf.Tensor, *, transposed: bool = False) -> tf.Tensor:
        result = tf.TensorSpec([rows.shape[0], matrices.shape[1 if transposed else 2]], tf.float32)
        operands = [rows, self._ends, matrices]
        return native.call("experts_matmul", operands, [result], {"transposed": transposed})[0]

    def outer(self, a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
        result = tf.TensorSpec([self._experts, a.shape[1], b.shape[1]], tf.float32)
        return native.call("experts_outer", [a, b, self._ends], [result])[0]


class SeparateRows(Rows):
    """One row for each choice, with a matrix of its own."""

    def __init__(self, ids: tf.Tensor, experts: int) -> None:
        """`ids`: int32 [tokens, choices]; those outside of 0 … experts - 1 have no row."""
        flat = tf.reshape(ids, [-1])
        self.choice = self.place = tf.range(flat.shape[0])
        self.token = self.choice // ids.shape[1]
        here = _are_here(flat, experts)
        self.filled = self.placed = tf.cast(here, tf.float32)
        self._expert = tf.where(here, flat, 0)

    def times(self, rows: tf.Tensor, matrices: tf.Tensor, *, transposed: bool = False) -> tf.Tensor:
        own = tf.gather(matrices, self._expert)
        return tf.matmul(rows[:, None, :], own, transpose_b=transposed)[:, 0]

    def outer(self, a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
        raise NotImplementedError("only for passes without gradients")


class SlottedRows(Rows):
    """A fixed number of slots for each expert."""

    def __init__(self, ids: tf.Tensor, experts: int, slots: int) -> None:
        """`ids`: int32 [tokens, choices]; those outside of 0 … experts - 1 have no row."""
        flat = tf.reshape(ids, [-1])
        choices = flat.shape[0]
        here = _are_here(flat, experts)
        chosen = tf.one_hot(flat, experts, dtype=tf.int32)
        before = tf.reduce_sum(tf.cumsum(chosen, axis=0, exclusive=True) * chosen, 1)  # in the same expert's queue
        self.counts = tf.reduce_sum(chosen, 0)
        self.starts = tf.cumsum(self.counts, exclusive=True)
        own_start = tf.reduce_sum(chosen * self.starts, 1)
        # The choices in the order of their experts; a negative segment is dropped.
        order = tf.math.unsorted_segment_sum(tf.range(choices), tf.where(here, own_start + before, -1), choices)
        self.order, self.slots, self._experts = order, slots, experts
        queue = tf.range(slots)
        filled = tf.reshape(queue < self.counts[:, None], [-1])
        sources = tf.reshape(tf.minimum(self.starts[:, None] + queue, choices - 1), [-1])
        self.choice = tf.gather(order, sources)
        self.token = self.choice // ids.shape[1]
        placed = here & (before < slots)
        self.place = tf.where(placed, flat * slots + before, 0)
        self.filled, self.placed = tf.cast(filled, tf.float32), tf.cast(placed, tf.float32)

    def times(self, rows: tf.Tensor, matrices: tf.Tensor, *, transposed: bool = False) -> tf.Tensor:
        found = tf.matmul(self._by_expert(rows), matrices, transpose_b=transposed)
        return tf.reshape(found, [rows.shape[0], found.shape[2]])

    def outer(self, a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
        return tf.matmul(self._by_expert(a), self._by_expert(b), transpose_a=True)

    def _by_expert(self, rows: tf.Tensor) -> tf.Tensor:
        return tf.reshape(rows, [self._experts, self.slots, rows.shape[1]])


@dataclass(frozen=True)
class Block:
    """Choices of one expert that found no slot.

    Attributes:
        expert: int32 scalar.
        choice, token: int32 [size].
        filled: [size], 1.0, or 0.0 after the last of the expert's choices.
    """

    expert: tf.Tensor
    choice: tf.Tensor
    token: tf.Tensor
    filled: tf.Tensor


class Overflow:
    """The choices that found no slot, in blocks of one expert each."""

    def __init__(self, rows: SlottedRows, choices: int) -> None:
        """`choices`: of a token."""
        self._rows, self._choices, self._size = rows, choices, min(rows.slots, MAX_BLOCK)
        blocks = (tf.maximum(rows.counts - rows.slots, 0) + self._size - 1) // self._size
        self._ends, self._blocks = tf.cumsum(blocks), blocks
        self.count = self._ends[-1]

    def block(self, number: tf.Tensor) -> Block:
        """The block of that number, from 0 to `count` - 1."""
        rows = self._rows
        expert = tf.reduce_sum(tf.cast(self._ends <= number, tf.int32))
        ends, blocks, counts, starts = (
            tf.gather(x, expert) for x in (self._ends, self._blocks, rows.counts, rows.starts)
        )
        queue = rows.slots + (number - (ends - blocks)) * self._size + tf.range(self._size)
        choice = tf.gather(rows.order, tf.minimum(starts + queue, rows.order.shape[0] - 1))
        return Block(expert, choice, choice // self._choices, tf.cast(queue < counts, tf.float32))


def slots_of(tokens: int, choices: int, experts: int) -> int:
    """The slots of each of `experts` experts in all, for `tokens` tokens with that number of choices each."""
    even = -(-SPARE * tokens * choices // experts)
    return min(tokens, max(MIN_SLOTS, -(-int(even) // ROUND) * ROUND))


def _are_here(ids: tf.Tensor, experts: int) -> tf.Tensor:
    return (ids >= 0) & (ids < experts)
