"""Log-probabilities of given tokens, and the likeliest alternatives."""

from __future__ import annotations

from gpt_mesh.meshes.compat import mtf  # noqa: F401  (before TensorFlow)

import numpy as np
import pytest

from gpt_mesh.engine.engine import DeviceEngine
from gpt_mesh.evaluation import scoring
from gpt_mesh.evaluation.scoring import Scorer
from tests.support.models import ONE_LAYER, enlarge_weights, make_engine, tiny_config, token_batch


@pytest.fixture(scope="module")
def engine() -> DeviceEngine:
    engine = make_engine(tiny_config(**ONE_LAYER), compiled=False)
    engine.create_variables(training=False)
    enlarge_weights(engine)
    return engine


def test_every_row_is_scored_as_by_the_softmax_of_its_logits(
    engine: DeviceEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of every length, the longest one token more than the context, in batches that memory limits."""
    monkeypatch.setattr(scoring, "LOGITS_BYTES", 3 * 16 * 64 * 4)
    lengths = [2, 17, 1, 5, 16]
    rows = [token_batch(engine.config, seed, rows=1, width=n)[0].tolist() for seed, n in enumerate(lengths)]
    found = list(Scorer(engine, top=3).score(rows))
    assert len(found) == len(rows)
    for row, scores in zip(rows, found, strict=True):
        n = len(row) - 1
        assert scores.logprobs.shape == (n,) and scores.top_tokens.shape == scores.top_logprobs.shape == (n, 3)
        if not n:
            continue
        logits = engine.logits(np.array([row[:-1]], np.int32)).numpy()[0].astype(np.float64)
        wanted = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        np.testing.assert_allclose(scores.logprobs, wanted[np.arange(n), row[1:]], atol=1e-4)
        order = np.argsort(-wanted, -1)[:, :3]
        np.testing.assert_array_equal(scores.top_tokens, order)
        np.testing.assert_allclose(scores.top_logprobs, np.take_along_axis(wanted, order, -1), atol=1e-4)


def test_no_rows_are_no_scores(engine: DeviceEngine) -> None:
    assert list(Scorer(engine, top=3).score([])) == []


def test_there_are_no_more_alternatives_than_tokens(engine: DeviceEngine) -> None:
    (scores,) = Scorer(engine, top=100).score([[1, 2, 3]])
    assert scores.top_tokens.shape == (2, 64)
    np.testing.assert_allclose(np.exp(scores.top_logprobs).sum(-1), 1, atol=1e-5)
