"""What layouts are said to send and to compute, against the collectives that lowering makes and against arithmetic."""

from __future__ import annotations

import math
from typing import Any

import pytest
import tensorflow as tf

from gpt_mesh.meshes.devices import MeshPlan
from gpt_mesh.planning.costs import step_cost
from gpt_mesh.planning.metrics import flops_per_token
from tests.support.models import LLAMA, make_engine, tiny_config

# So wide that what the estimate leaves out, a few numbers a position, is little.
WIDE: dict[str, Any] = {
    "n_layer": 1, "attention_types": [[["global"], 1]], "n_embd": 64, "n_head": 4, "n_ctx": 64, "n_vocab": 96,
    "train_batch_size": 8,
}  # fmt: skip
MIXTURE: dict[str, Any] = {"moe_layers": [0], "moe_params": {"moe_num_experts": 4}}
LINEAR: dict[str, Any] = {"attention_types": [[["linear"], 1]]}
slow = pytest.mark.slow


def planned(keys):
    config = tiny_config(**WIDE, **keys) if "attention_types" not in keys else tiny_config(**{**WIDE, **keys})
    return config, MeshPlan(config.mesh.shape, config.mesh.rules, ("",))


def sent_by_lowering(config):
    """Bytes that each device sends in a training step, when collectives go round a ring."""
    with tf.Graph().as_default():
        engine = make_engine(config, compiled=False)
        mesh, sent = engine.mesh_impl, []

        def recorded(name, rounds):
            collective = getattr(mesh, name)

            def record(x, axes, *rest, **more):
                devices = math.prod(mesh.shape.dims[axis].size for axis in (axes if isinstance(axes, list) else [axes]))
                part = x.to_laid_out_tensor().tensor_list[0]
                size = part.shape.num_elements() * part.dtype.size * (devices if name == "allconcat" else 1)
                sent.append(rounds * size * (devices - 1) / devices)
                return collective(x, axes, *rest, **more)

            return record

        for name, rounds in (("allreduce", 2), ("allconcat", 1), ("alltoall", 1)):
            setattr(mesh, name, recorded(name, rounds))
        engine.create_variables(training=True)
    return sum(sent)


@pytest.mark.parametrize(
    "keys",
    [
        {"mesh_shape": "a:2,b:2", "layout": "batch:a,heads:b,vocab:b,intermediate_expanded:b"},
        pytest.param({"mesh_shape": "a:2", "layout": "batch:a"}, marks=slow),
        {"mesh_shape": "a:2", "layout": "heads:a", "num_kv_heads": 2},
        {"mesh_shape": "a:2", "layout": "heads:a,vocab:a", "num_kv_heads": 1},
        {"mesh_shape": "a:2", "layout": "intermediate_expanded:a,vocab:a,heads:a", **LLAMA},
        pytest.param({"mesh_shape": "a:2", "layout": "embd:a", **LLAMA, "lm_head_bias": True}, marks=slow),
        pytest.param({"mesh_shape": "a:2", "layout": "embd:a,memory_length:a"}, marks=slow),
        pytest.param({"mesh_shape": "a:2,b:2", "layout": "batch:a,embd:b,memory_length:b"}, marks=slow),
        pytest.param({"mesh_shape": "a:2,b:2", "layout": "sequence:a,memory_length:b"}, marks=slow),
        pytest.param(
            {"mesh_shape": "a:2", "layout": "heads:a,intermediate_expanded:a", "recompute_grad": True}, marks=slow
        ),
        pytest.param({"mesh_shape": "a:2", "layout": "sequence:a", **LINEAR}, marks=slow),
        pytest.param({"mesh_shape": "a:2", "layout": "batch:a,experts:a", **MIXTURE}, marks=slow),
        pytest.param({"mesh_shape": "a:2", "layout": "expert_hidden:a", **MIXTURE}, marks=slow),
    ],
    ids=lambda keys: keys["layout"],
)
def test_what_is_sent_is_what_lowering_sends(keys):
    config, plan = planned(keys)
    assert step_cost(config, plan).sent == pytest.approx(sent_by_lowering(config), rel=0.15)


def test_operations_are_those_of_the_model():
    config, plan = planned({})
    tokens = 8 * 64
    cost = step_cost(config, plan)
    assert cost.flops == pytest.approx(tokens * flops_per_token(config))
    assert (cost.repeated, cost.sent, cost.messages) == (1.0, 0.0, 0.0)


def test_what_no_dimension_divides_is_repeated():
    """Splitting the batch divides all; splitting the vocabulary divides the logits, and the rest is done twice."""
    assert step_cost(*planned({"mesh_shape": "a:2", "layout": "batch:a"})).repeated == 1.0
    config, plan = planned({"mesh_shape": "a:2", "layout": "vocab:a"})
    d, tokens = config.model.n_embd, 8 * 64
    logits, all_of_it = 6 * tokens * d * 96, step_cost(config, MeshPlan({}, {}, ("",))).flops
    assert step_cost(config, plan).flops == all_of_it - logits / 2


def test_parallel_branches_without_biases_are_summed_together():
    """One sum over devices a layer, not two, forward and backward: of the outputs, and of the norm's gradients."""
    together, apart = (
        {**LLAMA, "mesh_shape": mesh_shape, "layout": f"heads:a,intermediate_expanded:{axis}"}
        for mesh_shape, axis in (("a:2", "a"), ("a:2,b:2", "b"))
    )
    costs = []
    for keys in (together, apart):
        for more in ({}, {"gpt_j_residual": True, "gpt_j_tied": True}):
            config, plan = planned({**keys, **more})
            costs.append(step_cost(config, plan))
            assert costs[-1].sent == pytest.approx(sent_by_lowering(config), rel=0.05)
    messages = [cost.messages for cost in costs]
    assert messages[1] == messages[0] / 2 and messages[3] >= messages[2]


def test_recomputation_computes_and_sends_the_inside_of_blocks_again():
    keys = {"mesh_shape": "a:2", "layout": "heads:a"}
    plain, again = (step_cost(*planned(keys | {"recompute_grad": on})) for on in (False, True))
    assert again.flops > 1.2 * plain.flops and again.sent == pytest.approx(1.5 * plain.sent)


def test_microbatches_send_as_much_in_more_messages():
    keys = {"mesh_shape": "a:2", "layout": "heads:a"}
    whole, parts = (step_cost(*planned(keys | {"tokens_per_mb_per_replica": n})) for n in (None, 64))
    assert (parts.sent, parts.messages) == (whole.sent, 8 * whole.messages)
    assert parts.seconds > whole.seconds
