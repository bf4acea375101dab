"""Random layouts of random models: what is accepted is lowered on a mesh of CPU devices, whatever it is used for; what
is refused is refused in a line with a layout that is accepted.
"""

from __future__ import annotations

import random
import re
from typing import Any

import pytest
import tensorflow as tf

from gpt_mesh.config import TENSOR_DIMENSIONS
from gpt_mesh.engine.engine import DeviceEngine
from gpt_mesh.errors import InputError
from gpt_mesh.meshes.devices import choose_devices
from gpt_mesh.meshes.layouts import plan_mesh
from gpt_mesh.planning.graph import limits_of
from gpt_mesh.sample import Batch, build_generate
from tests.support.models import cpu_names, tiny_config

MIXTURES: list[dict[str, Any]] = [
    {"moe_num_experts": 4, "moe_capacity_factor_train": 0.5},
    {"moe_num_experts": 2},
    {"moe_num_experts": 6, "moe_hidden_size": 12, "moe_group_size": 5},
]
FEATURES: list[dict[str, Any]] = [
    {"rotary_emb": True}, {"scalenorm": True}, {"mlp_glu": True}, {"macaron": True}, {"no_weight_tie": True},
    {"num_mem_kv": 2}, {"entmax_loss": True}, {"opt_name": "adafactor"}, {"recompute_grad": True},
    {"tokens_per_mb_per_replica": 16}, {"attn_dropout": 0.1}, {"precision": "bfloat16"}, {"log_grads": True},
    {"activation_function": "softmax"}, {"split_optimizer_state": True},
    {"mlm_training": True, "mlm_mask_id": 3},
]  # fmt: skip


def random_keys(rng: random.Random) -> dict[str, Any]:
    """A model of one layer with some features, and a layout of any of its dimensions."""
    kind = rng.choice(["global", "local", "linear", "none"])
    keys: dict[str, Any] = {"n_layer": 1, "attention_types": [[[kind], 1]], "n_embd": 8, "n_head": 2}
    for feature in rng.sample(FEATURES, rng.randint(0, 3)):
        keys |= feature
    if rng.random() < 0.4:
        keys |= {"moe_layers": [0], "moe_params": rng.choice(MIXTURES)}
    keys |= {"n_vocab": rng.choice([32, 33, 48]), "train_batch_size": rng.choice([2, 3, 4])}
    shape = rng.choice(["a:2", "a:2,b:2", "a:4", "a:3", "a:1,b:2", "a:2,b:2,c:2"])
    axes = [part.split(":")[0] for part in shape.split(",")]
    dims = rng.sample(TENSOR_DIMENSIONS, rng.randint(1, 5))
    return keys | {"mesh_shape": shape, "layout": ",".join(f"{dim}:{rng.choice(axes)}" for dim in dims)}


def planned(keys):
    config = tiny_config(**keys)
    devices = choose_devices(cpu_names(config.mesh.size))
    return config, plan_mesh(config, limits_of(config), devices, fit=False, chosen=True)


def check_refusal(keys, message):
    assert "\n" not in message and message.startswith("tiny.json: ")
    found = re.search(r'use the nearest that works.*: "mesh_shape": "([^"]*)", "layout": "([^"]*)"$', message)
    assert found, message
    planned({**keys, "mesh_shape": found[1], "layout": found[2]})


def lower(config, plan):
    """Training, evaluation, logits of other sizes, and decoding: built and lowered, but not run."""
    engine = DeviceEngine(config, plan, compiled=False)
    engine.create_variables(training=True)
    width = config.model.n_ctx + 1
    for batch in (1, 4):
        engine._eval.traced(tf.TensorSpec((batch, width), tf.int32), tf.TensorSpec((batch, width - 1), tf.float32))
    engine._logits.traced(tf.TensorSpec((2, 5), tf.int32))
    if not config.mlm.mlm_training:
        empty = Batch.of([], 2, config.model)

        def build(*arrays):
            mesh = engine.mesh_for(2, None)
            return build_generate(Batch.from_arrays(arrays), config=config, mesh_impl=mesh, eos_ids=(0,), top=None)

        engine.function(build).traced(*[tf.TensorSpec(x.shape, x.dtype) for x in empty.arrays])


def check(seed: int, accepted: int) -> None:
    rng = random.Random(seed)
    while accepted:
        keys = random_keys(rng)
        try:
            config, plan = planned(keys)
        except InputError as refusal:
            check_refusal(keys, str(refusal))
            continue
        try:
            lower(config, plan)
        except Exception as error:
            raise AssertionError(f"accepted, and then: {error}; {keys}") from error
        accepted -= 1


def test_what_is_refused_comes_with_what_is_accepted():
    rng, refused = random.Random(1), 0
    for _ in range(300):
        keys = random_keys(rng)
        try:
            planned(keys)
        except InputError as refusal:
            check_refusal(keys, str(refusal))
            refused += 1
    assert 100 < refused < 290


def test_what_is_accepted_is_lowered():
    check(seed=0, accepted=1)


@pytest.mark.slow
@pytest.mark.parametrize(
    "layout",
    [
        "batch:c,embd:a,heads:b,memory_length:a,intermediate_expanded:b",
        "sequence:c,embd:a,heads:b,vocab:b,memory_length:a,intermediate_expanded:b,embed_sequence:c",
    ],
)
def test_three_mesh_dimensions_as_the_search_uses_them(layout):
    lower(*planned({"n_layer": 1, "attention_types": [[["global"], 1]], "mesh_shape": "a:2,b:2,c:2", "layout": layout}))


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, *(pytest.param(n, marks=pytest.mark.exhaustive) for n in range(2, 5))])
def test_more_of_what_is_accepted_is_lowered(seed):
    check(seed, accepted=6)
