"""Log-probabilities of given tokens and texts, with the top alternatives at each position."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gpt_mesh.config import ModelConfig
from gpt_mesh.data.bytes import byte_lengths
from gpt_mesh.data.encoders import Encoder
from gpt_mesh.engine.interface import Engine
from gpt_mesh.errors import InputError
from gpt_mesh.sample import padded_width

# Upper bound on the float32 logits [batch, positions, n_vocab] of one call; a batch of one row may exceed it.
LOGITS_BYTES = 256 * 2**20


@dataclass(frozen=True)
class Score:
    """The log-likelihood of a document under a model.

    Attributes:
        tokens: ids of the document.
        logprobs: natural log-probability of each token given its prefix; None for the first token if nothing precedes
            it.
        sum: of the log-probabilities, in nats.
        bytes: length of the document in UTF-8.
    """

    tokens: list[int]
    logprobs: list[float | None]
    sum: float
    bytes: int


def score_document(engine: Engine, tokens: list[int], text: str, bos_id: int | None = None) -> Score:
    """Score a document in windows of n_ctx tokens. Each token is scored once; consecutive windows overlap by one token.

    Args:
        tokens: ids of `text`.
        bos_id: the token that precedes the document, if any.
    """
    n_ctx = engine.config.model.n_ctx
    led = tokens if bos_id is None or not tokens else [bos_id, *tokens]
    found: list[float | None] = [None] * (len(tokens) - len(led) + 1) if tokens else []
    for start in range(0, len(led) - 1, n_ctx):
        found += _score_window(engine, led[start : start + n_ctx + 1])
    total = float(sum(value for value in found if value is not None))
    return Score(tokens, found, total, len(text.encode()))


def table(scores: Sequence[Score], encoder: Encoder) -> list[str]:
    """Scores as a table for a terminal: one line per document, and a line of totals.

    Tokens without a prediction are not counted, nor are their bytes. Bits per byte are omitted if the tokenizer does
    not define the byte length of each token.
    """
    try:
        lengths = byte_lengths(encoder)
    except InputError:
        lengths = None
    lines = [("document", "tokens", "nll", "perplexity", "bits per byte")]
    sums = np.zeros(3)  # predicted tokens, nats, bytes
    for number, score in enumerate(scores, 1):
        unscored = [token for token, value in zip(score.tokens, score.logprobs, strict=True) if value is None]
        size = score.bytes - (0 if lengths is None else int(lengths[unscored].sum()))
        own = np.array([len(score.tokens) - len(unscored), -score.sum, size])
        lines.append(_cells(str(number), own, lengths is not None))
        sums += own
    if len(scores) != 1:
        lines.append(_cells("all", sums, lengths is not None))
    widths = [max(len(line[column]) for line in lines) for column in range(5)]
    return ["  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]


def _cells(name: str, sums: NDArray[np.float64], with_bytes: bool) -> tuple[str, str, str, str, str]:
    tokens, nats, size = sums
    if not tokens:
        return name, "0", "", "", ""
    bits = f"{nats / np.log(2) / size:.4f}" if with_bytes and size else ""
    return name, f"{int(tokens):,}", f"{nats / tokens:.4f}", f"{np.exp(nats / tokens):,.6g}", bits


def _score_window(engine: Engine, tokens: list[int]) -> list[float]:
    """Log-probabilities of all but the first of at most n_ctx + 1 tokens, padded to limit the compiled shapes."""
    labels = len(tokens) - 1
    padded = np.zeros((1, padded_width(labels, engine.config.model.n_ctx) + 1), np.int32)
    padded[0, : labels + 1] = tokens
    found: list[float] = np.asarray(engine.score(padded)[0])[0, :labels].tolist()
    return found


def checked_tokens(tokens: ArrayLike, model: ModelConfig) -> NDArray[np.int32]:
    """Validated token ids: int32 [batch, n] or [n].

    Raises:
        InputError: wrong shape, longer than n_ctx, or an id outside the vocabulary.
    """
    try:
        ids = np.asarray(tokens)
    except ValueError:
        raise InputError("tokens: the rows differ in length; give one length, or one call for each") from None
    if ids.ndim not in (1, 2) or not ids.size or ids.shape[-1] > model.n_ctx:
        raise InputError(
            f"tokens of shape {list(ids.shape)}: give [batch, n] or [n], with n from 1 to n_ctx = {model.n_ctx}"
        )
    if ids.dtype.kind not in "iu":
        raise InputError(f"tokens of type {ids.dtype}: give integers, the ids that encoder.encode makes of a text")
    if ids.min() < 0 or ids.max() >= model.n_vocab:
        raise InputError(
            f"tokens from {ids.min()} to {ids.max()}: ids must be from 0 to n_vocab - 1 = {model.n_vocab - 1}"
        )
    return ids.astype(np.int32)


@dataclass(frozen=True)
class TokenScores:
    """Scores of all but the first of the n tokens of a row.

    Attributes:
        logprobs: natural log-probability of each, float32 [n - 1].
        top_tokens: ids of the k most likely tokens at each position, most likely first, int32 [n - 1, k].
        top_logprobs: their log-probabilities, float32 [n - 1, k].
    """

    logprobs: NDArray[np.float32]
    top_tokens: NDArray[np.int32]
    top_logprobs: NDArray[np.float32]


class Scorer:
    """Scores rows of token ids with an engine's weights. Lengths and batch sizes are padded to powers of two, each
    combination of which is compiled once.
    """

    def __init__(self, engine: Engine, top: int, max_batch: int = 8) -> None:
        """`top`: number of alternatives per position."""
        self._engine, self._max_batch = engine, max_batch
        self._top = min(top, engine.config.model.n_vocab)

    def score(self, rows: Sequence[Sequence[int]]) -> Iterator[TokenScores]:
        """The scores of each row, in order, as they are computed. A row has 1 to n_ctx + 1 valid token ids."""
        batch: list[Sequence[int]] = []
        for row in rows:
            if batch and len(batch) >= self._room(max(map(len, [*batch, row]))):
                yield from self._score(batch)
                batch = []
            batch.append(row)
        if batch:
            yield from self._score(batch)

    def _room(self, longest: int) -> int:
        """The batch size for rows of that length: a power of two."""
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
        logprobs, tokens, top = map(np.asarray, self._engine.score_alternatives(padded, self._top))
        for place, row in enumerate(rows):
            n = len(row) - 1
            yield TokenScores(logprobs[place, :n].copy(), tokens[place, :n].copy(), top[place, :n].copy())
