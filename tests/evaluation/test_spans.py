"""Spans: every token once, with the context that is promised, whatever else is in the batch."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from gpt_mesh.engine.engine import DeviceEngine
from gpt_mesh.evaluation.spans import Span, SpanScorer, ending, rolling
from tests.support.models import ONE_LAYER, enlarge_weights, make_engine, tiny_config, unoptimised_graphs

N_CTX = 24


@pytest.fixture(scope="module")
def engine() -> DeviceEngine:
    with unoptimised_graphs():
        engine = make_engine(tiny_config(**ONE_LAYER, n_ctx=N_CTX, eval_batch_size=3), compiled=False)
        engine.create_variables(training=False)
    enlarge_weights(engine)
    return engine


@pytest.mark.parametrize("prefix", [None, 99])
@pytest.mark.parametrize("stride", [None, 1, 3, 8])
@pytest.mark.parametrize("length", [0, 1, 2, 7, 8, 9, 16, 17, 40])
def test_rolling_scores_each_token_once_with_its_context(length: int, stride: int | None, prefix: int | None) -> None:
    tokens, n_ctx = list(range(length)), 8
    spans = rolling(tokens, prefix, n_ctx, stride)
    scored = [token for span in spans for token in span.tokens[-span.scored :]]
    assert scored == tokens[0 if prefix else 1 :]
    for number, span in enumerate(spans):
        assert len(span.tokens) <= n_ctx + 1 and span.scored <= (stride or n_ctx if number else n_ctx)
        assert list(span.tokens) == ([prefix] if prefix and not number else []) + [
            token for token in span.tokens if token != prefix
        ]
        if number:  # full, so that the first token it scores has as much context as the stride leaves
            assert len(span.tokens) - span.scored >= n_ctx - (stride or n_ctx) + 1
            assert len(span.tokens) == n_ctx + 1


def test_an_ending_keeps_what_fits() -> None:
    assert ending([1, 2], [3, 4], 3) == (Span([1, 2, 3, 4], 2), False)
    assert ending([0, 1, 2], [3, 4], 3) == (Span([1, 2, 3, 4], 2), True)
    assert ending([0], [1, 2, 3, 4, 5], 3) == (Span([2, 3, 4, 5], 3), True)  # longer than the context by itself


def test_spans_have_the_scores_they_have_alone(engine: DeviceEngine) -> None:
    """Batches, padding and order change nothing; log-probabilities and right predictions are those of the logits."""
    rng = np.random.default_rng(0)
    lengths = [2, 25, 9, 17, 5, 5, 12, 24, 3]
    spans = [Span(rng.integers(0, 64, n).tolist(), int(rng.integers(1, n))) for n in lengths] + [Span([5], 0)]
    best = [int(np.argmax(engine.logits(np.array([span.tokens[:-1]], np.int32))[0, -1])) for span in spans[:3]]
    spans[:3] = [Span([*span.tokens[:-1], token], 1) for span, token in zip(spans, best, strict=False)]
    found = SpanScorer(engine).score(spans)
    for number, span in enumerate(spans[:-1]):
        logits = engine.logits(np.array([span.tokens[:-1]], np.int32)).numpy()[0, -span.scored :].astype(np.float64)
        labels = np.array(span.tokens[-span.scored :])
        log_z = np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1)) + logits.max(-1)
        wanted = (logits[np.arange(len(labels)), labels] - log_z).sum()
        assert found.logprobs[number] == pytest.approx(wanted, abs=1e-4)
        assert found.correct[number] == (logits.argmax(-1) == labels).sum()
    assert found.correct[:3].tolist() == [1, 1, 1]
    assert (found.logprobs[-1], found.correct[-1]) == (0.0, 0)  # nothing of it is scored


def test_few_forms_are_compiled(engine: DeviceEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    forms = set()

    def scores(tokens: np.ndarray) -> tuple[object, ...]:
        forms.add(tokens.shape)
        return tf.zeros(tokens[:, 1:].shape), tf.zeros(tokens[:, 1:].shape)

    monkeypatch.setattr(engine, "score", scores)
    monkeypatch.setattr(engine, "config", tiny_config(n_ctx=512, eval_batch_size=3))
    SpanScorer(engine).score([Span([0] * n, 1) for n in range(2, 500)])
    assert forms == {(3, 513), (3, 257), (3, 129)}
