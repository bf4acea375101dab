"""The mixture of experts: its numbers, its independence of layout and neighbours, and its randomness."""

from __future__ import annotations

import re
from typing import Any

from gpt_mesh.meshes.compat import mtf

import numpy as np
import pytest
import tensorflow as tf

from gpt_mesh import model_fns
from gpt_mesh.errors import InputError
from gpt_mesh.models import dropout
from gpt_mesh.models.experts.mixture import mixture_of_experts
from gpt_mesh.sample import Row
from tests.support.decoding import generate
from tests.support.mixtures import (
    BATCH,
    EMBD,
    EXPERTS,
    LENGTH,
    SEED,
    MixtureLayer,
    assert_close,
    inputs,
    mixture_config,
)  # fmt: skip
from tests.support.models import enlarge_weights, make_engine, on_mesh, tiny_config, token_batch, weights_of
from tests.support.moe_reference import Mixture

# Both random draws of a training pass, and capacities that drop tokens.
RANDOM: dict[str, Any] = {
    "moe_dropout_rate": 0.3,
    "moe_second_policy_train": "random",
    "moe_second_threshold_train": 0.45,
}


def reference(layer: MixtureLayer, **settings: Any) -> Mixture:
    weights = layer.weights()
    return Mixture(weights["gating/kernel"], weights["experts/wi"], weights["experts/wo"], **settings)


def draws() -> np.ndarray:
    """[batch, sequence], those of the layer."""
    shape = mtf.Shape([mtf.Dimension("batch", BATCH), mtf.Dimension("sequence", LENGTH)])
    return on_mesh(lambda seed: dropout.Draw(shape, seed, "h0/moe/second_expert").outputs, [(np.int32(SEED), [])])[0]


def check_against_reference(layer: MixtureLayer, mixture: Mixture, given: np.ndarray | None = None) -> np.ndarray:
    """Output, balance loss and load are those of the reference; returns the load."""
    x = inputs()
    found = layer(x)
    y, loss, load = mixture(x, given)
    np.testing.assert_allclose(found["y"], y, rtol=0, atol=1e-12)
    np.testing.assert_allclose(found["loss"], loss * layer.config.model.moe_params.moe_loss_coef, rtol=1e-12)
    np.testing.assert_allclose(found["load"], load, rtol=0, atol=1e-12)
    return load


# Capacity in a group of 8 for 4 experts: the factor times 2, at least 4 and at most 8.
@pytest.mark.parametrize("factor, capacity", [(0.5, 4), (2.3, 5), (3.0, 6), (9.0, 8)])
@pytest.mark.parametrize("policy", ["all", "none", "threshold", "random"])
def test_training_is_that_of_the_reference(policy, factor, capacity):
    config = mixture_config(
        moe_capacity_factor_train=factor, moe_second_policy_train=policy, moe_second_threshold_train=0.45
    )
    layer = MixtureLayer(config, train=True)
    mixture = reference(layer, group=8, capacity=capacity, policy=policy, threshold=0.45)
    load = check_against_reference(layer, mixture, draws())
    if policy == "none":
        assert load.sum() == 1 if capacity == 8 else load.sum() <= 1
    elif policy in ("threshold", "random"):
        assert 1 < load.sum() < 2, "the policy should tell tokens apart here"
    elif capacity < 6:
        assert load.sum() < 2, "tokens should be dropped here"


