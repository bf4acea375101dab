"""Scoring the ends of token sequences, many at a time, in few compiled shapes."""

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
    """Tokens, of which the last `scored` are scored, each given all before it: at most n_ctx + 1, fewer scored."""

    tokens: Sequence[int]
    scored: int


@dataclass(frozen=True)
class SpanScores:
    """Of each span: the sum of the log-probabilities of its scored tokens (nats), and how many of them were the
    likeliest token of their place. Shape [spans] both.
    """

    logprobs: NDArray[np.float64]
    correct: NDArray[np.int64]


class SpanScorer:
    """Scores spans with an engine's weights."""

    def __init__(self, engine: Engine, batch_size: int | None = None) -> None:
        """`batch_size`: spans at a time; default: the config's `eval_batch_size`."""
        self._engine = engine
        self.batch_size = batch_size or engine.config.training.eval_batch_size

    def score(self, spans: Sequence[Span], what: str = "scoring") -> SpanScores:
        """The scores, in the order of the spans. `what`: for the progress bar.

        Longer spans go first, with others of about their length, padded at the end, which a causal model does not see.
        All batches have one size, and at most three widths, so that no more than three forms are compiled.
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
        """The widths that batches may have, in labels: that of the longest, a half and a quarter of it, rounded up."""
        n_ctx = self._engine.config.model.n_ctx
        assert 0 < longest <= n_ctx, (longest, n_ctx)
        return {min(n_ctx, -(-longest // (part * STEP)) * STEP) for part in (1, 2, 4)}

    def _batch(self, spans: Sequence[Span], size: int, width: int) -> Iterator[tuple[int, float, int]]:
        """Place, log-probability and right predictions of each span."""
        tokens = np.zeros((size, width + 1), np.int32)
        counted = np.zeros((size, width), np.bool_)
        for row, span in enumerate(spans):
            labels = len(span.tokens) - 1
            assert 0 < span.scored <= labels, (span.scored, labels)
            tokens[row, : labels + 1] = span.tokens
            counted[row, labels - span.scored : labels] = True
        logprobs, correct = (np.asarray(x, np.float64) for x in self._engine.score(tokens))
        # What is not counted may be anything, NaN too.
        logprobs, correct = (np.where(counted, x, 0.0).sum(1) for x in (logprobs, correct))
        yield from ((row, float(logprobs[row]), round(correct[row])) for row in range(len(spans)))


def rolling(tokens: Sequence[int], prefix: int | None, n_ctx: int, stride: int | None = None) -> list[Span]:
    """A text of any length as spans that score each of its tokens once.

    The first span scores up to n_ctx tokens; each further one the next `stride` (default: n_ctx), and reaches back as
    far as the context goes, so that a token in it has at least n_ctx - stride + 1 tokens of context.

    Args:
        tokens: of the text.
        prefix: what stands before it, so that the first token is scored too; None: nothing, and it is not.
        n_ctx: the context.
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
    """A continuation to be scored after its context, and whether tokens were cut from the start to fit n_ctx."""
    tokens = [*context, *continuation]
    kept = tokens[-(n_ctx + 1) :]
    return Span(kept, min(len(continuation), len(kept) - 1)), len(kept) < len(tokens)
