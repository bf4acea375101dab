"""Log-probabilities of given tokens, with the likeliest alternatives at each place."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from gpt_mesh.meshes.compat import mtf  # noqa: F401  (before TensorFlow, which it keeps quiet)

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from gpt_mesh import model_fns
from gpt_mesh.engine.engine import Engine
from gpt_mesh.sample import padded_width

# Most that the logits of one call may take, [batch, positions, n_vocab] in float32, where the batch can be smaller.
LOGITS_BYTES = 256 * 2**20


@dataclass(frozen=True)
class TokenScores:
    """Of the n tokens of a row, the n - 1 that others stand before.

    Attributes:
        logprobs: natural log-probability of each, float32 [n - 1].
        top_tokens: ids of the likeliest tokens at its place, likeliest first, int32 [n - 1, k].
        top_logprobs: theirs, float32 [n - 1, k].
    """

    logprobs: NDArray[np.float32]
    top_tokens: NDArray[np.int32]
    top_logprobs: NDArray[np.float32]


class Scorer:
    """Scores rows of token ids with an engine's weights. Compiled once for each power of two of their length and of
    their number.
    """

    def __init__(self, engine: Engine, top: int, max_batch: int = 8) -> None:
        """`top`: how many alternatives there are at each place."""
        self._engine, self._max_batch = engine, max_batch
        self._top = min(top, engine.config.model.n_vocab)
        self._function = engine.function(self._build)

    def score(self, rows: Sequence[Sequence[int]]) -> Iterator[TokenScores]:
        """The scores of each row, in order, as they are computed. A row has from 1 to n_ctx + 1 ids, each of them in
        the vocabulary.
        """
        batch: list[Sequence[int]] = []
        for row in rows:
            if batch and len(batch) >= self._room(max(map(len, [*batch, row]))):
                yield from self._score(batch)
                batch = []
            batch.append(row)
        if batch:
            yield from self._score(batch)

    def _room(self, longest: int) -> int:
        """How many rows of that length are scored at once: a power of two."""
        one = self._width(longest) * self._engine.config.model.n_vocab * 4
        fitting = max(1, min(self._max_batch, LOGITS_BYTES // one))
        return 1 << (fitting.bit_length() - 1)

    def _width(self, longest: int) -> int:
        return padded_width(longest - 1, self._engine.config.model.n_ctx)

    def _score(self, rows: Sequence[Sequence[int]]) -> Iterator[TokenScores]:
        size = 1 << (len(rows) - 1).bit_length()
        padded = np.zeros((size, self._width(max(map(len, rows))) + 1), np.int32)
        for place, row in enumerate(rows):
            padded[place, : len(row)] = row
        logprobs, tokens, top = (x.numpy() for x in self._function(padded))
        for place, row in enumerate(rows):
            n = len(row) - 1
            yield TokenScores(logprobs[place, :n].copy(), tokens[place, :n].copy(), top[place, :n].copy())

    def _build(self, tokens: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """For int32 [batch, n + 1]: float32 [batch, n], int32 [batch, n, top] and float32 [batch, n, top]."""
        inputs, labels = tokens[:, :-1], tokens[:, 1:]
        mesh = self._engine.mesh_for(*inputs.shape.as_list())
        logits = model_fns.build_logits(inputs, self._engine.config, mesh)
        # log Z once a row, and not a second tensor of the logits' size.
        log_z = tf.reduce_logsumexp(logits, -1)
        own = tf.gather(logits, labels, axis=-1, batch_dims=2)
        top, ids = tf.math.top_k(logits, self._top)
        return own - log_z, ids, top - log_z[..., None]
