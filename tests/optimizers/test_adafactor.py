"""Adafactor against NumPy float64, written from algorithms 4 and 5 of Shazeer & Stern, 2018 (arXiv:1804.04235)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gpt_mesh.meshes.compat  # noqa: F401  (before TensorFlow, which it keeps quiet)

import numpy as np
import pytest
import tensorflow as tf

from gpt_mesh.config import OptimizerConfig
from gpt_mesh.optimizers import schedules
from tests.support.models import make_engine, tiny_config, token_batch
from tests.support.updates import SHAPES, gradients, initial_weights, run


class Reference:
    """One weight."""

    def __init__(self, w: np.ndarray, config: OptimizerConfig) -> None:
        self.w, self.config, self.t = w, config, 0
        self.r, self.c, self.v, self.m = (np.zeros(()) for _ in range(4))

    def update(self, g: np.ndarray, lr: float) -> None:
        o = self.config
        self.t += 1
        beta2 = 1 - self.t**-o.ada_decay_rate
        squares = g**2 + o.ada_epsilon1
        if g.ndim >= 2:
            self.r = beta2 * self.r + (1 - beta2) * squares.sum(-1)
            self.c = beta2 * self.c + (1 - beta2) * squares.sum(-2)
            v = self.r[..., :, None] * self.c[..., None, :] / self.r.sum(-1)[..., None, None]
        else:
            v = self.v = beta2 * self.v + (1 - beta2) * squares
        u = g / np.sqrt(v)
        u = u / max(1.0, np.sqrt((u**2).mean()) / 1.0)
        change = max(o.ada_epsilon2, np.sqrt((self.w**2).mean())) * lr * u
        if o.beta1 > 0:
            change = self.m = o.beta1 * self.m + (1 - o.beta1) * change
        if g.ndim >= 2:
            change = change + lr * o.weight_decay * self.w
        self.w = self.w - change


def settings(**keys: Any) -> OptimizerConfig:
    return tiny_config(opt_name="adafactor", **keys).optimizer


def expected(config: OptimizerConfig, weights: Mapping[str, np.ndarray], steps: int, scale: float = 1.0):
    references = {name: Reference(weight, config) for name, weight in weights.items()}
    for step in range(steps):
        # The schedule is computed in float32.
        lr = float(schedules.learning_rate(config, tf.constant(step)))
        for name, g in gradients(step).items():
            references[name].update(g * np.float32(scale), lr)
    return {name: reference.w for name, reference in references.items()}


def check(found: Mapping[str, np.ndarray], wanted: Mapping[str, np.ndarray]) -> None:
    assert found.keys() == wanted.keys()
    for name, weight in wanted.items():
        # beta2 is computed in the schedule's type, float32.
        np.testing.assert_allclose(found[name], weight, rtol=2e-6, atol=1e-9, err_msg=name)


@pytest.mark.parametrize(
    ("keys", "size"),
    [
        ({"beta1": 0}, 1.0),
        ({"beta1": 0.9}, 1.0),
        ({"beta1": 0.5, "weight_decay": 0.3, "ada_decay_rate": 0.5}, 2.0),
        ({"beta1": 0, "ada_epsilon2": 0.2}, 1e-2),  # weights smaller than the least scale
        ({"beta1": 0, "ada_epsilon1": 0.1}, 1.0),
        ({"beta1": 0.9, "warmup_steps": 3}, 1.0),
    ],
)
def test_six_steps_are_those_of_the_paper(keys, size):
    config, weights = settings(lr=0.1, lr_decay="none", **keys), initial_weights(size)
    found, _ = run(config, weights, 6)
    check(found, expected(config, weights, 6))
    assert all(np.abs(found[name] - weights[name]).max() > 1e-3 * size for name in SHAPES)


@pytest.mark.parametrize("layout", ["rows:x,columns:y", "experts:y,rows:x"])
def test_means_are_over_whole_rows_and_columns_in_any_layout(layout):
    config, weights = settings(lr=0.1, weight_decay=0.1), initial_weights()
    found, _ = run(config, weights, 4, "x:2,y:2", layout)
    check(found, expected(config, weights, 4))


def test_gradients_are_clipped_first():
    config, weights = settings(lr=0.1, ada_epsilon1=0.01), initial_weights()
    found, _ = run(config, weights, 3, scale=0.125)
    check(found, expected(config, weights, 3, scale=0.125))


def test_slots_are_factored_and_the_moment_is_kept_only_where_asked_for():
    _, with_moment = run(settings(beta1=0.9), initial_weights(), 1)
    assert {name: slot.shape for name, slot in with_moment.items()} == {
        "matrix/adafactor_vr": (6,),
        "matrix/adafactor_vc": (4,),
        "matrix/adafactor_m": (6, 4),
        "vector/adafactor_v": (4,),
        "vector/adafactor_m": (4,),
        "scalar/adafactor_v": (),
        "scalar/adafactor_m": (),
        "experts/adafactor_vr": (2, 6),
        "experts/adafactor_vc": (2, 4),
        "experts/adafactor_m": (2, 6, 4),
    }
    _, without = run(settings(beta1=0), initial_weights(), 1)
    assert without.keys() == {name for name in with_moment if not name.endswith("_m")}


def test_slots_hold_means_of_the_squares():
    _, slots = run(settings(), initial_weights(), 1)
    squares = gradients(0)["matrix"] ** 2
    np.testing.assert_allclose(slots["matrix/adafactor_vr"], squares.mean(1) + 1e-30, rtol=1e-9)
    np.testing.assert_allclose(slots["matrix/adafactor_vc"], squares.mean(0), rtol=1e-9)


def test_an_engine_trains_with_it_and_resumes_from_its_slots(tmp_path: Path):
    config = tiny_config(
        n_layer=1,
        attention_types=[[["global"], 1]],
        opt_name="adafactor",
        lr=0.3,
        warmup_steps=2,
        activation_function="prelu",
        weight_decay=0.01,
    )
    engine, tokens = make_engine(config, compiled=False), token_batch(config)
    engine.create_variables(training=True)
    before = {name: v.numpy() for name, v in engine.store.masters.items()}
    found = [{name: float(x) for name, x in engine.train_step(tokens).items()} for _ in range(2)]
    assert [step["lr"] for step in found] == pytest.approx([0, 0.15], rel=1e-2)
    for name in ("gpt2/h0/mlp/activation/slope", "gpt2/wte", "gpt2/ln_f/g"):
        assert np.abs(engine.store.masters[name].numpy() - before[name]).max() > 1e-4, name
    path = engine.save(str(tmp_path), 2, {})
    losses = [float(engine.train_step(tokens)["loss"]) for _ in range(8)]
    assert losses[-1] < losses[0] - 0.3
    resumed = make_engine(config, compiled=False)
    resumed.create_variables(training=True)
    assert resumed.restore(path) == []
    assert float(resumed.train_step(tokens)["loss"]) == losses[0]
    assert float(resumed.train_step(tokens)["loss"]) == pytest.approx(losses[1], rel=1e-6)


def test_a_checkpoint_of_adam_starts_it_afresh(tmp_path: Path):
    small: dict[str, Any] = {"n_layer": 1, "attention_types": [[["global"], 1]]}
    adam = make_engine(tiny_config(**small), compiled=False)
    adam.create_variables(training=True)
    path = adam.save(str(tmp_path), 1, {})
    engine = make_engine(tiny_config(opt_name="adafactor", **small), compiled=False)
    engine.create_variables(training=True)
    missing = engine.restore(path)
    assert "gpt2/wte/adafactor_vr" in missing
    assert all("/adafactor_" in name for name in missing)


def test_the_config_chooses_the_optimizer():
    adam = settings().model_copy(update={"opt_name": "adam"})
    _, slots = run(adam, initial_weights(), 1)
    assert {name.rpartition("/")[2] for name in slots} == {"adam_m", "adam_v"}
