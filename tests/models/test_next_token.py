"""Draws have the probabilities that the settings ask for, row by row."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from gpt_mesh.models.next_token import CONTROL_TYPES, Controls, choose, keep_likeliest, log_probabilities
from tests.support import reference
from tests.support.statistics import chi_square_z

DRAWS = 100_000
LOGITS = np.array([2.0, 1.0, 0.5, 0.1, -0.1, -0.5, -1.0, -2.0], np.float32)


def draw(rows, *, seen=(), eos_ids=(), logits=LOGITS, position=5, **given):
    """Ids drawn for so many rows, the settings being the same for all but where a list is given."""
    values: dict[str, Any] = {"seeds": np.arange(rows), "temperature": 1.0, "top_k": 0, "top_p": 1.0, "penalty": 1.0}
    values |= {"sparse": 0, "min_length": 0, **given}
    kinds = CONTROL_TYPES._asdict()
    controls = Controls(**{name: tf.constant(np.broadcast_to(v, rows), kinds[name]) for name, v in values.items()})
    known = np.tile(np.isin(np.arange(len(logits)), seen), (rows, 1))
    scores = tf.constant(np.tile(logits, (rows, 1)))
    return choose(scores, tf.constant(known), tf.fill([rows], position), controls, eos_ids).numpy()


def distribution(temperature=1.0, top_k=0, top_p=1.0, logits=LOGITS):
    """By sorting, in float64."""
    p = reference.softmax(logits.astype(np.float64) / temperature)
    order = np.argsort(-p, kind="stable")
    if top_k:
        p[p < p[order[top_k - 1]]] = 0.0
    p /= p.sum()
    if top_p < 1:
        count = 1 + np.searchsorted(np.cumsum(p[order]), top_p)
        p[order[count:]] = 0.0
    return p / p.sum()


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 0.7},
        {"temperature": 2.0},
        {"top_k": 3},
        {"top_p": 0.8},
        {"temperature": 1.5, "top_k": 6, "top_p": 0.9},
    ],
    ids=str,
)
def test_draws_have_the_probabilities_of_the_filtered_softmax(settings):
    expected = DRAWS * distribution(**settings)
    counts = np.bincount(draw(DRAWS, **settings), minlength=8)
    assert (counts[expected == 0] == 0).all()
    assert abs(chi_square_z(counts[expected > 0], expected[expected > 0])) < 4


def test_rows_of_one_batch_have_settings_of_their_own():
    settings: dict[str, Any] = {"temperature": [0.0, 1.0, 0.5, 3.0], "top_k": [0, 2, 0, 0], "top_p": [1, 1, 0.6, 1]}
    together = draw(4, **settings)
    apart = [draw(4, **{name: values[i] for name, values in settings.items()})[i] for i in range(4)]
    assert together.tolist() == [int(one) for one in apart]


@pytest.mark.parametrize("top_k", [0, 1, 7, 500])
@pytest.mark.parametrize("top_p", [1e-46, 1e-9, 0.3, 0.99, 1.0])  # the first is 0 in float32
def test_filters_keep_what_sorting_keeps(top_k, top_p):
    logits = np.random.default_rng(3).normal(size=500).astype(np.float32) * 3
    kept = keep_likeliest(tf.constant(logits[None]), tf.constant([top_k]), tf.constant([top_p], tf.float32))
    np.testing.assert_array_equal(np.isfinite(kept.numpy()[0]), distribution(1.0, top_k, top_p, logits) > 0)


def test_scores_of_seen_tokens_are_moved_towards_the_unlikely():
    logits = np.array([2.0, 1.5, -1.0, -1.5], np.float32)
    assert draw(1, logits=logits, temperature=0.0)[0] == 0
    assert draw(1, logits=logits, temperature=0.0, seen=[0], penalty=1.5)[0] == 1
    # Drawn: 2 / 2 for the first, -1 * 2 for the third.
    counts = np.bincount(draw(DRAWS, logits=logits, seen=[0, 2], penalty=2.0), minlength=4)
    assert abs(chi_square_z(counts, DRAWS * distribution(logits=np.array([1.0, 1.5, -2.0, -1.5])))) < 4


def test_no_end_of_text_before_the_least_length():
    found = draw(3, temperature=0.0, eos_ids=(0,), position=5, min_length=[6, 7, 8])  # the new token is the seventh
    assert found.tolist() == [0, 1, 1]


@pytest.mark.parametrize("temperature", [3.0, 1e39])
def test_no_heat_makes_what_may_not_be_drawn_possible(temperature):
    assert (draw(1000, temperature=temperature, eos_ids=(0,), position=5, min_length=7) != 0).all()


def test_a_temperature_next_to_nothing_is_greedy_and_no_nan():
    assert (draw(50, temperature=1e-30, top_p=0.5) == 0).all()


def test_log_probabilities_are_those_of_the_plain_softmax():
    chosen, ids, values = log_probabilities(tf.constant(LOGITS[None]), tf.constant([3]), 2)
    wanted = np.log(reference.softmax(LOGITS.astype(np.float64)))
    np.testing.assert_allclose(chosen, wanted[[3]], rtol=1e-5)
    assert ids.numpy().tolist() == [[0, 1]]
    np.testing.assert_allclose(values, wanted[None, :2], rtol=1e-5)
