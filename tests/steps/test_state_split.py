"""Optimizer state cut over the replicas: the same numbers, a part of the memory."""

from __future__ import annotations

import pytest

from tests.support.models import make_engine, tiny_config, train, weights_of

STEPS = 4
KEYS = {"n_layer": 1, "attention_types": [[["global"], 1]], "weight_decay": 0.1, "lr": 0.003}


def engine_of(**keys):
    return make_engine(tiny_config(**KEYS | keys), compiled=False)


def slot_elements(engine) -> int:
    """Numbers of optimizer state on the first device."""
    slices = {name: parts[0].variable for name, parts in engine.store._slices.items()}
    return sum(v.shape.num_elements() for name, v in slices.items() if "/adam_" in name or "/adafactor_" in name)


@pytest.mark.parametrize(
    ("mesh_shape", "layout", "keys"),
    [
        ("a:2", "batch:a", {}),
        pytest.param("a:4", "batch:a", {"tokens_per_mb_per_replica": 16}, marks=pytest.mark.slow),
        pytest.param("a:2,b:2", "batch:a,heads:b,vocab:b,intermediate_expanded:b", {}, marks=pytest.mark.slow),
        pytest.param("a:2", "batch:a", {"opt_name": "adafactor", "lr": 0.01}, marks=pytest.mark.slow),
    ],
)
def test_split_state_changes_no_number_and_holds_a_part(mesh_shape, layout, keys):
    whole = engine_of(mesh_shape=mesh_shape, layout=layout, train_batch_size=8, **keys)
    split = engine_of(mesh_shape=mesh_shape, layout=layout, train_batch_size=8, split_optimizer_state=True, **keys)
    assert train(split, STEPS) == pytest.approx(train(whole, STEPS), rel=1e-6)
    parts = split.plan.splits["batch"]
    # Vectors, and Adafactor's factors, stay whole; they are few.
    assert slot_elements(whole) / parts <= slot_elements(split) < slot_elements(whole) / parts * 1.2
    for engine in (whole, split):
        engine.store.gather()
    for name, value in weights_of(whole).items():
        assert value == pytest.approx(weights_of(split)[name], rel=1e-4, abs=1e-6), name


def test_split_state_is_saved_whole_and_resumes_anywhere(tmp_path):
    mesh = {"mesh_shape": "a:2", "layout": "batch:a"}
    split = engine_of(**mesh, split_optimizer_state=True)
    train(split, 2)
    saved = split.save(str(tmp_path), 2, {})
    wanted = train(split, STEPS, seed=2)
    for keys in ({}, {**mesh, "split_optimizer_state": True}):
        other = engine_of(**keys)
        other.create_variables(training=True)
        assert other.restore(saved) == []
        assert train(other, STEPS, seed=2) == pytest.approx(wanted, rel=1e-5)


def test_without_replicas_the_key_does_nothing():
    assert train(engine_of(split_optimizer_state=True), 2) == train(engine_of(), 2)
