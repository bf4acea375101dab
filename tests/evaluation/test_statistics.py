"""Means with their standard errors, against the formulas they stand for."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from gpt_mesh.evaluation.results import table
from gpt_mesh.evaluation.statistics import exponential, ratio, token_metrics
from gpt_mesh.training.report import evaluation_line


def test_with_equal_sizes_the_error_is_that_of_a_mean() -> None:
    draws = np.random.default_rng(0).standard_normal(50)
    value, error = ratio(draws, np.ones(50))
    assert value == pytest.approx(draws.mean())
    assert error == pytest.approx(draws.std(ddof=1) / math.sqrt(50))


def test_the_error_is_how_far_repeated_samples_scatter() -> None:
    """Documents of very different lengths, each with a difficulty of its own."""
    rng = np.random.default_rng(1)

    def sample() -> tuple[np.ndarray, np.ndarray]:
        tokens = rng.integers(10, 200, 300)
        return tokens * (3 + 0.5 * rng.standard_normal(300)), tokens

    found = [ratio(*sample()) for _ in range(400)]
    values, errors = np.array(found, float).T
    assert errors.mean() == pytest.approx(values.std(), rel=0.12)


def test_what_has_no_weight_is_no_draw() -> None:
    assert ratio([1.0, 3.0, 0.0], [1, 1, 0]) == ratio([1.0, 3.0], [1, 1])
    assert ratio([5.0, 0.0], [2, 0]) == (2.5, None)  # one draw has no error


def test_the_error_of_an_exponential_is_the_change_it_makes() -> None:
    low, middle, high = (exponential((2 + d, 0.001))[0] for d in (-0.001, 0, 0.001))
    assert list(exponential((2.0, 0.001))) == pytest.approx([middle, (high - low) / 2], rel=1e-5)
    assert exponential((1e6, None)) == (math.inf, None)  # a model that diverged


def test_token_metrics() -> None:
    metrics = token_metrics([150.0, 50.0], [5.0, 20.0], [50.0, 50.0], text_bytes=400)
    assert {name: value for name, value in metrics.items() if not name.endswith("_stderr")} == {
        "nll": 2.0,
        "perplexity": pytest.approx(math.exp(2.0)),
        "bits_per_byte": pytest.approx(200 / 400 / math.log(2)),
        "accuracy": 0.25,
        "tokens": 100,
        "bytes": 400,
    }
    assert metrics["nll_stderr"] == pytest.approx(1.0)  # 3 and 1 nats: half their difference
    assert metrics["bits_per_byte_stderr"] == pytest.approx(1.0 / 4 / math.log(2))
    assert json.loads(json.dumps(metrics)) == metrics
    assert token_metrics(200.0, 25.0, 100.0, None)["bits_per_byte"] is None
    assert token_metrics(200.0, 25.0, 100.0, None)["nll_stderr"] is None


def test_a_table_lines_up() -> None:
    row = {"step": 1200, "task": "lambada", "accuracy": 0.25, "accuracy_stderr": 0.0125, "passages": 1234, "x": None}
    assert table([row, {"step": 1200, "task": "validation", "nll": 2.0, "data_sha256": "ab"}]) == [
        " step  task        metric    value  standard error",
        "1,200  lambada     accuracy   0.25          0.0125",
        "                   passages  1,234",
        "1,200  validation  nll           2",
    ]


def test_a_line_of_the_log_has_numbers_that_can_be_read() -> None:
    row = {"step": 5, "task": "wikitext", "perplexity": 8989.41, "perplexity_stderr": 713.4, "tokens": 4600}
    row |= {"nll": 4.92793, "nll_stderr": 0.00481, "accuracy": 0.0, "accuracy_stderr": None, "words": 9}
    said = "step 5: wikitext perplexity 8,989.41 ± 710, nll 4.92793 ± 0.0048, accuracy 0 over 4,600 tokens"
    assert evaluation_line(row) == said
