"""One training step: its losses, its gradients, its update, and that neither mesh nor compiler changes them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from gpt_mesh import model_fns
from gpt_mesh.engine.engine import DeviceEngine
from tests.support import reference
from tests.support.models import (
    ONE_LAYER,
    assert_all_close,
    enlarge_weights,
    make_engine,
    tiny_config,
    token_batch,
    train,
    weights_of,
)

DROPOUT = {"embed_dropout": 0.1, "attn_dropout": 0.2, "res_dropout": 0.1}


def float64_step(engine: DeviceEngine):
    """A training step in float64, as a function of tokens: loss, nll, grad_norm, lr."""

    def step(tokens: tf.Tensor) -> dict[str, tf.Tensor]:
        now = engine.global_step.read_value()
        features = {"inputs": tokens[:, :-1], "labels": tokens[:, 1:]}
        out = model_fns.build_train(features, engine.config, engine.mesh_impl, now, tf.float64)
        engine.global_step.assign(now + 1)
        return {"loss": out.loss, "nll": out.nll, "grad_norm": out.grad_norm, "lr": out.lr}

    return engine.function(step)


def float64_engine(**keys):
    """An engine with large float64 weights, its step, and a batch."""
    engine = make_engine(tiny_config(**keys), compiled=False)
    step, tokens = float64_step(engine), token_batch(engine.config)
    step.traced(tf.TensorSpec(tokens.shape, tf.int32))
    enlarge_weights(engine)
    return engine, step, tokens


# ---------------------------------------------------------------------------------------------------------------------
# Losses
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("z_loss", [0.0, 0.1])
def test_training_losses_are_those_of_the_reference(z_loss):
    engine, step, tokens = float64_engine(**ONE_LAYER, z_loss=z_loss, activation_function="relu")
    scores = reference.logits(weights_of(engine), tokens[:, :-1], engine.config.model)
    nll, log_z = reference.nll_and_log_z(scores, tokens[:, 1:])
    out = step(tokens)
    assert float(out["nll"]) == pytest.approx(nll.mean(), abs=1e-9)
    assert float(out["loss"]) == pytest.approx(nll.mean() + z_loss * (log_z**2).mean(), abs=1e-9)


@pytest.mark.parametrize("keys", [{}, {"mesh_shape": "a:2", "layout": "vocab:a"}], ids=["whole", "vocab split"])
def test_evaluation_and_scores_are_those_of_the_reference(keys):
    config = tiny_config(**keys)
    engine = make_engine(config, compiled=False)
    engine.create_variables(training=False)
    enlarge_weights(engine, scale=0.2)
    tokens = token_batch(config)
    scores = reference.logits(weights_of(engine), tokens[:, :-1], config.model)
    tokens[:, 5] = np.argmax(scores[:, 4], -1)  # some right predictions: position 4 does not see token 5
    scores = reference.logits(weights_of(engine), tokens[:, :-1], config.model)
    nll, _ = reference.nll_and_log_z(scores, tokens[:, 1:])
    correct = np.argmax(scores, -1) == tokens[:, 1:]
    weights = np.random.default_rng(0).integers(0, 2, nll.shape).astype(np.float32)
    weights[:, 4] = 1

    np.testing.assert_allclose(engine.score(tokens)[0], -nll, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(engine.score(tokens)[1], correct)
    assert correct[weights > 0].sum() >= 4
    for found, wanted in zip(engine.eval_step(tokens, weights), (nll, correct, np.ones_like(nll)), strict=True):
        np.testing.assert_allclose(found, (wanted * weights).sum(1), rtol=1e-5)  # row by row


def test_an_untrained_model_is_as_surprised_as_by_dice():
    engine = make_engine(tiny_config(n_vocab=128), compiled=False)
    nll = -np.mean(engine.score(token_batch(engine.config))[0])
    assert nll == pytest.approx(math.log(128), rel=0.02)


def test_one_batch_is_learned_by_heart():
    config = tiny_config(n_embd=32, lr=0.01, warmup_steps=10, train_steps=300, train_batch_size=2)
    engine, tokens = make_engine(config), token_batch(config)
    for _ in range(150):
        out = engine.train_step(tokens)
    assert out["nll"] < 0.05
    assert int(engine.global_step) == 150


# ---------------------------------------------------------------------------------------------------------------------
# Gradients and updates
# ---------------------------------------------------------------------------------------------------------------------


# With beta1 = 0 and no clipping, Adam's first moment is the gradient; in a warm-up, step 0 changes no weight.
GRADIENT_KEYS = {"beta1": 0.0, "gradient_clipping": None, "warmup_steps": 10, "z_loss": 0.01}


def gradients_of(engine: DeviceEngine) -> dict[str, np.ndarray]:
    """After one step with GRADIENT_KEYS."""
    engine.store.gather()
    return {name: engine.store.masters[f"gpt2/{name}/adam_m"].numpy() for name in weights_of(engine)}


@pytest.mark.parametrize("keys", [{}, DROPOUT], ids=["plain", "dropout"])
def test_gradients_are_finite_differences_of_the_loss(keys):
    engine, step, tokens = float64_engine(n_embd=8, n_head=2, n_ctx=8, n_vocab=24, **GRADIENT_KEYS, **keys)

    def loss() -> float:
        engine.global_step.assign(0)  # the same dropout mask each time
        return float(step(tokens)["loss"])

    loss()
    gradients = gradients_of(engine)
    rng, width = np.random.default_rng(0), 1e-5
    for name, gradient in gradients.items():
        variable = engine.store.masters[f"gpt2/{name}"]
        whole = variable.numpy()
        for _ in range(3):
            place = tuple(int(rng.integers(0, size)) for size in gradient.shape)
            if name == "wte":  # a row that the batch reads and scores
                place = (int(rng.choice(tokens[:, :-1].ravel())), *place[1:])
            sides = []
            for sign in (1, -1):
                moved = whole.copy()
                moved[place] += sign * width
                variable.assign(moved)
                sides.append(loss())
            variable.assign(whole)
            difference = (sides[0] - sides[1]) / (2 * width)
            # float32 constants of GELU and of dropout's scale leave 1e-7.
            assert gradient[place] == pytest.approx(difference, rel=1e-5, abs=1e-7), (name, place)
    assert all(np.abs(gradient).max() > 1e-4 for gradient in gradients.values()), "a zero gradient shows nothing"


@pytest.mark.parametrize(
    ("mesh_shape", "layout"),
    [
        ("a:2", "heads:a,vocab:a,intermediate_expanded:a"),
        pytest.param("a:2,b:2", "batch:a,embd:b,memory_length:b", marks=pytest.mark.slow),
        pytest.param("a:2,b:2", "batch:a,heads:b,vocab:b", marks=pytest.mark.slow),
    ],
)
def test_gradients_on_a_mesh_are_those_on_one_device(mesh_shape, layout):
    found = []
    for keys in ({}, {"mesh_shape": mesh_shape, "layout": layout}):
        engine, step, tokens = float64_engine(**GRADIENT_KEYS, **keys)
        step(tokens)
        found.append(gradients_of(engine))
    assert_all_close(found[1], found[0], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "keys",
    [
        {"lr_decay": "cosine", "weight_decay": 0.1, "warmup_steps": 3, "gradient_clipping": 0.5},
        {"lr_decay": "linear", "weight_decay": 0.0, "gradient_clipping": None, "beta1": 0.5, "beta2": 0.9},
        {"lr_decay": "none", "weight_decay": 1.0, "gradient_clipping": 1e6, "epsilon": 1e-3},
    ],
    ids=["clipped", "plain", "decayed"],
)
def test_training_steps_are_those_of_a_reference_adam(keys):
    """The gradients of each step come from an engine of its own, set to the reference's weights."""
    keys = {**ONE_LAYER, "lr": 0.05, "lr_decay_end": 4, "z_loss": 0.01} | keys
    engine, step, tokens = float64_engine(**keys)
    probe, probe_step, _ = float64_engine(**keys | GRADIENT_KEYS)
    adam = reference.Adam(engine.config.optimizer, weights_of(engine))
    for i in range(6):
        for name, array in adam.weights.items():
            probe.store.masters[f"gpt2/{name}"].assign(array)
        probe.global_step.assign(0)
        probe_step(tokens)
        gradients = {name: probe.store.masters[f"gpt2/{name}/adam_m"].numpy() for name in adam.weights}
        lr = reference.learning_rate(engine.config.optimizer, i)
        norm = adam.update(gradients)
        out = step(tokens)
        assert float(out["grad_norm"]) == pytest.approx(norm, rel=1e-5)
        assert float(out["lr"]) == pytest.approx(lr, rel=1e-5, abs=1e-12)
        # The learning rate is float32.
        assert_all_close(weights_of(engine), adam.weights, rtol=1e-5, atol=1e-7)
    for slot, wanted in (("adam_m", adam.m), ("adam_v", adam.v)):
        found = {name: engine.store.masters[f"gpt2/{name}/{slot}"].numpy() for name in wanted}
        assert_all_close(found, wanted, rtol=1e-4, atol=1e-7)
    if keys["gradient_clipping"] == 0.5:
        assert norm > 0.5, "nothing was clipped"


