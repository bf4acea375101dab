"""Autoregressive decoding as a mesh graph: prompts in one pass, then token by token with cached keys and values.

Rows of a batch may differ in length. Prompts stand at the left and are padded at their ends, where no real token sees
the padding; from there on all rows add a token at a time, each at its own position.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from gpt_mesh.meshes.compat import mtf

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from gpt_mesh import model_fns
from gpt_mesh.config import Config, ModelConfig
from gpt_mesh.engine.engine import Engine
from gpt_mesh.models import gpt, next_token
from gpt_mesh.models.attention.cache import Decode, Prefill
from gpt_mesh.models.attention.kind import Loop, Place, State
from gpt_mesh.models.attention.kinds import by_layer, layer_kinds, positions_axes, state_tensors
from gpt_mesh.models.context import Context
from gpt_mesh.models.dims import Dims
from gpt_mesh.models.kernels import kernel
from gpt_mesh.models.next_token import CONTROL_TYPES, Controls


@dataclass(frozen=True)
class Request:
    """One continuation to generate.

    Attributes:
        prompt: token ids, at least one and fewer than n_ctx.
        max_new_tokens: at most so many are added; the context's end may come first.
        seed: of its random draws, whatever batch it sits in.
        min_new_tokens: no end of text before so many. The others: see `models.next_token.Controls`.
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


class Generates(Protocol):
    """What continues prompts."""

    def generate(self, requests: Sequence[Request], temperature: float | None = None) -> list[list[int]]:
        """The new tokens of each request, without the id that ended it. `temperature`: of all of them, in place of
        their own.
        """


class Sampler:
    """Generates with an engine's weights, a batch of one size at a time, each in one call. Compiled once for each power
    of two of the longest prompt.
    """

    def __init__(self, engine: Engine, batch_size: int, eos_id: int | None, *, sparse: bool = False) -> None:
        """`eos_id`: where a continuation ends; None: only at its length. `sparse`: draw by 1.5-entmax, not softmax."""
        self.engine, self.batch_size, self.eos_id, self.sparse = engine, batch_size, eos_id, sparse
        self._sample = engine.function(self._build)

    def _build(self, *inputs: tf.Tensor) -> list[tf.Tensor]:
        mesh_impl = self.engine.mesh_for(self.batch_size, None)
        return build_sample(Inputs.of(inputs), config=self.engine.config, mesh_impl=mesh_impl, eos_id=self.eos_id)

    def generate(self, requests: Sequence[Request], temperature: float | None = None) -> list[list[int]]:
        """See `Generates`."""
        found: list[list[int]] = []
        for begin in range(0, len(requests), self.batch_size):
            found += self._generate_batch(requests[begin : begin + self.batch_size], temperature)
        return found

    def _generate_batch(self, requests: Sequence[Request], temperature: float | None) -> list[list[int]]:
        wanted = with_changes(requests, temperature, self.sparse)
        batch = Batch.of(wanted, self.batch_size, self.engine.config.model)
        return batch.continuations(self._sample(*batch.arrays)[0].numpy(), self.eos_id)[: len(requests)]


def with_changes(requests: Sequence[Request], temperature: float | None, sparse: bool) -> list[Request]:
    """The requests, all with another temperature and all drawn by entmax, where that is asked for."""
    changes: dict[str, Any] = {} if temperature is None else {"temperature": temperature}
    changes |= {"sparse": True} if sparse else {}
    return [dataclasses.replace(request, **changes) for request in requests]


@dataclass(frozen=True)
class Inputs:
    """A batch of prompts in a graph.

    Attributes:
        prompts: int32 [batch, width], each padded at its end.
        lengths: int32 [batch], of the prompts.
        ends: int32 [batch], the length of each sequence with its new tokens, at most n_ctx.
        seen: bool [batch, n_vocab], the tokens of the prompts.
        controls: of each row.
    """

    prompts: tf.Tensor
    lengths: tf.Tensor
    ends: tf.Tensor
    seen: tf.Tensor
    controls: Controls

    @staticmethod
    def of(arrays: Sequence[tf.Tensor]) -> Inputs:
        """From what `Batch.arrays` lists."""
        prompts, lengths, ends, seen, *controls = arrays
        return Inputs(prompts, lengths, ends, seen, Controls(*controls))


