"""One model on meshes of 1 to 8 devices: the same losses, and checkpoints that move between them.

Each run of 20 steps changes its mesh twice: ten steps on the mesh under test, five on one device from the checkpoint of
the first ten, and the last five on the mesh again. So every mesh reads what another wrote, and any two agree through
the one device between them.
"""

from __future__ import annotations

import pytest

from gpt_mesh.engine.engine import DeviceEngine
from tests.support.models import LLAMA, make_engine, tiny_config, train, unoptimised_graphs

STEPS = 20
RELATIVE = 1e-5
# Global and local attention, a mixture of experts, recomputation, draws of every kind.
MODEL = {
    "n_ctx": 8,
    "train_batch_size": 8,
    "lr": 0.003,
    "weight_decay": 0.1,
    "moe_layers": [1],
    "moe_params": {"moe_num_experts": 4, "moe_use_second_place_loss": True},
    "embed_dropout": 0.1,
    "attn_dropout": 0.1,
    "res_dropout": 0.1,
    "recompute_grad": True,
}
LLAMA_KEYS = {
    **LLAMA, "n_head": 8, "num_kv_heads": 4, "n_ctx": 8, "train_batch_size": 8, "res_dropout": 0.1,
    "recompute_grad": True,
}  # fmt: skip
QUICK = [("a:2", "batch:a")]
SLOW = [
    ("a:2", "memory_length:a"),
    ("a:4", "batch:a,experts:a"),
    ("a:2,b:2", "batch:a,heads:b"),
    ("a:2,b:2,c:2", "batch:a,heads:b,vocab:c"),
    # Those of the published configs, on fewer devices.
    ("x:2,y:4", "batch:x,heads:y,vocab:y,intermediate_expanded:y"),
    ("x:4,y:2", "batch:x,memory_length:y,embd:y"),
]
EXHAUSTIVE = [
    ("a:2", "heads:a"),
    ("a:2", "vocab:a"),
    ("a:2", "embd:a"),
    ("a:2", "intermediate_expanded:a"),
    ("a:4", "experts:a"),
    ("a:8", "batch:a"),
]


def engine_of(**keys) -> DeviceEngine:
    return make_engine(tiny_config(**MODEL | keys), compiled=False)


@pytest.fixture(autouse=True, scope="module")
def quick_graphs():
    with unoptimised_graphs():
        yield


@pytest.fixture(scope="module")
def single():
    """One device, the checkpoint that its run begins with, and the losses of all steps."""
    return engine_of()


@pytest.fixture(scope="module")
def wanted(single) -> list[float]:
    return train(single, STEPS)


@pytest.mark.parametrize(
    ("mesh_shape", "layout"),
    [
        *QUICK,
        *(pytest.param(*row, marks=pytest.mark.slow) for row in SLOW),
        *(pytest.param(*row, marks=[pytest.mark.slow, pytest.mark.exhaustive]) for row in EXHAUSTIVE),
    ],
)
def test_losses_are_those_of_one_device_wherever_each_step_runs(single, wanted, tmp_path, mesh_shape, layout):
    mesh = engine_of(mesh_shape=mesh_shape, layout=layout)
    losses = train(mesh, 10)
    assert single.restore(mesh.save(str(tmp_path), 10, {})) == []
    losses += train(single, 5, seed=10)
    assert mesh.restore(single.save(str(tmp_path), 15, {})) == []
    losses += train(mesh, 5, seed=15)
    assert losses == pytest.approx(wanted, rel=RELATIVE)


@pytest.fixture(scope="module")
def wanted_of_llama() -> list[float]:
    return train(make_engine(tiny_config(**LLAMA_KEYS), compiled=False), 6)


@pytest.mark.parametrize(
    ("mesh_shape", "layout"),
    [
        pytest.param(*row, marks=[] if row == QUICK[0] else [pytest.mark.slow, *exhaustive])
        for rows, exhaustive in ((QUICK, []), (SLOW, []), (EXHAUSTIVE, [pytest.mark.exhaustive]))
        for row in rows
        if "experts" not in row[1]
    ],
)
def test_losses_of_a_llama_are_those_of_one_device(wanted_of_llama, mesh_shape, layout):
    mesh = make_engine(tiny_config(**LLAMA_KEYS, mesh_shape=mesh_shape, layout=layout), compiled=False)
    assert train(mesh, 6) == pytest.approx(wanted_of_llama, rel=2e-5)


MIXTRAL = {
    **LLAMA_KEYS, "moe_layers": [0, 1],
    "moe_params": {"moe_num_experts": 4, "moe_gating": "top_k", "moe_glu": True, "moe_dropless": True},
    "moe_activation": "silu",
}  # fmt: skip


NO_EXPERTS = "intermediate_expanded:a"  # it splits feed-forwards, of which there are none


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mesh_shape", "layout"),
    [
        *SLOW,
        ("a:2", "expert_hidden:a"),
        ("a:2,b:2", "batch:a,experts:a,expert_hidden:b"),
        *(pytest.param(*row, marks=pytest.mark.exhaustive) for row in QUICK + EXHAUSTIVE if row[1] != NO_EXPERTS),
    ],
)
def test_dropless_experts_on_a_mesh(mixtral, tmp_path, mesh_shape, layout):
    mesh = engine_of(**MIXTRAL, mesh_shape=mesh_shape, layout=layout)
    assert train(mesh, 6) == pytest.approx(mixtral, rel=2e-5)


@pytest.fixture(scope="module")
def mixtral() -> list[float]:
    return train(engine_of(**MIXTRAL), 6)


PLAIN = {"embed_dropout": 0.0, "attn_dropout": 0.0, "res_dropout": 0.0}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("keys", "relative"),
    [
        # Draws of microbatches on a split batch are others than on one device: compared without.
        ({**PLAIN, "tokens_per_mb_per_replica": 8, "moe_params": {"moe_num_experts": 4}}, RELATIVE),
        ({"precision": "bfloat16"}, 2e-2),
    ],
    ids=["microbatches", "bfloat16"],
)
def test_microbatches_and_precision_on_a_mesh(keys, relative):
    wanted = train(engine_of(**keys), STEPS)
    mesh = engine_of(**keys, mesh_shape="x:2,y:2", layout="batch:x,heads:y,vocab:y")
    assert train(mesh, STEPS) == pytest.approx(wanted, rel=relative)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mesh_shape", "layout"), [("a:2", "batch:a"), ("x:2,y:2", "batch:x,heads:y,vocab:y,intermediate_expanded:y")]
)
def test_one_graph_over_all_devices_gives_the_same_losses(wanted, mesh_shape, layout):
    """As across hosts, where each device cannot have a program of its own."""
    plan = engine_of(mesh_shape=mesh_shape, layout=layout).plan
    spanning = DeviceEngine(tiny_config(**MODEL, mesh_shape=mesh_shape, layout=layout), plan, spmd=False)
    assert spanning.program is None
    assert train(spanning, STEPS) == pytest.approx(wanted, rel=RELATIVE)