@pytest.mark.parametrize("size, group", [(1, 1), (5, 4), (8, 8), (16, 16), (1000, 16)])
def test_groups_are_the_largest_equal_parts_of_a_sequence(size, group):
    layer = MixtureLayer(mixture_config(moe_group_size=size, moe_second_policy_train="all"), train=True)
    capacity = min(group, max(4, -(-5 * group // (4 * EXPERTS))))
    check_against_reference(layer, reference(layer, group=group, capacity=capacity))


@pytest.mark.parametrize("policy, threshold", [("all", 0.2), ("none", 0.2), ("threshold", 0.45)])
@pytest.mark.parametrize("factor, capacity", [(None, 8), (0.5, 4)])
def test_evaluation_is_that_of_the_reference(policy, threshold, factor, capacity):
    config = mixture_config(
        moe_capacity_factor_eval=factor,
        moe_second_policy_eval=policy,
        moe_second_threshold_eval=threshold,
        # What training would do must not matter.
        moe_capacity_factor_train=0.1,
        moe_second_policy_train="random",
        moe_dropout_rate=0.5,
    )
    layer = MixtureLayer(config, train=False)
    mixture = reference(layer, group=8, capacity=capacity, policy=policy, threshold=threshold)
    load = check_against_reference(layer, mixture)
    if factor is None:
        assert load.sum() == {"all": 2, "none": 1}.get(policy, load.sum())


def test_the_loss_of_second_choices_is_that_of_the_reference():
    layer = MixtureLayer(mixture_config(moe_use_second_place_loss=True, moe_loss_coef=0.3), train=True)
    with_second = reference(layer, group=8, capacity=4, policy="random", threshold=0.2, second_place_loss=True)
    check_against_reference(layer, with_second, draws())


def test_balance_costs_its_weight_and_collapse_that_times_the_experts():
    layer = MixtureLayer(mixture_config(moe_loss_coef=0.5), train=True)
    gating = layer.engine.store.masters["gpt2/h0/moe/gating/kernel"]
    gating.assign(np.zeros((EMBD, EXPERTS)))
    np.testing.assert_allclose(layer(inputs())["loss"], 0.5, rtol=1e-12)
    gating.assign(np.eye(EMBD, EXPERTS) * 100)
    towards_one = np.zeros((BATCH, LENGTH, EMBD))
    towards_one[..., 2] = 1.0
    np.testing.assert_allclose(layer(towards_one)["loss"], 0.5 * EXPERTS, rtol=1e-12)


def test_gates_that_vanish_still_name_two_experts():
    layer = MixtureLayer(mixture_config(), train=False)
    gating = layer.engine.store.masters["gpt2/h0/moe/gating/kernel"]
    gating.assign(gating * 1e5)
    check_against_reference(layer, reference(layer, group=8, capacity=8))
    found = layer(inputs())
    assert found["load"].sum() == 2 and found["load"].max() <= 1
    assert all(np.isfinite(array).all() for array in found.values())


@pytest.mark.parametrize("train", [True, False])
def test_gradients_are_finite_differences(train):
    config = mixture_config(**RANDOM, moe_use_second_place_loss=True, moe_loss_coef=1.0)
    layer, x, rng, step = MixtureLayer(config, train=train), inputs(), np.random.default_rng(3), 1e-6
    found = layer(x)

    def objective(name: str, change: np.ndarray) -> float:
        if name == "x":
            return float(layer(x + change)["objective"])
        variable = layer.engine.store.masters[f"gpt2/h0/moe/{name}"]
        variable.assign_add(change)
        value = float(layer(x)["objective"])
        variable.assign_sub(change)
        return value

    names = [name for name in found if name.startswith("d/")]
    assert sorted(names) == ["d/experts/wi", "d/experts/wo", "d/gating/kernel", "d/x"]
    for name in names:
        for _ in range(3):
            along = rng.standard_normal(found[name].shape)
            slope = (objective(name[2:], along * step) - objective(name[2:], -along * step)) / (2 * step)
            np.testing.assert_allclose((found[name] * along).sum(), slope, rtol=1e-6, atol=1e-6, err_msg=name)


def test_outside_training_a_token_is_alone():
    layer, x = MixtureLayer(mixture_config(), train=False), inputs()
    y = layer(x)["y"]
    crowd = inputs(5)
    crowd[1, 6] = x[1, 6]
    np.testing.assert_allclose(layer(crowd)["y"][1, 6], y[1, 6], rtol=0, atol=1e-14)
    for row, position in ((0, 0), (3, 15)):
        alone = layer(x[row : row + 1, position : position + 1])["y"]
        np.testing.assert_allclose(alone[0, 0], y[row, position], rtol=0, atol=1e-14)


def test_in_training_a_sequence_is_alone():
    config = mixture_config(moe_second_policy_train="all", moe_capacity_factor_train=0.1)
    layer, x = MixtureLayer(config, train=True), inputs()
    np.testing.assert_allclose(layer(x[2:3])["y"][0], layer(x)["y"][2], rtol=0, atol=1e-14)


def test_a_token_that_no_expert_has_room_for_gets_zeros():
    layer = MixtureLayer(mixture_config(moe_second_policy_train="none", moe_capacity_factor_train=0.1), train=True)
    same = np.broadcast_to(inputs()[0, 0], (BATCH, LENGTH, EMBD))
    y = layer(same)["y"].reshape(BATCH, 2, 8, EMBD)
    assert np.all(y[:, :, 4:] == 0), "all of a group choose one expert, which takes the first four"
    assert np.all(np.abs(y[:, :, :4]).max(-1) > 0.01)


def test_draws_are_uniform_and_differ_by_seed_and_site():
    shape = mtf.Shape([mtf.Dimension("batch", 100), mtf.Dimension("sequence", 100)])

    def draw(seed: int, site: str) -> np.ndarray:
        return on_mesh(lambda s: dropout.Draw(shape, s, site).outputs, [(np.int32(seed), [])])[0]

    first = draw(1, "a")
    assert 0 <= first.min() < 0.01 and 0.99 < first.max() < 1
    counts, _ = np.histogram(first, 10, (0, 1))
    assert np.abs(counts - 1000).max() < 150  # five standard deviations
    np.testing.assert_array_equal(first, draw(1, "a"))
    for other in (draw(2, "a"), draw(1, "b")):
        assert abs(np.corrcoef(first.ravel(), other.ravel())[0, 1]) < 0.05


def test_dropout_is_seeded_and_for_training_only():
    config = mixture_config(moe_dropout_rate=0.5, moe_second_policy_train="all")
    first, again, other = (MixtureLayer(config, train=True, seed=seed)(inputs())["y"] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0.1
    # Evaluation without dropout is held against the reference above.


def test_bfloat16_keeps_gates_and_loss_in_float32():
    wide, narrow = (
        MixtureLayer(mixture_config(), train=False, dtype=dtype)(inputs()) for dtype in (tf.float64, tf.bfloat16)
    )
    assert narrow["y"].dtype == tf.bfloat16.as_numpy_dtype
    assert narrow["loss"].dtype == narrow["load"].dtype == np.float32
    np.testing.assert_allclose(narrow["loss"], wide["loss"], rtol=0.01)
    # Rounding the input may turn the choice of a token with nearly equal gates.
    close = np.abs(narrow["y"].astype(np.float64) - wide["y"]).max(-1) < 0.05 * np.abs(wide["y"]).max()
    assert close.mean() > 0.9


LAYOUTS = [
    ("x:2", "batch:x"),
    ("x:2", "embd:x"),
    ("x:2", "experts:x"),
    ("x:2", "expert_hidden:x"),
    ("x:2", "sequence:x"),
    ("x:2", "batch:x,experts:x"),
    ("x:2,y:2", "batch:x,experts:y"),
]
MORE_LAYOUTS = [
    ("x:4", "sequence:x"),
    ("x:4", "batch:x,experts:x"),
    ("x:2", "sequence:x,experts:x"),
    ("x:2,y:2", "experts:x,expert_hidden:y"),
    ("x:2,y:2", "batch:x,experts:x,embd:y"),
    ("x:2,y:2", "batch:x,experts:x,expert_hidden:y"),
    ("x:2,y:2", "batch:x,sequence:y,experts:x"),
    ("x:2,y:2", "batch:x,sequence:y,experts:y"),
    ("x:2,y:2", "batch:x,embd:y,memory_length:y"),
]


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize(
    "mesh_shape, layout", LAYOUTS + [pytest.param(*pair, marks=pytest.mark.slow) for pair in MORE_LAYOUTS]
)
def test_every_layout_gives_the_numbers_of_one_device(mesh_shape, layout, train, on_one_device):
    found = MixtureLayer(mixture_config(**RANDOM, mesh_shape=mesh_shape, layout=layout), train=train)(inputs())
    assert_close(found, on_one_device[train])


@pytest.fixture(scope="module")
def on_one_device() -> dict[bool, dict[str, np.ndarray]]:
    return {train: MixtureLayer(mixture_config(**RANDOM), train=train)(inputs()) for train in (True, False)}


@pytest.mark.parametrize(
    "layout, words",
    [
        ("experts:x,expert_hidden:x", "expert kernels [experts, embd, expert_hidden] would be split twice along x"),
        (
            "batch:x,expert_hidden:x",
            "expert activations [batch, groups, experts, expert_capacity, expert_hidden] would be split twice along x",
        ),
        ("experts:x,embd:x", "expert kernels [experts, embd, expert_hidden] would be split twice along x"),
    ],
)
def test_layouts_that_cannot_work_are_refused(layout, words):
    with pytest.raises(InputError, match=re.escape(words)):
        make_engine(mixture_config(mesh_shape="x:2", layout=layout))


def test_experts_that_do_not_divide_are_refused():
    words = "experts (moe_num_experts = 3) does not divide by mesh dimension x (2)"
    with pytest.raises(InputError, match=re.escape(words)):
        make_engine(mixture_config(mesh_shape="x:2", layout="experts:x", moe_num_experts=3))


def test_a_model_without_mixtures_ignores_a_layout_of_experts():
    make_engine(tiny_config(mesh_shape="x:2", layout="batch:x,experts:x"))


def test_nothing_random_is_accepted_outside_training():
    with pytest.raises(InputError, match=r"moe_second_policy_eval.*all, none, threshold"):
        mixture_config(moe_second_policy_eval="random")


def test_wrong_dimensions_are_named():
    config = mixture_config()
    engine = make_engine(config)
    ctx = model_fns.make_context(config, engine.mesh_impl, BATCH, LENGTH)
    x = mtf.zeros(ctx.mesh, mtf.Shape([ctx.dims.sequence, ctx.dims.batch, ctx.dims.embd]))
    with pytest.raises(ValueError, match=r"h0/moe: needs \[batch, sequence, embd\], not .*sequence=16, batch=4"):
        mixture_of_experts(ctx, x, "h0/moe", "h0/moe")


@pytest.mark.parametrize("scale_by_in", [False, True])
def test_initial_weights_have_their_spread(scale_by_in):
    config = tiny_config(n_embd=64, n_layer=2, moe_layers=[1], scale_by_in=scale_by_in, moe_params={})
    engine = make_engine(config, compiled=False)
    engine.create_variables(training=False)
    weights = weights_of(engine)
    spreads = {
        "gating/kernel": ((64, 16), 0.02 * (64**-0.5 if scale_by_in else 1)),
        "experts/wi": ((16, 64, 256), 0.02 * (64**-0.5 if scale_by_in else 1)),
        "experts/wo": ((16, 256, 64), 0.02 * 2**-0.5 * (256**-0.5 if scale_by_in else 1)),
    }
    assert {name for name in weights if "moe" in name} == {f"h1/moe/{name}" for name in spreads}
    assert not any(name.startswith("h1/mlp") for name in weights)
    for name, (shape, spread) in spreads.items():
        weight = weights[f"h1/moe/{name}"]
        assert weight.shape == shape
        np.testing.assert_allclose(weight.std(), spread, rtol=0.1, err_msg=name)


def test_the_loss_has_each_mixtures_balance_once():
    config = tiny_config(z_loss=0, moe_layers=[0, 1], moe_params={"moe_loss_coef": 0.5})
    found = make_engine(config, compiled=False).train_step(token_batch(config))
    # New gates are nearly even, and each mixture then costs its coefficient.
    assert float(found["loss"] - found["nll"]) == pytest.approx(2 * 0.5, rel=0.1)


@pytest.mark.parametrize(
    "mesh_shape, layout", [("", ""), pytest.param("x:2", "batch:x,experts:x", marks=pytest.mark.slow)]
)
def test_decoding_continues_as_the_full_pass_does(mesh_shape, layout):
    config = tiny_config(
        moe_layers=[0, 1], moe_params={"moe_num_experts": 4}, mesh_shape=mesh_shape, layout=layout, train_batch_size=2
    )
    engine = make_engine(config, compiled=False)
    engine.logits(np.zeros((2, config.model.n_ctx), np.int32))  # creates the variables
    enlarge_weights(engine)
    prompts = [[3, 1, 4, 1, 5], [9, 2]]
    found = generate(engine, [Row(prompt, 6, 0) for prompt in prompts], 0.0, batch=2)
    for prompt, continuation in zip(prompts, found, strict=True):
        rows = np.zeros((2, config.model.n_ctx), np.int32)
        rows[0, : len(prompt) + 6] = prompt + continuation
        likeliest = engine.logits(rows).numpy()[0].argmax(-1)
        assert continuation == likeliest[len(prompt) - 1 : len(prompt) + 5].tolist()
