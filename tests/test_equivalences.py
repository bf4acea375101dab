"""What saves time or memory changes no numbers, in any family: recomputation, microbatches, compilation, a mesh.

Losses, NLL and gradient norms of three steps agree to RELATIVE: float32 rounding, carried through three updates.

Dropout and the random choice of second experts draw by (seed, step, microbatch, place): recomputation, compilation and
a mesh leave the draws as they are; microbatches draw anew, so they are compared without draws. All else about a mixture
is the same in microbatches and on a split batch: experts' capacities and the balance loss are of groups, which are
parts of one sequence. With microbatches and a split batch together, each replica's microbatches are others than those
of one device: equal without draws, and not with them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.models import LLAMA, enlarge_weights, make_engine, tiny_config, token_batch, unoptimised_graphs

RELATIVE = 2e-5
SIZES = {"n_embd": 8, "n_head": 2, "n_vocab": 32, "lr": 1e-3, "weight_decay": 0.1, "z_loss": 0.01}
DROPOUT = {"embed_dropout": 0.1, "attn_dropout": 0.2, "res_dropout": 0.1}
BY_BATCH = {"mesh_shape": "a:2", "layout": "batch:a"}
BY_WEIGHTS = {"mesh_shape": "a:2", "layout": "heads:a,vocab:a,intermediate_expanded:a"}
BY_FEATURES = {"mesh_shape": "a:2", "layout": "embd:a,memory_length:a"}
BY_EXPERTS = {"mesh_shape": "a:2", "layout": "batch:a,experts:a"}


def one(kind: str) -> dict[str, Any]:
    return {"n_layer": 1, "attention_types": [[[kind], 1]]}


def mixture(**params: Any) -> dict[str, Any]:
    return {"moe_layers": [0], "moe_params": {"moe_num_experts": 4, "moe_use_second_place_loss": True, **params}}


YARN = {"rope_type": "yarn", "factor": 4, "original_max_position_embeddings": 8}
# With little room: 4 tokens an expert, of 16 that compete.
CROWDED = mixture(moe_capacity_factor_train=0.1, moe_second_policy_train="threshold")
TOP_K = {"moe_num_experts": 4, "moe_gating": "top_k", "moe_glu": True, "moe_shared_expert_size": 6}
# By name: keys, and a layout; without one where tests/models/test_family.py has several.
FAMILIES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "global, axial": ({**one("global"), "axial_pos_emb": [4, 4]}, {}),
    "local, memory, glu": ({**one("local"), "num_mem_kv": 2, "mlp_glu": True}, {}),
    "linear, rotary": ({**one("linear"), "rotary_emb": True}, BY_BATCH),
    "alibi": ({**one("global"), "pos_emb": "alibi"}, {"mesh_shape": "a:2", "layout": "heads:a"}),
    "scaled rotary": ({**one("local"), "pos_emb": "rotary", "rotary_interleaved": True, "rope_scaling": YARN}, {}),
    "none, macaron, rezero": ({**one("none"), "macaron": True, "rezero": True}, {}),
    "shared, scalenorm, untied": (
        {"share_parameters": True, "scalenorm": True, "no_weight_tie": True, "attention_types": [[["local"], 2]]},
        BY_FEATURES,
    ),
    "crowded mixture": ({**one("global"), **CROWDED}, BY_EXPERTS),
    "roomy mixture": ({**one("global"), **mixture(moe_capacity_factor_train=9.0)}, BY_EXPERTS),
    "shared heads, rotary": (
        {**one("global"), "n_head": 4, "num_kv_heads": 2, "head_dim": 6, "use_bias_in_attn_linear": False,
         "scale_attn_weights": True, "qk_norm": True, "rotary_emb": True},
        BY_WEIGHTS,
    ),
    "one head of keys, linear": (
        {**one("linear"), "n_head": 4, "num_kv_heads": 1, "use_bias_in_attn_linear": True, "num_mem_kv": 2},
        BY_WEIGHTS,
    ),
    "top-k mixture": (
        {**one("global"), "moe_layers": [0], "moe_params": TOP_K | {"moe_dropless": True}, "moe_activation": "silu"},
        BY_EXPERTS,
    ),
    "crowded top-k mixture": (
        {**one("global"), "moe_layers": [0], "moe_params": TOP_K | {"moe_capacity_factor_train": 0.1}},
        BY_EXPERTS,
    ),
    "masked": ({**one("local"), "mlm_training": True, "mlm_mask_id": 3, "mlm_mask_prob": 0.4}, BY_BATCH),
    "entmax": ({**one("global"), "entmax_loss": True}, BY_WEIGHTS),
    "llama": ({**one("global"), **LLAMA}, BY_WEIGHTS),
    "parallel": (
        {**one("global"), "gpt_j_residual": True, "gpt_j_tied": True, "embed_norm": True, "lm_head_bias": True},
        BY_FEATURES,
    ),
    "norms around": (
        {
            **one("local"), "norm": "rmsnorm", "norm_placement": "both", "embedding_scale": 2.0,
            "final_logit_softcapping": 4.0,
        },
        BY_FEATURES,
    ),
    "adafactor": ({**one("global"), "opt_name": "adafactor", "lr": 0.01}, BY_FEATURES),
}


@pytest.fixture(autouse=True, scope="module")
def quick_graphs() -> Iterator[None]:
    with unoptimised_graphs():
        yield


def numbers(keys: dict[str, Any], *, compiled: bool = False) -> list[float]:
    """Of three steps from large weights: loss, NLL, gradient norm, and the mixtures' balance where there is one."""
    engine = make_engine(tiny_config(**{**SIZES, **keys}), compiled=compiled)
    engine.create_variables(training=True)
    enlarge_weights(engine)
    steps = [engine.train_step(token_batch(engine.config, seed)) for seed in range(3)]
    return [float(x) for step in steps for name, x in sorted(step.items()) if name != "lr"]


