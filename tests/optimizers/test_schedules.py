"""Learning rates by step."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from gpt_mesh.optimizers.schedules import learning_rate
from tests.support import reference
from tests.support.models import tiny_config


def rates(steps, **keys):
    optimizer = tiny_config(**keys).optimizer
    found = [float(learning_rate(optimizer, tf.constant(step, tf.int64))) for step in steps]
    return found, [reference.learning_rate(optimizer, step) for step in steps]


@pytest.mark.parametrize("lr_decay", ["cosine", "linear", "none"])
@pytest.mark.parametrize("warmup_steps", [0, 1, 7])
def test_rates_are_those_of_the_reference(lr_decay, warmup_steps):
    found, wanted = rates(range(60), lr=0.3, lr_decay=lr_decay, lr_decay_end=50, warmup_steps=warmup_steps)
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


@pytest.mark.parametrize(
    ("lr_decay", "wanted"),
    [("cosine", [1.0, 0.55, 0.1, 0.1]), ("linear", [1.0, 0.55, 0.1, 0.1]), ("none", [1.0, 1.0, 1.0, 1.0])],
)
def test_beginning_middle_end_and_after(lr_decay, wanted):
    found, _ = rates([0, 500, 1000, 5000], lr=1.0, lr_decay=lr_decay, lr_decay_end=1000)
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_a_quarter_of_a_cosine_is_no_line():
    [found], _ = rates([250], lr=1.0, lr_decay_end=1000)
    assert found == pytest.approx(0.1 + 0.9 * (1 + np.sqrt(0.5)) / 2, rel=1e-5)


def test_warm_up_begins_at_zero_and_multiplies_the_decay():
    found, _ = rates([0, 1, 50, 100, 101], lr=1.0, lr_decay="linear", lr_decay_end=200, warmup_steps=100)
    wanted = [0.0, 0.01 * 0.9955, 0.5 * 0.775, 0.55, 0.5455]
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_decay_ends_with_training_unless_told():
    found, _ = rates([200], lr=1.0, train_steps=200)
    assert found == pytest.approx([0.1], rel=1e-5)