def test_step_zero_of_a_warm_up_changes_no_weight_but_fills_the_slots():
    engine = make_engine(tiny_config(warmup_steps=5, weight_decay=0.1), compiled=False)
    engine.create_variables(training=True)
    before = weights_of(engine)
    out = engine.train_step(token_batch(engine.config))
    assert out["lr"] == 0.0
    assert_all_close(weights_of(engine), before, rtol=0)
    assert np.abs(engine.store.masters["gpt2/wte/adam_m"]).max() > 0
    assert engine.train_step(token_batch(engine.config))["lr"] > 0
    assert not np.array_equal(engine.store.masters["gpt2/wte"], before["wte"])


# ---------------------------------------------------------------------------------------------------------------------
# The same numbers on any mesh, compiled or not
# ---------------------------------------------------------------------------------------------------------------------

TRAINED = {**ONE_LAYER, "lr": 0.003, "weight_decay": 0.1, "z_loss": 0.01, "train_batch_size": 4}
STEPS = 5


@pytest.fixture(scope="module")
def single_device_losses():
    """Losses on one device, uncompiled, without and with dropout."""
    return {
        dropout: train(make_engine(tiny_config(**TRAINED, **(DROPOUT if dropout else {})), compiled=False), STEPS)
        for dropout in (False, True)
    }