@dataclass(frozen=True)
class Batch:
    """Requests as arrays: see `Inputs`."""

    prompts: NDArray[np.int32]
    lengths: NDArray[np.int32]
    ends: NDArray[np.int32]
    seen: NDArray[np.bool_]
    controls: Controls

    @staticmethod
    def of(requests: Sequence[Request], size: int, model: ModelConfig) -> Batch:
        """`size` rows. Those beyond the requests are finished before they begin."""
        longest = max((len(request.prompt) for request in requests), default=1)
        width = padded_width(longest, model.n_ctx)
        prompts, lengths = np.zeros((size, width), np.int32), np.ones(size, np.int32)
        ends, seen = lengths.copy(), np.zeros((size, model.n_vocab), np.bool_)
        controls = Controls(*(np.zeros(size, kind.as_numpy_dtype) for kind in CONTROL_TYPES))
        controls.top_p[:], controls.penalty[:] = 1.0, 1.0
        for row, request in enumerate(requests):
            assert 0 < len(request.prompt) < model.n_ctx, (len(request.prompt), model.n_ctx)
            prompts[row, : len(request.prompt)] = request.prompt
            seen[row, list(request.prompt)] = True
            lengths[row] = len(request.prompt)
            ends[row] = min(model.n_ctx, len(request.prompt) + request.max_new_tokens)
            controls.seeds[row] = request.seed % 2**31
            controls.temperature[row], controls.penalty[row] = request.temperature, request.penalty
            controls.top_k[row], controls.top_p[row] = min(request.top_k, model.n_vocab), request.top_p
            controls.sparse[row] = request.sparse
            controls.least[row] = min(model.n_ctx, len(request.prompt) + request.min_new_tokens)
        return Batch(prompts, lengths, ends, seen, controls)

    @property
    def arrays(self) -> list[NDArray[Any]]:
        """In the order that `Inputs.of` takes."""
        return [self.prompts, self.lengths, self.ends, self.seen, *self.controls]

    def continuations(self, tokens: NDArray[np.int32], eos_id: int | None) -> list[list[int]]:
        """What was added to each row, up to `eos_id`. `tokens`: [batch, new tokens]."""
        counts = self.ends - self.lengths
        rows = [row[:count].tolist() for row, count in zip(tokens, counts, strict=True)]
        return [row[: row.index(eos_id)] if eos_id in row else row for row in rows]


def build_sample(
    inputs: Inputs, *, config: Config, mesh_impl: Any, eos_id: int | None, dtype: tf.DType | None = None
) -> list[tf.Tensor]:
    """Continue each prompt until its `eos_id` or its end, in one graph.

    Returns:
        What `Decoding.draw` gives, [batch, n_ctx] each: the new tokens; what follows an `eos_id` or an end means
        nothing.
    """
    decoding, begun = _prefill(inputs, config, mesh_impl, eos_id, None, dtype)
    new = decoding.ctx.dims.new_positions
    limit = mtf.constant(decoding.ctx.mesh, new.size, dtype=tf.int32)
    run = decoding.run(begun.drawn[0], begun.seen, begun.states, begun.lengths, limit, new)
    first = begun.drawn[0]
    width = mtf.Dimension("new_tokens", 1)
    parts = [mtf.reshape(first, mtf.Shape([*first.shape.dims, width])), run.columns[0]]
    lowering = mtf.Lowering(decoding.ctx.mesh.graph, {decoding.ctx.mesh: mesh_impl}, autostack=False)
    return [tf.concat([lowering.export_to_tf_tensor(part) for part in parts], 1)]


def build_prefill(
    inputs: Inputs, *, config: Config, mesh_impl: Any, eos_id: int | None, top: int | None
) -> list[tf.Tensor]:
    """Read the prompts and draw a first token for each.

    Args:
        top: also give log-probabilities, those of so many likeliest tokens among them.

    Returns:
        What `Decoding.draw` gives, [batch] and [batch, top]; whether each token was seen, [batch, n_vocab]; the
        state of each layer of attention, with the prompts' width as memory_length: see `models.attention.kinds`.
    """
    decoding, begun = _prefill(inputs, config, mesh_impl, eos_id, top, None)
    found = [*begun.drawn, begun.seen, *itertools.chain(*begun.states)]
    lowering = mtf.Lowering(decoding.ctx.mesh.graph, {decoding.ctx.mesh: mesh_impl}, autostack=False)
    return [lowering.export_to_tf_tensor(tensor) for tensor in found]