_on_one_device: dict[str, list[float]] = {}


def plain_numbers(keys: dict[str, Any]) -> list[float]:
    """Of one device, uncompiled, in one piece: computed once for all that is held against it."""
    name = json.dumps(keys, sort_keys=True)
    if name not in _on_one_device:
        _on_one_device[name] = numbers(keys)
    return _on_one_device[name]


def without_draws(keys: dict[str, Any]) -> dict[str, Any]:
    params = {**keys.get("moe_params", {})}
    if params.get("moe_gating") != "top_k" and params.get("moe_second_policy_train") is None:
        params["moe_second_policy_train"] = "all"
    return {**keys, "moe_params": params, "tokens_per_mb_per_replica": None}


def check_draws_stay(name: str, how: str) -> None:
    """Recomputed, compiled or on a mesh, with dropout."""
    keys, layout = FAMILIES[name]
    keys = {**keys, **DROPOUT}
    other = {"recomputed": {"recompute_grad": True}, "compiled": {}, "mesh": layout}[how]
    assert numbers({**keys, **other}, compiled=how == "compiled") == pytest.approx(plain_numbers(keys), rel=RELATIVE)


def check_microbatches(name: str, layout: dict[str, Any]) -> None:
    """Of one sequence each, recomputed, without draws."""
    keys = without_draws(FAMILIES[name][0])
    parts = {**keys, **layout, "tokens_per_mb_per_replica": 16, "recompute_grad": True}
    assert numbers(parts) == pytest.approx(plain_numbers(keys), rel=RELATIVE)


WAYS = [
    (name, how) for name in FAMILIES for how in ("recomputed", "compiled", "mesh") if how != "mesh" or FAMILIES[name][1]
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "how"), [pytest.param(*way, marks=pytest.mark.exhaustive if i % 2 else ()) for i, way in enumerate(WAYS)]
)
def test_recomputation_compilation_and_meshes_change_no_numbers(name, how):
    check_draws_stay(name, how)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "crowded mixture" else pytest.mark.slow) for name in FAMILIES]
)
def test_microbatches_change_no_numbers(name):
    check_microbatches(name, {})


@pytest.mark.slow
@pytest.mark.parametrize("name", ["crowded mixture", "masked"])
def test_microbatches_of_a_split_batch_change_no_numbers(name):
    check_microbatches(name, BY_BATCH)


@pytest.mark.slow
def test_microbatches_draw_second_experts_anew():
    """So the numbers are others, as said above; they are the same each time."""
    keys = {**FAMILIES["roomy mixture"][0], "moe_params": {"moe_num_experts": 4, "moe_second_threshold_train": 1.0}}
    parts = {**keys, "tokens_per_mb_per_replica": 16}
    first, again, whole = numbers(parts), numbers(parts), numbers(keys)
    assert first == again
    assert first != pytest.approx(whole, rel=1e-3)
