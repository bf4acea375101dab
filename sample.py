"""Autoregressive decoding as mesh graphs: prefill reads prompts in one pass, advance adds tokens with caches.

Every way to generate text is made of these two: `build_prefill` and `build_advance` are functions of their own on
devices that hold a batch between calls (`engine.engine`), `build_generate` is both in one graph (a TPU's), and
`continue_rows` is a loop over `build_advance` in plain TensorFlow (a SavedModel's).

Rows of a batch may differ in length. Prompts stand at the left and are padded at their ends, where no real token sees
the padding; from there on every row adds a token at a time, each at its own position.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from gpt_mesh.meshes.compat import mtf

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from gpt_mesh import model_fns
from gpt_mesh.config import Config, GenerationSettings, ModelConfig
from gpt_mesh.models import gpt, next_token
from gpt_mesh.models.attention.cache import Decode, Prefill
from gpt_mesh.models.attention.kind import DecodePosition, Loop, State
from gpt_mesh.models.attention.kinds import by_layer, layer_kinds, positions_axes, state_tensors
from gpt_mesh.models.context import Context
from gpt_mesh.models.dims import Dims
from gpt_mesh.models.kernels import kernel
from gpt_mesh.models.next_token import CONTROL_TYPES, Controls

CHUNK = 32  # tokens of one call of `build_advance` at most: merging caches around them costs little then
MIN_ROOM = 256  # positions: a smaller cache saves nothing that matters, and each size is compiled


@dataclass(frozen=True)
class Row:
    """One row of a batch: a prompt, and how to continue it.

    Attributes:
        prompt: token ids, at least one and fewer than n_ctx.
        max_new_tokens: how many tokens are added, unless the context ends first.
        seed: of its random draws, which do not depend on the batch that the row is in.
        min_new_tokens: no end of text is drawn before this many. The others: see `models.next_token.Controls`.
    """

    prompt: Sequence[int]
    max_new_tokens: int
    seed: int
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    penalty: float = 1.0
    sparse: bool = False
    min_new_tokens: int = 0

    @staticmethod
    def of(prompt: Sequence[int], max_new_tokens: int, seed: int, settings: GenerationSettings) -> Row:
        """A row that is drawn as the settings say."""
        return Row(
            prompt, max_new_tokens, seed, temperature=settings.temperature, top_k=settings.top_k, top_p=settings.top_p,
            penalty=settings.repetition_penalty, sparse=settings.entmax, min_new_tokens=settings.min_new_tokens,
        )  # fmt: skip


@dataclass(frozen=True)
class Batch:
    """Rows to continue, as arrays or, in a graph, as tensors.

    Attributes:
        prompts: int32 [batch, width], each padded at its end.
        lengths: int32 [batch], of the prompts.
        ends: int32 [batch], the length of each row with its new tokens, at most n_ctx.
        seen: bool [batch, n_vocab], the tokens of the prompts.
        controls: of each row.
    """

    prompts: Any
    lengths: Any
    ends: Any
    seen: Any
    controls: Controls

    @staticmethod
    def of(rows: Sequence[Row], size: int, model: ModelConfig) -> Batch:
        """`size` rows. Those beyond the given ones have ended before they begin."""
        longest = max((len(row.prompt) for row in rows), default=1)
        width = padded_width(longest, model.n_ctx)
        prompts, lengths = np.zeros((size, width), np.int32), np.ones(size, np.int32)
        ends, seen = lengths.copy(), np.zeros((size, model.n_vocab), np.bool_)
        controls = Controls(*(np.zeros(size, kind.as_numpy_dtype) for kind in CONTROL_TYPES))
        controls.top_p[:], controls.penalty[:] = 1.0, 1.0
        for i, row in enumerate(rows):
            assert 0 < len(row.prompt) < model.n_ctx, (len(row.prompt), model.n_ctx)
            prompts[i, : len(row.prompt)] = row.prompt
            seen[i, list(row.prompt)] = True
            lengths[i] = len(row.prompt)
            ends[i] = min(model.n_ctx, len(row.prompt) + row.max_new_tokens)
            controls.seeds[i] = row.seed % 2**31
            controls.temperature[i], controls.penalty[i] = row.temperature, row.penalty
            controls.top_k[i], controls.top_p[i] = min(row.top_k, model.n_vocab), row.top_p
            controls.sparse[i] = row.sparse
            controls.min_length[i] = min(model.n_ctx, len(row.prompt) + row.min_new_tokens)
        return Batch(prompts, lengths, ends, seen, controls)

    @property
    def arrays(self) -> list[Any]:
        """All of it as a flat list."""
        return [self.prompts, self.lengths, self.ends, self.seen, *self.controls]

    @staticmethod
    def from_arrays(arrays: Sequence[Any]) -> Batch:
        """The batch whose `arrays` these are."""
        prompts, lengths, ends, seen, *controls = arrays
        return Batch(prompts, lengths, ends, seen, Controls(*controls))

    def continuations(self, tokens: NDArray[np.int32], eos_ids: tuple[int, ...]) -> list[list[int]]:
        """The tokens added to each row, up to the first end of text. `tokens`: [batch, new tokens]."""
        counts = self.ends - self.lengths
        rows = [row[:count].tolist() for row, count in zip(tokens, counts, strict=True)]
        return [list(itertools.takewhile(lambda token: token not in eos_ids, row)) for row in rows]


@dataclass(frozen=True)
class Chunk:
    """The tokens that one call added to each row.

    Attributes:
        tokens: int32 [batch, added]. What follows a row's end means nothing.
        logprobs, top_ids, top_logprobs: [batch, added] and twice [batch, added, top], where they were asked for.
    """

    tokens: NDArray[np.int32]
    logprobs: NDArray[np.float32] | None = None
    top_ids: NDArray[np.int32] | None = None
    top_logprobs: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class BatchState:
    """A batch between two calls, as arrays or tensors.

    Attributes:
        newest: int32 [batch], the last token of each row, which no cache has yet.
        lengths: int32 [batch], of each row without its newest token.
        ends: int32 [batch], the length at which each row ends; 0 for a row that was cancelled.
        seen: bool [batch, n_vocab], the tokens that a row has.
        controls: of each row.
        caches: the state of each layer of attention: see `models.attention.kinds`.
    """

    newest: Any
    lengths: Any
    ends: Any
    seen: Any
    controls: Controls
    caches: Sequence[Any]

    @property
    def arrays(self) -> list[Any]:
        """All of it as a flat list."""
        return [self.newest, self.lengths, self.ends, self.seen, *self.controls, *self.caches]

    @staticmethod
    def from_arrays(arrays: Sequence[Any]) -> BatchState:
        """The state whose `arrays` these are."""
        newest, lengths, ends, seen, *rest = arrays
        n = len(Controls._fields)
        return BatchState(newest, lengths, ends, seen, Controls(*rest[:n]), rest[n:])


def build_prefill(
    batch: Batch, *, config: Config, mesh_impl: Any, eos_ids: tuple[int, ...], top: int | None
) -> list[tf.Tensor]:
    """Read the prompts and draw a first token for each.

    Args:
        eos_ids: each of them ends a row.
        top: also give log-probabilities, and those of this many likeliest tokens.

    Returns:
        What `Decoding.draw` gives, [batch] and [batch, top]; whether each token was seen, [batch, n_vocab]; the
        state of each layer of attention, with the prompts' width as memory_length: see `models.attention.kinds`.
    """
    decoding, begun = _prefill(batch, config, mesh_impl, eos_ids, top)
    found = [*begun.drawn, begun.seen, *itertools.chain(*begun.states)]
    return _lowered(decoding.ctx, mesh_impl, found)


def build_advance(
    state: BatchState,
    limit: tf.Tensor,
    *,
    config: Config,
    mesh_impl: Any,
    eos_ids: tuple[int, ...],
    top: int | None,
) -> list[tf.Tensor]:
    """Add tokens to each row, until every row has ended or `limit` were added.

    Args:
        state: whose caches have room for lengths + limit positions.
        limit: int32 scalar, at most `CHUNK`.

    Returns:
        How many were added; what `Decoding.draw` gives, [batch, CHUNK] and [batch, CHUNK, top]; `seen` and the caches
        after it.
    """
    size, axes = state.newest.shape[0], positions_axes(config.model)
    room = max((x.shape[axis] for x, axis in zip(state.caches, axes, strict=True) if axis is not None), default=1)
    ctx = model_fns.make_context(config, mesh_impl, size, 1, memory=room)
    ctx = dataclasses.replace(ctx, dims=Dims.of(config.model, size, 1, room, CHUNK))
    rows = mtf.Shape([ctx.dims.batch])
    given = (state.newest, state.lengths, state.ends, *state.controls)
    newest, start, ends, *controls = [mtf.import_tf_tensor(ctx.mesh, x, rows) for x in given]
    decoding = Decoding(ctx, ends, Controls(*controls), eos_ids, top)
    kept = zip(state.caches, state_tensors(config.model, ctx.dims), strict=True)
    layers = by_layer(config.model, [mtf.import_tf_tensor(ctx.mesh, x, tensor.shape) for x, tensor in kept])
    seen = mtf.import_tf_tensor(ctx.mesh, state.seen, mtf.Shape([ctx.dims.batch, ctx.dims.whole_vocab]))
    limit = mtf.import_tf_tensor(ctx.mesh, limit)
    run = decoding.run(newest, seen, layers, start, limit, ctx.dims.new_positions)
    merged = itertools.chain(*decoding.merge(run, layers))
    return _lowered(ctx, mesh_impl, [run.count, *run.columns, run.seen, *merged])


def build_generate(
    batch: Batch, *, config: Config, mesh_impl: Any, eos_ids: tuple[int, ...], top: int | None
) -> list[tf.Tensor]:
    """Prefill and advance in one mesh graph: continue each prompt until an end of text or its end.

    Returns:
        What `Decoding.draw` gives, [batch, n_ctx] and [batch, n_ctx, top], for each new token; what follows a row's
        end means nothing.
    """
    decoding, begun = _prefill(batch, config, mesh_impl, eos_ids, top)
    new = decoding.ctx.dims.new_positions
    limit = mtf.constant(decoding.ctx.mesh, new.size, dtype=tf.int32)
    run = decoding.run(begun.drawn[0], begun.seen, begun.states, begun.lengths, limit, new)
    firsts = _lowered(decoding.ctx, mesh_impl, [*begun.drawn, *run.columns])
    n = len(run.columns)
    return [tf.concat([first[:, None], rest], 1) for first, rest in zip(firsts[:n], firsts[n:], strict=True)]


def continue_rows(
    state: BatchState, advance: Callable[[BatchState, tf.Tensor], list[tf.Tensor]], eos_ids: tuple[int, ...]
) -> tf.Tensor:
    """Every new token of each row, from its newest on: int32 [batch, added], in plain TensorFlow.

    Args:
        state: with room in its caches for all positions of its rows.
        advance: `build_advance` of a state and a limit.
    """
    def without_ended(ends: tf.Tensor, added: tf.Tensor) -> tf.Tensor:
        """`ends`, 0 for rows that have an end of text among their new tokens [batch, added]."""
        return tf.where(tf.reduce_any(next_token.is_any(added, eos_ids), 1), 0, ends) if eos_ids else ends

    def unfinished(written: tf.Tensor, newest: tf.Tensor, lengths: tf.Tensor, ends: tf.Tensor, *rest: Any) -> tf.Tensor:
        del written, newest, rest
        return tf.reduce_any(ends > lengths + 1)

    def body(written: tf.Tensor, *arrays: tf.Tensor) -> list[tf.Tensor]:
        before = BatchState.from_arrays([*arrays[:4], *state.controls, *arrays[4:]])
        limit = tf.minimum(CHUNK, tf.reduce_max(before.ends - before.lengths) - 1)
        count, tokens, seen, *caches = advance(before, limit)
        added = tokens[:, :count]
        ends = without_ended(before.ends, added)
        return [tf.concat([written, added], 1), added[:, -1], before.lengths + count, ends, seen, *caches]

    first = state.newest[:, None]
    ends = without_ended(state.ends, first)
    begun = [first, state.newest, state.lengths, ends, state.seen, *state.caches]
    shapes = [tf.TensorShape([first.shape[0], None]), *(x.shape for x in begun[1:])]
    return tf.while_loop(unfinished, body, begun, shape_invariants=shapes)[0]


def _lowered(ctx: Context, mesh_impl: Any, tensors: Sequence[mtf.Tensor]) -> list[tf.Tensor]:
    """The mesh graph's tensors as TensorFlow's."""
    lowering = mtf.Lowering(ctx.mesh.graph, {ctx.mesh: mesh_impl}, autostack=False)
    return [lowering.export_to_tf_tensor(tensor) for tensor in tensors]


@dataclass(frozen=True)
class _Begun:
    """A prefilled batch: the first new tokens, the tokens seen, each layer's state, the prompts' lengths."""

    drawn: list[mtf.Tensor]
    seen: mtf.Tensor
    states: list[State]
    lengths: mtf.Tensor


def _prefill(
    batch: Batch, config: Config, mesh_impl: Any, eos_ids: tuple[int, ...], top: int | None
) -> tuple[Decoding, _Begun]:
    """The prompts in one pass, and a first token drawn; and what advances from there."""
    size, width = batch.prompts.shape.as_list()
    ctx = model_fns.make_context(config, mesh_impl, size, width)
    rows = mtf.Shape([ctx.dims.batch])
    lengths, ends, *controls = (
        mtf.import_tf_tensor(ctx.mesh, x, rows) for x in (batch.lengths, batch.ends, *batch.controls)
    )
    prompts = mtf.import_tf_tensor(ctx.mesh, batch.prompts, mtf.Shape([ctx.dims.batch, ctx.dims.sequence]))
    seen = mtf.import_tf_tensor(ctx.mesh, batch.seen, mtf.Shape([ctx.dims.batch, ctx.dims.whole_vocab]))
    prefill = Prefill(lengths)
    logits = gpt.next_logits(ctx, prompts, prefill, lengths - 1)
    one = dataclasses.replace(ctx, dims=Dims.of(config.model, size, 1, width, max(1, config.model.n_ctx - 1)))
    decoding = Decoding(one, ends, Controls(*controls), eos_ids, top)
    drawn, seen = decoding.draw(logits, seen, lengths - 1)
    return decoding, _Begun(drawn, seen, prefill.states, lengths)


@dataclass(frozen=True)
class _Run:
    """What `Decoding.run` gives: how many tokens were added, `Decoding.draw`'s tensors with a dimension of new
    positions, and the state after them.
    """

    count: mtf.Tensor
    columns: list[mtf.Tensor]
    seen: mtf.Tensor
    start: mtf.Tensor
    current: list[State]


@dataclass(frozen=True)
class Decoding:
    """Adds tokens, one to every row at a time.

    Attributes:
        ctx: of one position.
        ends: int32 [batch], the lengths at which rows end.
        controls: of each row.
        eos_ids: each of them ends a row.
        top: also give log-probabilities, and those of this many likeliest tokens.
    """

    ctx: Context
    ends: mtf.Tensor
    controls: Controls
    eos_ids: tuple[int, ...]
    top: int | None

    def draw(self, logits: mtf.Tensor, seen: mtf.Tensor, position: mtf.Tensor) -> tuple[list[mtf.Tensor], mtf.Tensor]:
        """A token for each row from logits [batch, vocab]. `position`: int32 [batch], of its newest token.

        Returns:
            int32 [batch]; with `top` also its log-probability, float32 [batch], and the likeliest ids and theirs,
            [batch, top]. And `seen` with the new tokens.
        """
        dims, kernel_of = self.ctx.dims, functools.partial(kernel, splittable=[self.ctx.dims.batch])
        # Choosing needs all logits of a row on one device: a dimension that no layout splits.
        logits = mtf.replace_dimensions(mtf.cast(logits, tf.float32), dims.vocab, dims.whole_vocab)
        rows = mtf.Shape([dims.batch])

        def choose(logits: tf.Tensor, seen: tf.Tensor, position: tf.Tensor, *controls: tf.Tensor) -> tf.Tensor:
            return next_token.choose(logits, seen, position, Controls(*controls), self.eos_ids)

        operands = [logits, seen, position, *self.controls]
        [token] = kernel_of(choose, operands, [(rows, tf.int32)], name="choose")
        drawn = [token]
        if self.top is not None:
            likeliest = mtf.Shape([dims.batch, mtf.Dimension("likeliest", self.top)])
            outputs = [(rows, tf.float32), (likeliest, tf.int32), (likeliest, tf.float32)]
            report = functools.partial(next_token.log_probabilities, top=self.top)
            drawn += kernel_of(report, [logits, token], outputs, name="log_probabilities")

        def mark(seen: tf.Tensor, token: tf.Tensor) -> tf.Tensor:
            return tf.logical_or(seen, tf.equal(tf.range(seen.shape[1])[None, :], token[:, None]))

        return drawn, kernel_of(mark, [seen, token], [(seen.shape, tf.bool)], name="mark")[0]

    def run(
        self,
        token: mtf.Tensor,
        seen: mtf.Tensor,
        states: Sequence[State],
        start: mtf.Tensor,
        limit: mtf.Tensor,
        new: mtf.Dimension,
    ) -> _Run:
        """Add tokens until every row has ended or `limit` were added: the token loop.

        Args:
            token: int32 [batch], the newest of each row, at the position `start` [batch].
            states: of the positions before it.
            new: the dimension of new positions, at least `limit` of them.
        """
        model = self.ctx.model
        loops = [kind.begin(self.ctx, state) for kind, state in zip(layer_kinds(model), states, strict=True)]
        count = mtf.zeros(self.ctx.mesh, mtf.Shape([]), dtype=tf.int32)
        outputs = [(mtf.Shape([]), tf.int32)]
        if self.top is not None:
            likeliest = mtf.Shape([mtf.Dimension("likeliest", self.top)])
            outputs += [(mtf.Shape([]), tf.float32), (likeliest, tf.int32), (likeliest, tf.float32)]
        columns = [
            mtf.zeros(self.ctx.mesh, mtf.Shape([self.ctx.dims.batch, new, *shape.dims]), dtype=dtype)
            for shape, dtype in outputs
        ]
        n = len(columns)

        def unfinished(count: mtf.Tensor, token: mtf.Tensor, active: mtf.Tensor, *rest: mtf.Tensor) -> mtf.Tensor:
            del token, rest
            return mtf.greater(mtf.reduce_max(active) * mtf.cast(mtf.less(count, limit), tf.int32), 0)

        def advance(
            count: mtf.Tensor, token: mtf.Tensor, active: mtf.Tensor, seen: mtf.Tensor, *rest: mtf.Tensor
        ) -> list[mtf.Tensor]:
            current = by_layer(model, rest[n:])
            at = [Loop(loop.fixed, state) for loop, state in zip(loops, current, strict=True)]
            cache = Decode(DecodePosition(start, count), at)
            tokens = mtf.reshape(token, mtf.Shape([self.ctx.dims.batch, self.ctx.dims.sequence]))
            logits = gpt.next_logits(self.ctx, tokens, cache)
            drawn, seen = self.draw(logits, seen, start + count)
            columns = [self._write(column, x, count) for column, x in zip(rest[:n], drawn, strict=True)]
            active = mtf.minimum(active, self._active(drawn[0], start + count + 1))
            return [count + 1, drawn[0], active, seen, *columns, *itertools.chain(*cache.current)]

        flat = itertools.chain(*(loop.current for loop in loops))
        found = mtf.while_loop(unfinished, advance, [count, token, self._active(token, start), seen, *columns, *flat])
        count, _, _, seen, *rest = found
        return _Run(count, rest[:n], seen, start, by_layer(model, rest[n:]))

    def merge(self, run: _Run, states: Sequence[State]) -> list[State]:
        """The states after a run that began with `states`."""
        layers = zip(layer_kinds(self.ctx.model), states, run.current, strict=True)
        place = DecodePosition(run.start, run.count)
        return [kind.merge(self.ctx, state, current, place) for kind, state, current in layers]

    def _write(self, column: mtf.Tensor, x: mtf.Tensor, count: mtf.Tensor) -> mtf.Tensor:
        """`column` [batch, new_positions, ...] with x [batch, ...] at index `count`."""

        def write(column: tf.Tensor, x: tf.Tensor, count: tf.Tensor) -> tf.Tensor:
            here = tf.equal(tf.range(column.shape[1]), count)
            return tf.where(tf.reshape(here, [1, -1] + [1] * (column.shape.rank - 2)), x[:, None], column)

        outputs = [(column.shape, column.dtype)]
        return kernel(write, [column, x, count], outputs, [self.ctx.dims.batch], "write")[0]

    def _active(self, token: mtf.Tensor, position: mtf.Tensor) -> mtf.Tensor:
        """int32 [batch]: 1 where a row goes on after this token at this position, else 0."""

        def active(token: tf.Tensor, position: tf.Tensor, ends: tf.Tensor) -> tf.Tensor:
            goes_on = position + 1 < ends
            if self.eos_ids:
                goes_on = tf.logical_and(goes_on, tf.logical_not(next_token.is_any(token, self.eos_ids)))
            return tf.cast(goes_on, tf.int32)

        rows = mtf.Shape([self.ctx.dims.batch])
        return kernel(active, [token, position, self.ends], [(rows, tf.int32)], rows.dims, "active")[0]


def with_room(state: BatchState, count: int, model: ModelConfig) -> BatchState:
    """The state, with room in its caches for `count` more positions of each row that goes on. Sizes are powers of two,
    so that few are compiled.
    """
    going = state.ends > state.lengths + 1
    wanted = int(state.lengths[going].max()) + count
    size = min(1 << (max(wanted, MIN_ROOM) - 1).bit_length(), model.n_ctx)
    caches = [_padded(x, axis, size) for x, axis in zip(state.caches, positions_axes(model), strict=True)]
    return dataclasses.replace(state, caches=caches)


def _padded(cache: tf.Tensor, axis: int | None, size: int) -> tf.Tensor:
    """`cache` with room for `size` positions along `axis`, or unchanged if it has it or has no such axis."""
    if axis is None or cache.shape[axis] >= size:
        return cache
    return tf.pad(cache, [[0, size - cache.shape[axis] if i == axis else 0] for i in range(cache.shape.rank)])


def count_outputs(top: int | None) -> int:
    """How many tensors `Decoding.draw` gives for each token."""
    return 1 if top is None else 4


def padded_width(length: int, n_ctx: int) -> int:
    """The number of positions that rows of up to `length` are padded to: a power of two, at least 16 and at most n_ctx,
    so that few widths are compiled.
    """
    return min(n_ctx, max(16, 1 << max(length - 1, 0).bit_length()))


def fit_prompt(prompt: Sequence[int], n_ctx: int, max_new_tokens: int | None) -> tuple[list[int], int]:
    """A prompt that leaves room in the context, and how many tokens were cut from its start.

    A prompt of at most n_ctx - 1 tokens stays whole. A longer one keeps its end, and leaves room for `max_new_tokens`
    (or for one).
    """
    if len(prompt) <= n_ctx - 1:
        return list(prompt), 0
    room = min(max(max_new_tokens or 1, 1), n_ctx - 1)
    kept = list(prompt[len(prompt) - (n_ctx - room) :])
    return kept, len(prompt) - len(kept)
