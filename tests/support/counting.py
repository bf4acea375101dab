"""In place of a model: it counts on from a prompt's last token, or draws by the seed alone, in no time."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np

from gpt_mesh.generation.decoder import Decoder, RunningBatch
from gpt_mesh.sample import CHUNK, Chunk, Row


class Counting(Decoder):
    """Starts batches without an engine."""

    can_reorder = True

    def __init__(self, n_vocab: int = 256, most: int = 1000, logprob: float = -1.0) -> None:
        """`most`: so many tokens are added to each row. `logprob`: of every token."""
        self.n_vocab, self.most, self.logprob = n_vocab, most, logprob

    def start(self, rows: Sequence[Row], top: int | None = None, size: int | None = None) -> Counted:
        return Counted(self, rows, top)


class Counted(RunningBatch):
    """A batch."""

    def __init__(self, model: Counting, rows: Sequence[Row], top: int | None) -> None:
        self._model, self._top, self._added, self._empty = model, top, 0, 0
        self._tokens = [self._tokens_of(row) for row in rows]

    def _tokens_of(self, row: Row) -> list[int]:
        most, n = self._model.most, self._model.n_vocab
        if row.temperature == 0:
            return [(row.prompt[-1] + 1 + i) % n for i in range(most)]
        return random.Random(row.seed).choices(range(n), k=most)

    def prefill(self) -> Chunk:
        return self.advance(1)

    def advance(self, limit: int = CHUNK) -> Chunk:
        tokens = np.array([row[self._added : self._added + limit] for row in self._tokens], np.int32)
        self._added += limit
        self._empty += tokens.shape[1] == 0
        assert self._empty < 3, "asked on when nothing came any more"
        if self._top is None:
            return Chunk(tokens)
        shape = (*tokens.shape, self._top)
        return Chunk(
            tokens, np.full(tokens.shape, self._model.logprob, np.float32), np.zeros(shape, np.int32),
            np.full(shape, self._model.logprob, np.float32),
        )  # fmt: skip

    def cancel(self, row: int) -> None:
        pass

    def reorder(self, tokens: Sequence[int], parents: Sequence[int]) -> None:
        pass