def check_layout(wanted: list[float], mesh_shape: str, layout: str, dropout: bool) -> None:
    keys = TRAINED | (DROPOUT if dropout else {})
    losses = train(make_engine(tiny_config(**keys, mesh_shape=mesh_shape, layout=layout)), STEPS)
    assert losses == pytest.approx(wanted, rel=1e-5)


def test_training_on_one_device_learns_and_repeats(single_device_losses):
    losses = single_device_losses[True]
    assert losses != single_device_losses[False]
    assert len(set(losses)) == STEPS
    assert train(make_engine(tiny_config(**TRAINED, **DROPOUT), compiled=False), STEPS) == losses


@pytest.mark.parametrize(
    ("mesh_shape", "layout", "dropout"),
    [
        ("a:2", "batch:a", True),
        ("a:2", "heads:a,vocab:a,intermediate_expanded:a", False),
        ("a:2", "embd:a,memory_length:a", False),
    ],
)
def test_a_layout_does_not_change_losses(single_device_losses, mesh_shape, layout, dropout):
    check_layout(single_device_losses[dropout], mesh_shape, layout, dropout)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mesh_shape", "layout"),
    [
        ("a:4", "heads:a"),
        ("a:4", "vocab:a"),
        ("a:4", "embd:a"),
        ("a:2", "sequence:a"),
        ("a:2", "embed_sequence:a"),
        ("a:2", "sequence:a,embed_sequence:a"),
        ("a:2,b:2", "sequence:a,memory_length:b"),
        ("a:2,b:2", "heads:a,vocab:a,embd:b"),
        ("a:1,b:2", "batch:b,heads:a"),
    ],
)
def test_no_layout_changes_losses(single_device_losses, mesh_shape, layout):
    """Beside those of tests/test_meshes.py, which has more in its model."""
    check_layout(single_device_losses[True], mesh_shape, layout, dropout=True)


