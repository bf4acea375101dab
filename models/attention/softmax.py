"""Softmax attention, global and local, and its cache of keys and values."""

from __future__ import annotations

from dataclasses import dataclass

from gpt_mesh.meshes.compat import mtf

import tensorflow as tf

from gpt_mesh.meshes import cpu_matmul
from gpt_mesh.models.attention import slices
from gpt_mesh.models.attention.backend import MASKED, Backend, Problem, View
from gpt_mesh.models.attention.blocks import Blocks
from gpt_mesh.models.attention.cudnn import Cudnn
from gpt_mesh.models.attention.kind import DecodePosition, Heads, Kind, Loop, State, StateTensor
from gpt_mesh.models.attention.native import Native
from gpt_mesh.models.attention.plain import OnMesh, Plain
from gpt_mesh.models.attention.slices import Part
from gpt_mesh.models.attention.streaming import Streaming
from gpt_mesh.models.context import Context
from gpt_mesh.models.dims import Dims
from gpt_mesh.models.kernels import kernel

# In order of preference.
BACKENDS: tuple[Backend, ...] = (Cudnn(), Native(), Blocks(), Streaming(), Plain(), OnMesh())


def attend(problem: Problem) -> mtf.Tensor:
    """[batch, sequence, heads, features_per_head], by the first backend that supports the problem."""
    return next(backend for backend in BACKENDS if backend.supports(problem)).attend(problem)


@dataclass(frozen=True)
class Softmax(Kind):
    """Softmax attention. With `local`, a query sees `local_attention_radius` positions in each direction that it may
    look, its own included.

    The state is the keys and the values, [batch, kv_heads, memory_length, features_per_head] each, position i in slot
    i. In a loop over new tokens they are only read, and the new positions stand beside them, the n-th new token in slot
    n of all rows: no large tensor is written for a token. In both parts of a loop the keys are transposed, [batch,
    kv_heads, features_per_head, positions], because the matmul of queries and keys runs along positions; else XLA would
    transpose all keys for every token.
    """

    local: bool

    def full(self, ctx: Context, heads: Heads) -> mtf.Tensor:
        return attend(self._problem(ctx, heads))

    def prefill(self, ctx: Context, heads: Heads, lengths: mtf.Tensor) -> tuple[mtf.Tensor, State]:
        del lengths  # padding is overwritten before a query sees it
        problem = self._problem(ctx, heads)
        state = zip((problem.k, problem.v), self.state(ctx.dims), strict=True)
        kept = tuple(mtf.transpose(x, tensor.shape) for x, tensor in state)
        return attend(problem), kept

    def step(self, ctx: Context, heads: Heads, place: DecodePosition, loop: Loop) -> tuple[mtf.Tensor, State]:
        keys, values = loop.current
        current = (_write(ctx, keys, heads.k, place, axis=3), _write(ctx, values, heads.v, place, axis=2))
        return _attend_once(ctx, heads, Loop(loop.fixed, current), place, self._window(ctx)), current

    def state(self, dims: Dims) -> tuple[StateTensor, ...]:
        return (StateTensor((dims.batch, dims.kv_heads, dims.memory_length, dims.features_per_head)),) * 2

    def begin(self, ctx: Context, state: State) -> Loop:
        """See `Kind.begin`. New positions begin as zeros."""
        keys, values = state
        batch, heads, _, features = keys.shape.dims
        new = ctx.dims.new_positions
        new_keys = mtf.zeros(ctx.mesh, mtf.Shape([batch, heads, features, new]), keys.dtype)
        new_values = mtf.zeros(ctx.mesh, mtf.Shape([batch, heads, new, features]), values.dtype)
        return Loop((_transposed(keys), values), (new_keys, new_values))

    def merge(self, ctx: Context, state: State, current: State, place: DecodePosition) -> State:
        new_keys, new_values = current
        pairs = zip(state, (_transposed(new_keys), new_values), strict=True)
        return tuple(_merge(ctx, old, new, place) for old, new in pairs)

    def _problem(self, ctx: Context, heads: Heads) -> Problem:
        dims = ctx.dims
        k, v = (ctx.rename_positions(x, dims.sequence, dims.memory_length) for x in (heads.k, heads.v))
        return Problem(ctx, heads, k, v, View(ctx.causal, self._window(ctx)))

    def _window(self, ctx: Context) -> int | None:
        return ctx.model.local_attention_radius if self.local else None