def build_advance(
    tokens: tf.Tensor,
    limit: tf.Tensor,
    lengths: tf.Tensor,
    ends: tf.Tensor,
    seen: tf.Tensor,
    controls: Controls,
    states: Sequence[tf.Tensor],
    *,
    config: Config,
    mesh_impl: Any,
    eos_id: int | None,
    top: int | None,
    chunk: int,
) -> list[tf.Tensor]:
    """Add some tokens to each row.

    Args:
        tokens: int32 [batch], the newest of each row, which no state knows yet.
        limit: int32 scalar, add so many at most, up to `chunk`.
        lengths: int32 [batch], of each row without its newest token.
        states: of each layer of attention, with room for lengths + limit positions: see `models.attention.kinds`.

    Returns:
        How many were added; what `Decoding.draw` gives, [batch, chunk] and [batch, chunk, top]; `seen` and `states` as
        they are then.
    """
    batch, axes = tokens.shape[0], positions_axes(config.model)
    room = max((x.shape[axis] for x, axis in zip(states, axes, strict=True) if axis is not None), default=1)
    ctx = model_fns.make_context(config, mesh_impl, batch, 1, memory=room)
    ctx = dataclasses.replace(ctx, dims=Dims.of(config.model, batch, 1, room, chunk))
    rows = mtf.Shape([ctx.dims.batch])
    given = [mtf.import_tf_tensor(ctx.mesh, x, rows) for x in (tokens, lengths, ends, *controls)]
    token, start, end, *rest = given
    decoding = Decoding(ctx, end, Controls(*rest), eos_id, top)
    kept = zip(states, state_tensors(config.model, ctx.dims), strict=True)
    imported = by_layer(config.model, [mtf.import_tf_tensor(ctx.mesh, x, tensor.shape) for x, tensor in kept])
    seen_on_mesh = mtf.import_tf_tensor(ctx.mesh, seen, mtf.Shape([ctx.dims.batch, ctx.dims.whole_vocab]))
    limit_on_mesh = mtf.import_tf_tensor(ctx.mesh, limit)
    run = decoding.run(token, seen_on_mesh, imported, start, limit_on_mesh, ctx.dims.new_positions)
    merged = itertools.chain(*decoding.merge(run, imported))
    lowering = mtf.Lowering(ctx.mesh.graph, {ctx.mesh: mesh_impl}, autostack=False)
    return [lowering.export_to_tf_tensor(x) for x in (run.count, *run.columns, run.seen, *merged)]


@dataclass(frozen=True)
class _Begun:
    """Prompts, read: the first new tokens, what was seen, each layer's state, the prompts' lengths."""

    drawn: list[mtf.Tensor]
    seen: mtf.Tensor
    states: list[State]
    lengths: mtf.Tensor


def _prefill(
    inputs: Inputs, config: Config, mesh_impl: Any, eos_id: int | None, top: int | None, dtype: tf.DType | None
) -> tuple[Decoding, _Begun]:
    """The prompts in one pass, and a first token drawn; and what goes on from there."""
    batch, width = inputs.prompts.shape.as_list()
    ctx = model_fns.make_context(config, mesh_impl, batch, width, dtype)
    rows = mtf.Shape([ctx.dims.batch])
    lengths, ends, *controls = (
        mtf.import_tf_tensor(ctx.mesh, x, rows) for x in (inputs.lengths, inputs.ends, *inputs.controls)
    )
    prompts = mtf.import_tf_tensor(ctx.mesh, inputs.prompts, mtf.Shape([ctx.dims.batch, ctx.dims.sequence]))
    seen = mtf.import_tf_tensor(ctx.mesh, inputs.seen, mtf.Shape([ctx.dims.batch, ctx.dims.whole_vocab]))
    prefill = Prefill(lengths)
    logits = gpt.next_logits(ctx, prompts, prefill, lengths - 1)
    one = dataclasses.replace(ctx, dims=Dims.of(config.model, batch, 1, width, max(1, config.model.n_ctx - 1)))
    decoding = Decoding(one, ends, Controls(*controls), eos_id, top)
    drawn, seen = decoding.draw(logits, seen, lengths - 1)
    return decoding, _Begun(drawn, seen, prefill.states, lengths)