@pytest.mark.parametrize("dropout", [False, True], ids=["plain", "dropout"])
def test_compiling_does_not_change_losses(single_device_losses, dropout):
    engine = make_engine(tiny_config(**TRAINED, **(DROPOUT if dropout else {})))
    assert engine.compiled
    assert train(engine, STEPS) == pytest.approx(single_device_losses[dropout], rel=1e-5)


def test_a_mesh_evaluates_with_the_weights_that_it_trained():
    """The slices that training updates are those that the other graphs read, and what is gathered from them."""
    config = tiny_config(**TRAINED, mesh_shape="a:2", layout="heads:a,vocab:a")
    engine, single = make_engine(config), make_engine(tiny_config(**TRAINED), compiled=False)
    train(engine, 2)
    engine.store.gather()
    single.create_variables(training=False)
    for name, variable in single.store.masters.items():
        variable.assign(engine.store.masters[name].numpy())
    assert int(engine.store.masters["global_step"]) == 2
    tokens = token_batch(config, width=16)
    np.testing.assert_allclose(engine.logits(tokens), single.logits(tokens), rtol=1e-5, atol=1e-5)


def test_dropout_is_of_training_alone():
    engine = make_engine(tiny_config(**DROPOUT), compiled=False)
    plain = make_engine(tiny_config(), compiled=False)
    for e in (engine, plain):
        e.create_variables(training=False)
    tokens = token_batch(engine.config, width=16)
    np.testing.assert_array_equal(engine.logits(tokens), plain.logits(tokens))


def float64_loss(run: Any, now: int) -> float:
    """The loss at a step, of what float64_engine returns; the weights are put back as they were."""
    engine, step, tokens = run
    before = weights_of(engine)
    engine.global_step.assign(now)
    loss = float(step(tokens)["loss"])
    for name, array in before.items():
        engine.store.masters[f"gpt2/{name}"].assign(array)
    return loss


@pytest.mark.parametrize("site", ["embed_dropout", "attn_dropout", "res_dropout"])
def test_each_dropout_differs_between_steps(site):
    """In float64, so that no rounding is taken for a difference."""
    run = float64_engine(**ONE_LAYER, **{site: 0.5})
    assert float64_loss(run, 3) == float64_loss(run, 3), "a mask is a function of seed and step"
    assert abs(float64_loss(run, 3) - float64_loss(run, 4)) > 1e-5


def test_dropout_differs_between_seeds():
    losses = [float64_loss(float64_engine(**ONE_LAYER, embed_dropout=0.5, seed=seed), 3) for seed in (1, 2)]
    assert abs(losses[0] - losses[1]) > 1e-3, "both have the weights of enlarge_weights"


def test_bfloat16_tracks_float32(single_device_losses):
    """Activations of 8 bits of mantissa: the loss within 1 % (seen: 0.1 %), with every master and slot float32."""
    engine = make_engine(tiny_config(**TRAINED, precision="bfloat16"), compiled=False)
    losses = train(engine, STEPS)
    assert losses == pytest.approx(single_device_losses[False], rel=0.01)
    assert losses != single_device_losses[False]
    assert all(v.dtype in (tf.float32, tf.int64) for v in engine.store.masters.values())
    wte = engine.store.masters["gpt2/wte"].numpy()
    assert (wte != tf.cast(tf.cast(wte, tf.bfloat16), tf.float32).numpy()).mean() > 0.9, "masters were rounded"


@pytest.mark.slow
def test_bfloat16_learns_as_float32_does():
    config = tiny_config(n_embd=32, lr=0.01, warmup_steps=10)
    tokens, losses = token_batch(config), {}
    for precision in ("float32", "bfloat16"):
        engine = make_engine(tiny_config(n_embd=32, lr=0.01, warmup_steps=10, precision=precision))
        losses[precision] = [float(engine.train_step(tokens)["nll"]) for _ in range(60)]
    np.testing.assert_allclose(losses["bfloat16"], losses["float32"], rtol=0.05, atol=0.05)
    assert losses["bfloat16"][-1] < 0.7 * losses["bfloat16"][0]
