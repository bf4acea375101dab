"""In place of a model: it counts on from a prompt's last token, or draws by the seed alone, in no time."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np

from gpt_mesh.generation.decoder import News
from gpt_mesh.sample import Request


class Counting:
    """Starts batches: see `generation.decoder.Batches`."""

    def __init__(self, n_vocab: int = 256, most: int = 1000, logprob: float = -1.0) -> None:
        """`most`: so many tokens are added to each row. `logprob`: of every token."""
        self.n_vocab, self.most, self.logprob = n_vocab, most, logprob

    def start(self, requests: Sequence[Request], top: int | None = None) -> Counted:
        return Counted(self, requests, top)


class Counted:
    """A batch: see `generation.decoder.Batch`."""

    def __init__(self, model: Counting, requests: Sequence[Request], top: int | None) -> None:
        self._model, self._top, self._added, self._empty = model, top, 0, 0
        self._rows = [self._tokens(request) for request in requests]

    def _tokens(self, request: Request) -> list[int]:
        most, n = self._model.most, self._model.n_vocab
        if request.temperature == 0:
            return [(request.prompt[-1] + 1 + i) % n for i in range(most)]
        return random.Random(request.seed).choices(range(n), k=most)

    def begin(self) -> News:
        return self.add(1)

    def add(self, limit: int = 32) -> News:
        tokens = np.array([row[self._added : self._added + limit] for row in self._rows], np.int32)
        self._added += limit
        self._empty += tokens.shape[1] == 0
        assert self._empty < 3, "asked on when nothing came any more"
        if self._top is None:
            return News(tokens)
        shape = (*tokens.shape, self._top)
        return News(
            tokens, np.full(tokens.shape, self._model.logprob, np.float32), np.zeros(shape, np.int32),
            np.full(shape, self._model.logprob, np.float32),
        )  # fmt: skip

    def leave(self, row: int) -> None:
        pass

    def put(self, tokens: Sequence[int], parents: Sequence[int]) -> None:
        pass