@dataclass(frozen=True)
class _Run:
    """Tokens added: how many, `Decoding.draw`'s tensors with a dimension of new positions, and what is known then."""

    count: mtf.Tensor
    columns: list[mtf.Tensor]
    seen: mtf.Tensor
    start: mtf.Tensor
    current: list[State]


@dataclass(frozen=True)
class Decoding:
    """Adding tokens, one to every row at a time.

    Attributes:
        ctx: of one position.
        ends: int32 [batch], the lengths at which rows end.
        controls: of each row.
        eos_id: the id at which a row ends.
        top: give log-probabilities too, and so many of the likeliest.
    """

    ctx: Context
    ends: mtf.Tensor
    controls: Controls
    eos_id: int | None
    top: int | None

    def draw(self, logits: mtf.Tensor, seen: mtf.Tensor, position: mtf.Tensor) -> tuple[list[mtf.Tensor], mtf.Tensor]:
        """A token for each row from logits [batch, vocab], `position` [batch] being that of its newest one.

        Returns:
            int32 [batch]; with `top` also its log-probability, float32 [batch], and the likeliest ids and theirs,
            [batch, top]. And `seen` with the new tokens.
        """
        dims, kernel_of = self.ctx.dims, functools.partial(kernel, splittable=[self.ctx.dims.batch])
        # Choosing needs every score of a row on one device: a dimension that no layout splits.
        logits = mtf.replace_dimensions(mtf.cast(logits, tf.float32), dims.vocab, dims.whole_vocab)
        rows = mtf.Shape([dims.batch])

        def choose(logits: tf.Tensor, seen: tf.Tensor, position: tf.Tensor, *controls: tf.Tensor) -> tf.Tensor:
            return next_token.choose(logits, seen, position, Controls(*controls), self.eos_id)

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
        """Add tokens until every row has ended, `limit` of them at most.

        Args:
            token: int32 [batch], the newest of each row, at the position `start` [batch].
            states: of the positions before it.
            new: room for so many.
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
            cache = Decode(Place(start, count), at)
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
        place = Place(run.start, run.count)
        return [kind.merge(self.ctx, state, current, place) for kind, state, current in layers]

    def _write(self, column: mtf.Tensor, x: mtf.Tensor, count: mtf.Tensor) -> mtf.Tensor:
        """`column` [batch, new_positions, ...] with x [batch, ...] at the place `count`."""

        def write(column: tf.Tensor, x: tf.Tensor, count: tf.Tensor) -> tf.Tensor:
            here = tf.equal(tf.range(column.shape[1]), count)
            return tf.where(tf.reshape(here, [1, -1] + [1] * (column.shape.rank - 2)), x[:, None], column)

        outputs = [(column.shape, column.dtype)]
        return kernel(write, [column, x, count], outputs, [self.ctx.dims.batch], "write")[0]

    def _active(self, token: mtf.Tensor, position: mtf.Tensor) -> mtf.Tensor:
        """int32 [batch]: 1 where a row goes on after this token at this position, else 0."""

        def active(token: tf.Tensor, position: tf.Tensor, ends: tf.Tensor) -> tf.Tensor:
            goes_on = position + 1 < ends
            if self.eos_id is not None:
                goes_on = tf.logical_and(goes_on, tf.not_equal(token, self.eos_id))
            return tf.cast(goes_on, tf.int32)

        rows = mtf.Shape([self.ctx.dims.batch])
        return kernel(active, [token, position, self.ends], [(rows, tf.int32)], rows.dims, "active")[0]


def padded_width(length: int, n_ctx: int) -> int:
    """To how many positions rows of up to `length` are padded, so that few widths are compiled: a power of two from 16
    on, n_ctx at most.
    """
    return min(n_ctx, max(16, 1 << max(length - 1, 0).bit_length()))


def fit_prompt(prompt: Sequence[int], n_ctx: int, max_new_tokens: int | None) -> tuple[list[int], int]:
    """A prompt that leaves room in the context, and how many tokens were cut from its start.

    A prompt of at most n_ctx - 1 tokens stays whole. A longer one keeps its end, with room for `max_new_tokens` (at
    least one) after it.
    """
    if len(prompt) <= n_ctx - 1:
        return list(prompt), 0
    room = min(max(max_new_tokens or 1, 1), n_ctx - 1)
    kept = list(prompt[len(prompt) - (n_ctx - room) :])
    return kept, len(prompt) - len(kept)
