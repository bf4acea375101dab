"""Batches of rows on an engine, a chunk of tokens at a time."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from gpt_mesh.engine.interface import Engine
from gpt_mesh.sample import CHUNK, Batch, BatchState, Chunk, Row


class Decoder:
    """Starts batches on an engine."""

    def __init__(self, engine: Engine, eos_ids: tuple[int, ...]) -> None:
        """`eos_ids`: each of them ends a continuation; empty: it only ends at its length."""
        self.engine, self.eos_ids = engine, eos_ids
        self.n_vocab = engine.config.model.n_vocab

    @property
    def can_reorder(self) -> bool:
        """Whether batches can be reordered, as beam search does."""
        return self.engine.can_reorder

    def start(self, rows: Sequence[Row], top: int | None = None, size: int | None = None) -> RunningBatch:
        """A batch of these rows, of which nothing has run yet.

        Args:
            top: report log-probabilities, and those of this many likeliest tokens.
            size: of the batch, filled up with rows that add nothing; default: the next power of two.
        """
        return RunningBatch(self, rows, top, size)

    def generate(self, rows: Sequence[Row], batch_size: int) -> list[list[int]]:
        """The new tokens of each row, without the id that ended it. `batch_size`: rows at a time."""
        found: list[list[int]] = []
        for begin in range(0, len(rows), batch_size):
            found += self.start(rows[begin : begin + batch_size], size=batch_size).finish()
        return found


class RunningBatch:
    """A batch on its way."""

    def __init__(self, decoder: Decoder, rows: Sequence[Row], top: int | None, size: int | None = None) -> None:
        self._engine, self._eos_ids, self._top, self._rows = decoder.engine, decoder.eos_ids, top, len(rows)
        size = size or 1 << (len(rows) - 1).bit_length()
        self._batch = Batch.of(rows, size, decoder.engine.config.model)
        self._ends = self._batch.ends.copy()
        self._state: BatchState | None = None

    def prefill(self) -> Chunk:
        """Read the prompts, and add the first token of each row."""
        chunk, self._state = self._engine.prefill(self._batch, eos_ids=self._eos_ids, top=self._top)
        return chunk

    def advance(self, limit: int = CHUNK) -> Chunk:
        """Add up to `limit` tokens to each row that has not ended; none if all have."""
        state = dataclasses.replace(self._prefilled, ends=self._ends)
        left = int((state.ends - state.lengths).max()) - 1  # prefill added one
        limit = min(limit, left)
        if limit <= 0:
            return Chunk(np.zeros((len(state.ends), 0), np.int32))
        chunk, self._state = self._engine.advance(state, limit, eos_ids=self._eos_ids, top=self._top)
        return chunk

    def cancel(self, row: int) -> None:
        """Add nothing to this row any more."""
        self._ends[row] = 0

    def reorder(self, tokens: Sequence[int], parents: Sequence[int]) -> None:
        """Make each row what the row `parents` of it is, with another newest token: a step of a beam search."""
        self._state = self._engine.reorder(self._prefilled, tokens, parents)

    def finish(self) -> list[list[int]]:
        """Prefill, and advance to the end: the new tokens of each row, without the id that ended it."""
        chunks = [self.prefill().tokens]
        while (added := self.advance().tokens).shape[1]:
            chunks.append(added)
        return self._batch.continuations(np.concatenate(chunks, 1), self._eos_ids)[: self._rows]

    @property
    def _prefilled(self) -> BatchState:
        assert self._state is not None, "prefill comes first"
        return self._state
