"""Training in microbatches and with recomputation gives what the whole batch gives."""

from __future__ import annotations

from typing import Any

from gpt_mesh.meshes.compat import mtf

import numpy as np
import pytest
import tensorflow as tf

from gpt_mesh.meshes.spmd import SpmdMesh
from gpt_mesh.steps import microbatches
from tests.support.models import (
    ONE_LAYER,
    assert_all_close,
    enlarge_weights,
    make_engine,
    mesh_of,
    tiny_config,
    token_batch,
    train,
    weights_of,
)

ONE_BLOCK = {"n_layer": 1, "attention_types": [[["local"], 1]], "num_mem_kv": 2, "mlp_glu": True}
DROPOUT = {"embed_dropout": 0.1, "attn_dropout": 0.2, "res_dropout": 0.1}
COMBINED = {
    "attention_types": [[["linear", "local"], 1]],
    "num_mem_kv": 2,
    "mlp_glu": True,
    "rotary_emb": True,
    "macaron": True,
}
MLM = {"mlm_training": True, "mlm_mask_id": 3, "mlm_mask_prob": 0.5}


def three_steps(**keys: Any) -> tuple[list[float], dict[str, np.ndarray]]:
    """Losses of three steps from large weights, and the weights after them."""
    engine = make_engine(tiny_config(**{"lr": 1e-3, **keys}), compiled=False)
    engine.create_variables(training=True)
    enlarge_weights(engine)
    return train(engine, 3), weights_of(engine)


@pytest.mark.parametrize(
    ("tokens", "keys"),
    [
        (16, {**ONE_BLOCK, **MLM}),
        pytest.param(32, {}, marks=pytest.mark.slow),
        pytest.param(16, {**COMBINED, **MLM}, marks=pytest.mark.slow),
    ],
    ids=["one block", "plain", "combined"],
)
def test_microbatches_train_as_the_whole_batch(tokens, keys):
    losses, weights = three_steps(**keys)
    found_losses, found_weights = three_steps(**keys, tokens_per_mb_per_replica=tokens)
    assert found_losses == pytest.approx(losses, rel=1e-6)
    assert_all_close(found_weights, weights, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "keys",
    [
        ONE_BLOCK,
        pytest.param({}, marks=pytest.mark.slow),
        pytest.param({**COMBINED, "share_parameters": True}, marks=pytest.mark.slow),
    ],
    ids=["one block", "plain", "combined"],
)
def test_recomputation_changes_nothing(keys):
    losses, weights = three_steps(**keys, **DROPOUT)
    found_losses, found_weights = three_steps(**keys, **DROPOUT, recompute_grad=True)
    assert found_losses == pytest.approx(losses, rel=1e-6)
    assert_all_close(found_weights, weights, rtol=0, atol=1e-6)


def test_equal_sequences_in_different_microbatches_have_their_own_dropout():
    found = []
    for rows in (1, 2):
        keys = {**ONE_LAYER, "embed_dropout": 0.5, "train_batch_size": rows, "tokens_per_mb_per_replica": 16}
        engine = make_engine(tiny_config(**keys), compiled=False)
        engine.create_variables(training=True)
        enlarge_weights(engine)
        batch = np.repeat(token_batch(engine.config, rows=1), rows, 0)
        found.append(float(engine.train_step(batch)["loss"]))
    assert found[0] != pytest.approx(found[1], rel=1e-4)


# Contexts of 16 tokens, batches of 12 sequences.
@pytest.mark.parametrize(
    ("tokens", "parts", "count"),
    [
        (None, 1, 1),
        (1, 1, 12),  # a microbatch has at least one sequence
        (16, 1, 12),
        (32, 1, 6),
        (5 * 16, 1, 3),  # five sequences do not divide twelve, four do
        (11 * 16, 1, 2),
        (12 * 16, 1, 1),
        (10**6, 1, 1),
        (16, 2, 6),
        (5 * 16, 2, 2),
        (32, 4, 3),
        (None, 4, 1),
    ],
)
def test_number_of_microbatches(tokens, parts, count):
    config = tiny_config(tokens_per_mb_per_replica=tokens)
    mesh = mesh_of(f"a:{parts}", "batch:a") if parts > 1 else mesh_of()
    assert microbatches.count(config, mesh, mtf.Dimension("batch", 12)) == count


def test_gradient_norms_are_logged_by_variable():
    engine = make_engine(tiny_config(**ONE_LAYER, log_grads=True), compiled=False)
    engine.create_variables(training=True)
    enlarge_weights(engine)
    out = {name: float(value) for name, value in engine.train_step(token_batch(engine.config)).items()}
    norms = {name.removeprefix("grad_norm/gpt2/"): x for name, x in out.items() if name.startswith("grad_norm/")}
    assert norms.keys() == weights_of(engine).keys()
    assert min(norms.values()) > 0
    assert np.sqrt(sum(x**2 for x in norms.values())) == pytest.approx(out["grad_norm"], rel=1e-5)


def test_bfloat16_gradients_are_summed_over_devices_once_and_not_in_every_microbatch(monkeypatch):
    """In float32, after the loop: no sum over devices of more than a number stands inside it."""
    inside: list[tuple[tf.DType, list[int]]] = []
    allreduce = SpmdMesh.allreduce

    def noted(self, x, mesh_axes, reduction):
        value = x.to_laid_out_tensor().one_slice
        if "while" in tf.compat.v1.get_default_graph().name:
            inside.append((value.dtype, value.shape.as_list()))
        return allreduce(self, x, mesh_axes, reduction)

    monkeypatch.setattr(SpmdMesh, "allreduce", noted)
    keys = {**ONE_LAYER, "precision": "bfloat16", "tokens_per_mb_per_replica": 16, "mesh_shape": "a:2"}
    engine = make_engine(tiny_config(**keys, layout="batch:a", train_batch_size=8), compiled=False)
    engine.create_variables(training=True)
    assert not [entry for entry in inside if entry[1]], inside
