"""Batches of requests on an engine, some tokens at a time.

Between calls a batch's state (keys and values, or sums of linear attention) is a list of tensors: whole ones, on the
engine's first device. A batch can be told to leave rows, and its room for positions doubles as it fills.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from gpt_mesh import sample
from gpt_mesh.engine.engine import Engine, MeshFunction
from gpt_mesh.errors import InputError
from gpt_mesh.models.attention.kinds import positions_axes
from gpt_mesh.models.next_token import CONTROL_TYPES, Controls
from gpt_mesh.sample import Generates, Inputs, Request, build_advance, build_prefill

CHUNK = 32  # tokens of one call at most: what is copied around them once weighs little then
LEAST_ROOM = 256  # positions: less saves nothing that matters, and each size is compiled


@dataclass(frozen=True)
class News:
    """Tokens that a call added to each row of a batch.

    Attributes:
        tokens: int32 [rows, added]. What follows a row's end means nothing.
        logprobs, top_ids, top_logprobs: [rows, added] and twice [rows, added, top], where they were asked for.
    """

    tokens: NDArray[np.int32]
    logprobs: NDArray[np.float32] | None = None
    top_ids: NDArray[np.int32] | None = None
    top_logprobs: NDArray[np.float32] | None = None


class Batch(Protocol):
    """Requests that run together."""

    def begin(self) -> News:
        """Read the prompts, and add the first tokens."""

    def add(self, limit: int = CHUNK) -> News:
        """Add up to so many tokens to each row that has not ended; none if all have."""

    def leave(self, row: int) -> None:
        """Add nothing to this row any more."""

    def put(self, tokens: Sequence[int], parents: Sequence[int]) -> None:
        """Make each row the row that it has for a parent, with another newest token: a step of a beam search."""


class Batches(Protocol):
    """What runs a model."""

    n_vocab: int

    def start(self, requests: Sequence[Request], top: int | None = None) -> Batch:
        """A batch of these requests, of which nothing has run yet. `top`: report log-probabilities, and those of so
        many of the likeliest tokens.
        """


class Decoder:
    """Starts batches. Compiled once for each power of two of rows and prompt length, and of rows and room."""

    def __init__(self, engine: Engine, eos_id: int | None) -> None:
        """`eos_id`: where a continuation ends; None: only at its length."""
        self.engine, self.eos_id = engine, eos_id
        self.n_vocab = engine.config.model.n_vocab
        self._functions: dict[tuple[str, int | None], MeshFunction] = {}

    def start(self, requests: Sequence[Request], top: int | None = None) -> Running:
        """See `Batches`."""
        return Running(self, requests, top)

    def prefill(self, top: int | None) -> MeshFunction:
        """`sample.build_prefill` of what `Batch.arrays` lists."""

        def build(*arrays: tf.Tensor) -> list[tf.Tensor]:
            inputs = Inputs.of(arrays)
            mesh_impl = self.engine.mesh_for(inputs.prompts.shape[0], None)
            return build_prefill(inputs, config=self.engine.config, mesh_impl=mesh_impl, eos_id=self.eos_id, top=top)

        return self._function("prefill", top, build)

    def advance(self, top: int | None) -> MeshFunction:
        """`sample.build_advance` of its arguments in order, controls and states spread out."""

        def build(*arrays: tf.Tensor) -> list[tf.Tensor]:
            tokens, limit, lengths, ends, seen, *rest = arrays
            n = len(CONTROL_TYPES)
            return build_advance(
                tokens, limit, lengths, ends, seen, Controls(*rest[:n]), rest[n:],
                config=self.engine.config, mesh_impl=self.engine.mesh_for(tokens.shape[0], None), eos_id=self.eos_id,
                top=top, chunk=CHUNK,
            )  # fmt: skip

        return self._function("advance", top, build)

    def _function(self, name: str, top: int | None, build: Any) -> MeshFunction:
        if (name, top) not in self._functions:
            self._functions[name, top] = self.engine.function(build)
        return self._functions[name, top]


class Running:
    """A batch on its way: see `Batch`."""

    def __init__(self, decoder: Decoder, requests: Sequence[Request], top: int | None) -> None:
        self._decoder, self._top = decoder, top
        self._config = decoder.engine.config
        rows = 1 << (len(requests) - 1).bit_length()
        self._batch = sample.Batch.of(requests, rows, self._config.model)
        self._lengths, self._ends = self._batch.lengths.copy(), self._batch.ends.copy()
        self._tokens: Any = None
        self._seen: Any = None
        self._states: list[Any] = []

    def leave(self, row: int) -> None:
        """See `Batch`."""
        self._ends[row] = 0

    def begin(self) -> News:
        """See `Batch`."""
        found = self._decoder.prefill(self._top)(*self._batch.arrays)
        n = self._outputs
        drawn, self._seen, self._states = found[:n], found[n], list(found[n + 1 :])
        self._tokens = drawn[0]
        return News(*(x.numpy()[:, None] for x in drawn))

    def add(self, limit: int = CHUNK) -> News:
        """See `Batch`. The reading of the prompts counts for one."""
        left = int((self._ends - self._lengths).max()) - 1
        limit = min(limit, CHUNK, left)
        if limit <= 0:
            return News(np.zeros((len(self._ends), 0), np.int32))
        self._make_room(limit)
        function = self._decoder.advance(self._top)
        arguments = [self._tokens, np.int32(limit), self._lengths, self._ends, self._seen]
        count, *found = function(*arguments, *self._batch.controls, *self._states)
        n, added = self._outputs, int(count)
        drawn, self._seen, self._states = found[:n], found[n], list(found[n + 1 :])
        if added:
            self._tokens, self._lengths = drawn[0][:, added - 1], self._lengths + np.int32(added)
        return News(*(x.numpy()[:, :added] for x in drawn))

    def put(self, tokens: Sequence[int], parents: Sequence[int]) -> None:
        """See `Batch`."""
        missing = len(self._ends) - len(tokens)
        tokens, parents = [*tokens, *[0] * missing], [*parents, *[0] * missing]
        rows = tf.constant(list(parents), tf.int32)
        self._states = [tf.gather(state, rows) for state in self._states]
        self._tokens = np.asarray(tokens, np.int32)

    @property
    def _outputs(self) -> int:
        return 1 if self._top is None else 4

    def _make_room(self, count: int) -> None:
        """Room for `count` more positions in each row that goes on, in powers of two."""
        going = self._ends > self._lengths + 1
        wanted = int(self._lengths[going].max()) + count
        size = min(1 << (max(wanted, LEAST_ROOM) - 1).bit_length(), self._config.model.n_ctx)
        axes = positions_axes(self._config.model)
        self._states = [_padded(state, axis, size) for state, axis in zip(self._states, axes, strict=True)]


class AtOnce:
    """Batches on a TPU, through TPUEstimator: each is generated whole, in one call."""

    def __init__(self, sampler: Callable[[int], Generates], n_vocab: int, eos_id: int | None) -> None:
        """`sampler`: what generates, by its batch size."""
        self._sampler, self.n_vocab, self._eos_id = sampler, n_vocab, eos_id

    def start(self, requests: Sequence[Request], top: int | None = None) -> _Whole:
        """See `Batches`.

        Raises:
            InputError: log-probabilities or beams are wanted.
        """
        if top is not None:
            raise InputError("a model on a TPU gives no log-probabilities and no beams: load it without tpu")
        return _Whole(self._sampler(1 << (len(requests) - 1).bit_length()), requests, self._eos_id)


class _Whole:
    """A batch that is generated at once: see `Batch`."""

    def __init__(self, sampler: Generates, requests: Sequence[Request], eos_id: int | None) -> None:
        self._sampler, self._requests, self._eos_id = sampler, list(requests), eos_id

    def begin(self) -> News:
        """All tokens."""
        found = self._sampler.generate(self._requests)
        width = max(map(len, found)) + 1
        fill = 0 if self._eos_id is None else self._eos_id
        return News(np.array([row + [fill] * (width - len(row)) for row in found], np.int32))

    def add(self, limit: int = CHUNK) -> News:
        """Nothing: every row ended in the first call."""
        return News(np.zeros((len(self._requests), 0), np.int32))

    def leave(self, row: int) -> None:
        """Nothing is left to do."""

    def put(self, tokens: Sequence[int], parents: Sequence[int]) -> None:
        raise AssertionError("no beams here")


def _padded(state: Any, axis: int | None, size: int) -> Any:
    """`state` with room for `size` positions along `axis`, or unchanged if it has it or has no such axis."""
    if axis is None or state.shape[axis] >= size:
        return state
    return tf.pad(state, [[0, size - state.shape[axis] if i == axis else 0] for i in range(state.shape.rank)])
