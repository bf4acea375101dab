"""Mixtures in which a token goes to its k favourite experts: against NumPy, on meshes, at any load."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from gpt_mesh import model_fns
from gpt_mesh.config import Config
from gpt_mesh.errors import InputError
from gpt_mesh.models.experts import rows
from gpt_mesh.models.shapes import weight_shapes
from gpt_mesh.planning.memory import training_memory
from gpt_mesh.planning.metrics import flops_per_token
from tests.models.test_cache import cached_logits
from tests.support.mixtures import EMBD, EXPERTS, MixtureLayer, assert_close, inputs, mixture_config
from tests.support.models import enlarge_weights, make_engine, tiny_config, token_batch
from tests.support.moe_reference import TopK

MIXTRAL = {"moe_gating": "top_k", "moe_glu": True, "moe_dropless": True}


@pytest.fixture(autouse=True, params=[pytest.param(False, id="roomy"), pytest.param(True, id="overflowing")])
def slots(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether some choices find no slot."""
    if request.param:
        monkeypatch.setattr(rows, "MIN_SLOTS", 8)
        monkeypatch.setattr(rows, "SPARE", 0.3)


def top_k_config(*, mesh_shape: str = "", layout: str = "", **params: Any) -> Config:
    """The first layer is gated experts with SiLU."""
    params = {**MIXTRAL, **params}
    return mixture_config(mesh_shape=mesh_shape, layout=layout, keys={"moe_activation": "silu"}, **params)


def check(layer: MixtureLayer, wanted: TopK) -> np.ndarray:
    """Output, balance loss and load are those of the reference; returns the load."""
    found, (y, loss, load) = layer(inputs()), wanted(inputs())
    np.testing.assert_allclose(found["y"], y, rtol=0, atol=1e-12)
    np.testing.assert_allclose(found["loss"], loss * layer.config.model.moe_params.moe_loss_coef, rtol=1e-12)
    np.testing.assert_allclose(found["load"], load, rtol=0, atol=1e-12)
    return load


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("count", [1, 2, 3, EXPERTS])
@pytest.mark.parametrize("normalised", [True, False])
def test_numbers_are_those_of_the_reference(count, normalised, train):
    layer = MixtureLayer(top_k_config(moe_top_k=count, moe_norm_topk_prob=normalised), train=train)
    assert check(layer, TopK(layer.weights(), count, normalised)).sum() == count


def test_shared_experts_read_every_token():
    layer = MixtureLayer(top_k_config(moe_shared_expert_size=6), train=True)
    assert layer.weights()["shared/wg"].shape == (EMBD, 6)
    check(layer, TopK(layer.weights(), 2))


@pytest.mark.parametrize("factor, capacity", [(0.1, 4), (0.8, 7), (1.25, 10)])
def test_capacity_counts_all_choices(factor, capacity):
    config = top_k_config(moe_dropless=False, moe_capacity_factor_train=factor, moe_group_size=1024)
    layer = MixtureLayer(config, train=True)
    load = check(layer, TopK(layer.weights(), 2, capacity=capacity))
    assert load.sum() < 2, "tokens should be dropped here"


def test_gates_that_underflow_still_give_weights_that_sum_to_one():
    layer = MixtureLayer(top_k_config(), train=True)
    gating = layer.engine.store.masters["gpt2/h0/moe/gating/kernel"]
    gating.assign(gating * 1e5)
    found = layer(inputs())
    assert found["load"].sum() == 2
    assert all(np.isfinite(array).all() for array in found.values())


OTHER = r"no effect with moe_gating = top_k; remove it, or use top_2"
REFUSED = [
    ({"moe_gating": "top_k", "moe_top_k": 5}, '{"moe_top_k": 5}: more than moe_num_experts = 4; lower it'),
    ({"moe_top_k": 3}, '{"moe_top_k": 3}: no effect with moe_gating = top_2; remove it, or use top_k'),
    ({"moe_dropless": True}, '{"moe_dropless": true}: no effect with moe_gating = top_2'),
    ({"moe_norm_topk_prob": False}, '{"moe_norm_topk_prob": false}: no effect with moe_gating = top_2'),
    ({**MIXTRAL, "moe_second_policy_train": "all"}, '{"moe_second_policy_train": "all"}: ' + OTHER),
    ({**MIXTRAL, "moe_use_second_place_loss": True}, '{"moe_use_second_place_loss": true}: ' + OTHER),
    ({**MIXTRAL, "moe_capacity_factor_eval": 2}, '{"moe_capacity_factor_eval": 2.0}: limits what moe_dropless leaves'),
    ({**MIXTRAL, "moe_dropout_rate": 0.1}, '{"moe_dropout_rate": 0.1}: not available with moe_dropless'),
    ({"moe_gating": "top_3"}, 'moe_gating.*"top_3".*top_2, top_k'),
    ({"moe_shared_expert_size": -1}, "moe_shared_expert_size.*must be >= 0"),
]


@pytest.mark.parametrize("params, words", REFUSED)
def test_what_cannot_work_is_refused_in_one_line(params, words):
    with pytest.raises(InputError, match=words) as refusal:
        mixture_config(**params)
    assert "\n" not in str(refusal.value)


