"""Scores the last tokens of many sequences in batches of few compiled shapes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gpt_mesh.engine.interface import Engine
from gpt_mesh.storage.progress import track

STEP = 16  # widths are multiples of it


@dataclass(frozen=True)
class Span:
    """A sequence of at most n_ctx + 1 tokens. The last `scored` of them, never all, are scored given their prefix."""

    tokens: Sequence[int]
    scored: int


@dataclass(frozen=True)
class SpanScores:
    """For each span, the summed log-probability of its scored tokens in nats, and how many of them were the model's
    top choice. Both have shape [spans].
    """

    logprobs: NDArray[np.float64]
    correct: NDArray[np.int64]


class SpanScorer:
    """Scores spans with an engine's weights."""

    def __init__(self, engine: Engine, batch_size: int | None = None) -> None:
        """`batch_size`: spans per batch; default: the config's `eval_batch_size`."""
        self._engine = engine
        self.batch_size = batch_size or engine.config.training.eval_batch_size

    def score(self, spans: Sequence[Span], what: str = "scoring") -> SpanScores:
        """The scores, in the order of the spans. `what` labels the progress bar.

        Spans are sorted by length, longest first, and padded on the right, which a causal model cannot see. All batches
        have the same size and one of three widths, so at most three shapes are compiled.
        """
        found = SpanScores(np.zeros(len(spans)), np.zeros(len(spans), np.int64))
        order = sorted((i for i, span in enumerate(spans) if span.scored), key=lambda i: -len(spans[i].tokens))
        if not order:
            return found
        size = min(self.batch_size, 1 << (len(order) - 1).bit_length())
        widths = self._widths(len(spans[order[0]].tokens) - 1)
        batches = [order[start : start + size] for start in range(0, len(order), size)]
        for batch in track(batches, len(batches), what, "batches"):
            labels = len(spans[batch[0]].tokens) - 1
            width = min(width for width in widths if width >= labels)
            for place, logprob, correct in self._batch([spans[i] for i in batch], size, width):
                found.logprobs[batch[place]], found.correct[batch[place]] = logprob, correct
        return found

    def _widths(self, longest: int) -> set[int]:
        """Possible widths of a batch, in labels: the longest, and a half and a quarter of it, rounded up."""
        n_ctx = self._engine.config.model.n_ctx
        assert 0 < longest <= n_ctx, (longest, n_ctx)
        return {min(n_ctx, -(-longest // (part * STEP)) * STEP) for part in (1, 2, 4)}

    def _batch(self, spans: Sequence[Span], size: int, width: int) -> Iterator[tuple[int, float, int]]:
        """(row, log-probability, number of correct predictions) of each span."""
        tokens = np.zeros((size, width + 1), np.int32)
        counted = np.zeros((size, width), np.bool_)
        for row, span in enumerate(spans):
            labels = len(span.tokens) - 1
            assert 0 < span.scored <= labels, (span.scored, labels)
            tokens[row, : labels + 1] = span.tokens
            counted[row, labels - span.scored : labels] = True
        logprobs, correct = (np.asarray(x, np.float64) for x in self._engine.score(tokens))
        # Positions that are not counted may hold anything, even NaN.
        logprobs, correct = (np.where(counted, x, 0.0).sum(1) for x in (logprobs, correct))
        yield from ((row, float(logprobs[row]), round(correct[row])) for row in range(len(spans)))


def rolling(tokens: Sequence[int], prefix: int | None, n_ctx: int, stride: int | None = None) -> list[Span]:
    """Split a text of any length into spans that score each token once.

    The first span scores up to n_ctx tokens, each later one the next `stride` (default: n_ctx). A span starts as early
    as the context allows, so its scored tokens have at least n_ctx - stride + 1 tokens of context.

    Args:
        tokens: of the text.
        prefix: token before the text, from which the first token is predicted; None: the first token is not scored.
        n_ctx: context length.
        stride: from 1 to n_ctx.
    """
    led = [*([] if prefix is None else [prefix]), *tokens]
    labels, done = len(led) - 1, 0
    spans = []
    while done < labels:
        end = min(done + (stride or n_ctx) if done else n_ctx, labels)
        spans.append(Span(led[max(end - n_ctx, 0) : end + 1], end - done))
        done = end
    return spans


def ending(context: Sequence[int], continuation: Sequence[int], n_ctx: int) -> tuple[Span, bool]:
    """A span that scores a continuation given its context, and whether it was truncated on the left to fit n_ctx."""
    tokens = [*context, *continuation]
    kept = tokens[-(n_ctx + 1) :]
    return Span(kept, min(len(continuation), len(kept) - 1)), len(kept) < len(tokens)
