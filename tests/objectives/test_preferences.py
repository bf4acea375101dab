"""Learning from preferences: losses and rewards against NumPy float64, written from the papers (see
tests/support/peers/preferences.py for them), and what layouts and microbatches leave as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from gpt_mesh.config import OBJECTIVES, Config
from gpt_mesh.engine.engine import DeviceEngine
from gpt_mesh.errors import InputError
from gpt_mesh.objectives.registry import find, objective_of
from tests.support import reference
from tests.support.models import ONE_LAYER, make_engine, tiny_config, token_batch, unoptimised_graphs, weights_of
from tests.support.preference_runs import CASES
from tests.support.preferences import random_pairs, set_weights

Arrays = dict[str, np.ndarray]
KTO = CASES["kto"]
SPLIT = {"mesh_shape": "x:2,y:2", "layout": "batch:x,heads:y,vocab:y", "tokens_per_mb_per_replica": 32}


def engine_of(**keys: Any) -> DeviceEngine:
    engine = make_engine(tiny_config(**ONE_LAYER, z_loss=0.0, **keys), compiled=False)
    engine.create_variables(training=True)
    set_weights(engine, 0.3)
    return engine


def reference_weights(engine: DeviceEngine) -> Arrays:
    return {name[15:]: v.numpy() for name, v in engine.store.masters.items() if name.startswith("reference/gpt2/")}


def log_probabilities(weights: Arrays, texts: np.ndarray, config: Config) -> tuple[np.ndarray, np.ndarray]:
    """Sums over learned tokens, and their numbers, of marked texts [batch, n + 1]."""
    ids, learned = np.maximum(texts, ~texts), texts[:, 1:] >= 0
    nll, _ = reference.nll_and_log_z(reference.logits(weights, ids[:, :-1], config.model), ids[:, 1:])
    return -(nll * learned).sum(-1), learned.sum(-1)


def log_sigmoid(x: np.ndarray) -> np.ndarray:
    return -np.logaddexp(0, -x)


PAIR_LOSSES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "sigmoid": lambda sums, means: -0.9 * log_sigmoid(0.3 * sums) - 0.1 * log_sigmoid(-0.3 * sums),
    "ipo": lambda sums, means: (means - 1.0) ** 2,
    "hinge": lambda sums, means: np.maximum(0, 1 - 0.05 * sums),
    "free": lambda sums, means: -log_sigmoid(0.1 * sums),
}


@pytest.mark.parametrize("case", PAIR_LOSSES)
def test_direct_preference_optimization(case: str) -> None:
    engine = engine_of(**CASES[case])
    config, pairs = engine.config, random_pairs(engine.config)
    flat = pairs.reshape(-1, pairs.shape[-1])
    sums, counts = log_probabilities(weights_of(engine), flat, config)
    assert bool(reference_weights(engine)) == (case != "free")
    ratios = sums if case == "free" else sums - log_probabilities(reference_weights(engine), flat, config)[0]
    by_pair, means = ratios.reshape(-1, 2), (ratios / counts).reshape(-1, 2)
    margins = by_pair[:, 0] - by_pair[:, 1]
    expected = PAIR_LOSSES[case](margins, means[:, 0] - means[:, 1])
    with unoptimised_graphs():
        loss, nll, chosen, rejected, correct = (x.numpy() for x in engine.compare(pairs))
        beta = config.preferences.dpo_beta
        np.testing.assert_allclose(loss, expected, rtol=1e-5)
        np.testing.assert_allclose(nll, -log_sigmoid(beta * margins), rtol=1e-5)
        np.testing.assert_allclose(np.stack([chosen, rejected], 1), beta * by_pair, rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(correct, margins > 0)
        if case != "sigmoid":
            return
        told = {name: float(x) for name, x in engine.train_step(pairs).items()}
    np.testing.assert_allclose(told["loss"], expected.mean(), rtol=1e-5)
    np.testing.assert_allclose(told["rewards/margin"], beta * margins.mean(), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(told["rewards/accuracy"], (margins > 0).mean())
    np.testing.assert_allclose(told["logps/chosen"], sums[0::2].mean(), rtol=1e-5)


def exchanged(texts: np.ndarray) -> np.ndarray:
    """Each prompt with the completion of the text before."""
    width, found = texts.shape[1], []
    for text, before in zip(texts, np.roll(texts, 1, 0), strict=True):
        learned = np.flatnonzero(before >= 0)
        row = [*text[: np.flatnonzero(text >= 0)[0]], *before[learned[0] : learned[-1] + 1]]
        found.append((row + [~0] * width)[:width])
    return np.array(found, np.int32)


@pytest.mark.parametrize("keys", [{}, pytest.param(SPLIT, marks=pytest.mark.slow)])
def test_kahneman_tversky_optimization(keys: dict[str, Any]) -> None:
    engine = engine_of(**KTO, **keys, train_batch_size=8, recompute_grad=bool(keys))
    config, pairs = engine.config, random_pairs(engine.config, seed=1, single=True)
    desirable = np.any(pairs[:, 0] >= 0, axis=-1)
    own = np.where(desirable[:, None], pairs[:, 0], pairs[:, 1])

    def ratios(texts: np.ndarray) -> np.ndarray:
        ours, theirs = (log_probabilities(w, texts, config)[0] for w in (weights_of(engine), reference_weights(engine)))
        return ours - theirs

    divergence = max(0.0, ratios(exchanged(own)).mean())
    found = ratios(own)
    value = 0.2 * np.where(desirable, found - divergence, divergence - found)
    expected = np.where(desirable, 1.5, 0.7) * (1 - 1 / (1 + np.exp(-value)))
    with unoptimised_graphs():
        told = {name: float(x) for name, x in engine.train_step(pairs).items()}
    assert divergence > 0.05
    np.testing.assert_allclose(told["kl"], divergence, rtol=1e-4)
    np.testing.assert_allclose(told["loss"], expected.mean(), rtol=1e-5)
    np.testing.assert_allclose(told["rewards/accuracy"], (value > 0).mean())
    mean = told["rewards/chosen"] / told["rewards/chosen/examples"]
    np.testing.assert_allclose(mean, 0.2 * found[desirable].mean(), rtol=1e-4, atol=1e-6)


def test_a_reward_is_read_at_the_last_learned_token() -> None:
    engine = engine_of(**CASES["reward"])
    config, pairs = engine.config, random_pairs(engine.config)
    flat = pairs.reshape(-1, pairs.shape[-1])
    by_position = engine.rewards(np.maximum(flat, ~flat)[:, :-1]).numpy()
    last = [np.flatnonzero(text[:-1] >= 0)[-1] for text in flat]
    rewards = by_position[np.arange(len(flat)), last].reshape(-1, 2)
    weights = {name: x.astype(np.float64) for name, x in weights_of(engine).items()}
    logits = reference.logits(weights, np.maximum(flat, ~flat)[:, :-1], config.model)
    features = logits @ np.linalg.pinv(weights["wte"].T)  # which the tied embedding made logits of
    np.testing.assert_allclose(by_position, features @ weights["reward"][0], rtol=1e-4, atol=1e-5)
    loss, _, chosen, rejected, _ = (x.numpy() for x in engine.compare(pairs))
    np.testing.assert_allclose(np.stack([chosen, rejected], 1), rewards, rtol=1e-5, atol=1e-6)
    expected = -log_sigmoid(rewards[:, 0] - rewards[:, 1]) + 0.01 * rewards.sum(-1) ** 2
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    assert not any("linear_out" in name for name in engine.store.masters)


@pytest.mark.slow
def test_layouts_and_microbatches_change_nothing() -> None:
    variants: dict[str, dict[str, Any]] = {
        "plain": {},
        "microbatches": {"tokens_per_mb_per_replica": 32, "recompute_grad": True},
        "layout": {"mesh_shape": "x:2,y:2", "layout": "batch:x,heads:y,intermediate_expanded:y"},
        "bfloat16": {"precision": "bfloat16"},
    }
    told = {}
    for variant, keys in variants.items():
        engine = engine_of(**CASES["sigmoid"], **keys)
        pairs = [random_pairs(engine.config, seed) for seed in range(2)]
        told[variant] = [{name: float(x) for name, x in engine.train_step(batch).items()} for batch in pairs][1]
    for variant, found in told.items():
        rel, absolute = (0.2, 0.3) if variant == "bfloat16" else (1e-4, 1e-6)
        for name, value in told["plain"].items():
            assert found[name] == pytest.approx(value, rel=rel, abs=absolute), (variant, name)


def test_the_reference_stays_as_it_was() -> None:
    engine = engine_of(**CASES["sigmoid"])
    before, weights = reference_weights(engine), weights_of(engine)
    slots = [name for name in engine.store.masters if name.startswith("reference/") and "/adam_" in name]
    engine.train_step(random_pairs(engine.config))
    assert not slots
    assert all(np.array_equal(value, before[name]) for name, value in reference_weights(engine).items())
    assert any(not np.array_equal(value, weights[name]) for name, value in weights_of(engine).items())


@pytest.mark.slow
def test_such_a_model_is_a_language_model_still() -> None:
    engine, plain = engine_of(**CASES["free"]), engine_of()
    tokens = token_batch(engine.config)
    np.testing.assert_allclose(engine.score(tokens)[0], plain.score(tokens)[0], rtol=1e-5, atol=1e-6)


def test_the_config_knows_which_objectives_have_pairs() -> None:
    for name in OBJECTIVES:
        keys = {"mlm_training": True, "mlm_mask_id": 3} if name == "masked" else {}
        assert find(name).pairs == tiny_config(objective=name, **keys).training.learns_pairs, name


def test_kto_exchanges_completions() -> None:
    config = tiny_config(objective="kto")
    pairs = random_pairs(config, single=True)
    found = objective_of(config).features(tf.constant(pairs))
    desirable = np.any(pairs[:, 0] >= 0, axis=-1)
    expected = exchanged(np.where(desirable[:, None], pairs[:, 0], pairs[:, 1]))
    learned = expected[:, 1:] >= 0
    np.testing.assert_array_equal(found["other_weights"], learned)
    np.testing.assert_array_equal(found["other_labels"].numpy()[learned], expected[:, 1:][learned])
    np.testing.assert_array_equal(found["desirable"], desirable)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"objective": "kto", "train_batch_size": 1}, "train_batch_size = 1: kto compares each prompt"),
        ({"objective": "kto", "batch_ramp": [[1, 3]]}, "batch_ramp = 1: kto compares"),
        ({"dpo_loss": "ipo", "dpo_label_smoothing": 0.1}, "no effect with dpo_loss = ipo"),
        ({"reward_head": True}, "it follows from the objective"),
        ({"dpo_beta": 0}, "dpo_beta"),
        ({"dpo_label_smoothing": 0.5}, "dpo_label_smoothing"),
    ],
)
def test_settings_that_cannot_work(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        tiny_config(**keys)