def test_a_mixture_has_the_weights_that_its_settings_say():
    shapes = weight_shapes(top_k_config(moe_shared_expert_size=6).model)
    found = {name.removeprefix("gpt2/h0/moe/"): list(shape.to_integer_list) for name, shape in shapes.items()}
    assert {name: size for name, size in found.items() if "/" in name and not name.startswith("gpt2")} == {
        "gating/kernel": [EMBD, EXPERTS],
        "experts/wi": [EXPERTS, EMBD, 12],
        "experts/wg": [EXPERTS, EMBD, 12],
        "experts/wo": [EXPERTS, 12, EMBD],
        "shared/wi": [EMBD, 6],
        "shared/wg": [EMBD, 6],
        "shared/wo": [6, EMBD],
    }


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
    ("x:4", "batch:x,experts:x"),
    ("x:2", "sequence:x,experts:x"),
    ("x:2,y:2", "experts:x,expert_hidden:y"),
    ("x:2,y:2", "batch:x,experts:x,embd:y"),
    ("x:2,y:2", "batch:x,experts:x,expert_hidden:y"),
    ("x:2,y:2", "batch:x,sequence:y,experts:x"),
]


@pytest.fixture(scope="module")
def on_one_device() -> dict[str, np.ndarray]:
    return MixtureLayer(top_k_config(moe_shared_expert_size=6), train=True)(inputs())


@pytest.mark.parametrize(
    "mesh_shape, layout", LAYOUTS + [pytest.param(*pair, marks=pytest.mark.slow) for pair in MORE_LAYOUTS]
)
def test_every_layout_gives_the_numbers_of_one_device(mesh_shape, layout, on_one_device):
    config = top_k_config(moe_shared_expert_size=6, mesh_shape=mesh_shape, layout=layout)
    assert_close(MixtureLayer(config, train=True)(inputs()), on_one_device)


@pytest.mark.parametrize("rows", [1, 4])
def test_cached_decoding_gives_the_logits_of_the_full_pass(rows):
    """One row has fewer choices a step than there are experts, and reads their matrices alone."""
    params = {**MIXTRAL, "moe_num_experts": EXPERTS, "moe_shared_expert_size": 6}
    config = tiny_config(moe_layers=[0, 1], moe_params=params, moe_activation="silu")
    engine = make_engine(config, compiled=False)
    cached, tokens = cached_logits(engine, 5, tf.float64), token_batch(config, rows=rows, width=config.model.n_ctx)
    cached.traced(tf.TensorSpec(tokens.shape, tf.int32))
    enlarge_weights(engine)
    full = engine.function(lambda tokens: model_fns.build_logits(tokens, config, engine.mesh_impl, tf.float64))
    np.testing.assert_allclose(cached(tokens), full(tokens), rtol=0, atol=1e-9)


def test_all_experts_are_computed_where_operations_are_not_fused():
    """And give the same losses."""
    losses = []
    for fused in (True, False):
        params = {**MIXTRAL, "moe_num_experts": EXPERTS}
        config = tiny_config(moe_layers=[0, 1], moe_params=params, moe_activation="silu", fused_ops=fused)
        engine = make_engine(config, compiled=False)
        engine.create_variables(training=True)
        enlarge_weights(engine)
        losses.append([float(engine.train_step(token_batch(config, seed))["loss"]) for seed in range(3)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_a_training_step_counts_the_experts_of_a_token():
    def flops(**params: Any) -> float:
        params = {**MIXTRAL, "moe_num_experts": EXPERTS, "moe_hidden_size": 32, **params}
        return flops_per_token(tiny_config(moe_layers=[0], moe_params=params, moe_activation="silu"))

    expert = 3 * 2 * 3 * 16 * 32  # forward and twice that backward; a multiplication and an addition in three matrices
    assert flops(moe_top_k=3) - flops(moe_top_k=2) == expert
    assert flops(moe_num_experts=8) - flops() == 3 * 2 * 16 * 4  # of the gate
    assert flops(moe_shared_expert_size=32) - flops() == expert


def test_memory_grows_with_the_experts_of_a_token_alone():
    def activations(**params: Any) -> int:
        params = {**MIXTRAL, "moe_num_experts": EXPERTS, "moe_hidden_size": 32, **params}
        return training_memory(tiny_config(moe_layers=[0], moe_params=params, moe_activation="silu"))["activations"]

    tokens = 4 * 16
    three, two, many = activations(moe_top_k=3), activations(), activations(moe_num_experts=8)
    assert tokens * 2 * 32 * 4 <= three - two < 1.2 * tokens * 2 * 32 * 4
    assert many - two < tokens * 4 * 4 * 4


def test_bfloat16_keeps_gates_and_loss_in_float32():
    wide, narrow = (
        MixtureLayer(top_k_config(), train=True, dtype=dtype)(inputs()) for dtype in (tf.float64, tf.bfloat16)
    )
    assert narrow["y"].dtype == tf.bfloat16.as_numpy_dtype
    assert narrow["loss"].dtype == narrow["load"].dtype == np.float32
    np.testing.assert_allclose(narrow["loss"], wide["loss"], rtol=0.01)
    close = np.abs(narrow["y"].astype(np.float64) - wide["y"]).max(-1) < 0.05 * np.abs(wide["y"]).max()
    assert close.mean() > 0.9  # rounding may change the choice of a token with nearly equal gates