def _attend_once(ctx: Context, heads: Heads, loop: Loop, place: DecodePosition, window: int | None) -> mtf.Tensor:
    """Attention of the one new position of each row; the shape of the queries.

    Args:
        loop: older keys and values, and those of new positions, this one included; keys transposed.
        window: as in `View`; None: all.
    """
    dtype, memory, bias = ctx.statistics_dtype, heads.memory, heads.bias

    def matmul(x: tf.Tensor, y: tf.Tensor, **limit: tf.Tensor) -> tf.Tensor:
        return cpu_matmul.matmul(x, y, **limit) if ctx.cpu_kernels else tf.matmul(x, y)

    def attend(
        q: tf.Tensor, start: tf.Tensor, count: tf.Tensor, old_keys: tf.Tensor, new_keys: tf.Tensor,
        old_values: tf.Tensor, new_values: tf.Tensor, *rest: tf.Tensor,
    ) -> tf.Tensor:  # fmt: skip
        batch, _, n_heads, features = q.shape
        kv_heads = old_keys.shape[1]
        # The queries of a group are the rows of one matmul, so each head of keys and values is read once. With one
        # position, a transpose is a reshape.
        wide = tf.cast(tf.reshape(q, [batch, kv_heads, n_heads // kv_heads, features]), dtype)
        first, query = start[:, None], start[:, None] + count
        old_slots, new_slots = (tf.range(keys.shape[3])[None, :] for keys in (old_keys, new_keys))
        seen = [old_slots < first, new_slots <= count]
        if window is not None:
            oldest = query - window
            seen = [tf.logical_and(seen[0], old_slots > oldest), tf.logical_and(seen[1], first + new_slots > oldest)]
        logits = [matmul(wide, tf.cast(old_keys, dtype), kept=start), matmul(wide, tf.cast(new_keys, dtype))]
        if bias is not None:
            places = [old_slots, first + new_slots]
            added = [bias.function(query[:, None], p[:, None], *rest[len(memory) :]) for p in places]
            by_group = [tf.reshape(b, [-1, *x.shape[1:]]) for x, b in zip(logits, added, strict=True)]
            logits = [slices.biased(x, b) for x, b in zip(logits, by_group, strict=True)]
        logits = [tf.where(s[:, None, None, :], x, MASKED) for s, x in zip(seen, logits, strict=True)]
        parts = [
            Part(logits[0], lambda weights: matmul(weights, old_values, summed=start)),
            Part(logits[1], lambda weights: matmul(weights, new_values)),
            *slices.learned(wide, "bhqf", rest[: len(memory)]),
        ]
        return tf.reshape(slices.attend(parts, q.dtype), q.shape)

    operands = [heads.q, place.start, place.count, loop.fixed[0], loop.current[0], loop.fixed[1], loop.current[1]]
    operands += [*memory, *([] if bias is None else bias.operands)]
    outputs = [(heads.q.shape, heads.q.dtype)]
    split = [ctx.dims.batch, ctx.dims.heads, ctx.dims.kv_heads]
    return kernel(attend, operands, outputs, split, "attend_once")[0]


def _write(ctx: Context, new: mtf.Tensor, x: mtf.Tensor, place: DecodePosition, axis: int) -> mtf.Tensor:
    """`new` with x [batch, sequence, kv_heads, features_per_head] in slot `count` of its new positions, its `axis`."""

    def write(new: tf.Tensor, x: tf.Tensor, count: tf.Tensor) -> tf.Tensor:
        here = tf.equal(tf.range(new.shape[axis]), count)
        here = here[None, None, :, None] if axis == 2 else here[None, None, None, :]
        return tf.where(here, tf.transpose(x, [0, 2, 1, 3] if axis == 2 else [0, 2, 3, 1]), new)

    split = [ctx.dims.batch, ctx.dims.kv_heads]
    return kernel(write, [new, x, place.count], [(new.shape, new.dtype)], split, "cache_write")[0]


def _merge(ctx: Context, old: mtf.Tensor, new: mtf.Tensor, place: DecodePosition) -> mtf.Tensor:
    """`old` [batch, kv_heads, memory_length, features_per_head] with `count` slots of `new` from slot `start` on."""

    def merge(old: tf.Tensor, new: tf.Tensor, start: tf.Tensor, count: tf.Tensor) -> tf.Tensor:
        slots = tf.range(old.shape[2])[None, :] - start[:, None]
        found = tf.gather(new, tf.clip_by_value(slots, 0, new.shape[2] - 1), axis=2, batch_dims=1)
        is_new = tf.logical_and(slots >= 0, slots < count)
        return tf.where(is_new[:, None, :, None], found, old)

    operands = [old, new, place.start, place.count]
    return kernel(merge, operands, [(old.shape, old.dtype)], [ctx.dims.batch, ctx.dims.kv_heads], "merge")[0]


def _transposed(keys: mtf.Tensor) -> mtf.Tensor:
    """The last two dimensions exchanged."""
    *rows, inner, last = keys.shape.dims
    return mtf.transpose(keys, mtf.Shape([*rows, last, inner]))
