"""Sizes, speeds and the files of measurements."""

from __future__ import annotations

import pytest

from gpt_mesh.config import load_config
from gpt_mesh.models.shapes import weight_count
from gpt_mesh.planning.metrics import device_peak, flops_per_token, human_bytes, peak_flops
from tests.support.models import LLAMA, is_weight, make_engine, tiny_config


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"n_embd": 24, "n_head": 3, "n_vocab": 77, "n_ctx": 20},
        {"num_kv_heads": 2, "head_dim": 6, "use_bias_in_attn_linear": True, "qk_norm": True},
    ],
)
def test_weight_count_is_that_of_the_variables(keys):
    config = tiny_config(**keys)
    engine = make_engine(config)
    engine.create_variables(training=False)
    sizes = [v.shape.num_elements() for name, v in engine.store.masters.items() if is_weight(name)]
    assert weight_count(config.model) == sum(sizes)


@pytest.mark.parametrize(
    ("name", "count"),
    # What Hugging Face counts in the published weights.
    [("gpt_neo_125M", 125_198_592), ("gpt_neo_1-3B", 1_315_575_808), ("gpt_neo_2-7B", 2_651_307_520)],
)
def test_weight_count_of_published_models(name, count):
    assert weight_count(load_config(name).model) == count


def test_flops_of_a_small_model_counted_by_hand():
    config = tiny_config(n_embd=8, n_head=2, n_vocab=50, n_ctx=16, local_attention_radius=5)
    projections = 2 * (4 * 8 * 8)  # q, k, v, o: a multiplication and an addition a weight
    feed_forward = 2 * (8 * 32 + 32 * 8)
    scores_and_sums_global = 2 * 16 * 8 + 2 * 16 * 8
    scores_and_sums_local = 2 * 5 * 8 + 2 * 5 * 8
    logits = 2 * 8 * 50
    forward = 2 * (projections + feed_forward) + scores_and_sums_global + scores_and_sums_local + logits
    assert flops_per_token(config) == 3 * forward


def test_flops_of_shared_heads_counted_by_hand():
    config = tiny_config(
        n_embd=8, n_head=4, num_kv_heads=2, head_dim=6, n_vocab=50, n_ctx=16, attention_types=[[["global"], 2]]
    )
    projections = 2 * (2 * 8 * 24 + 2 * 8 * 12)  # q and o; k and v
    logits_and_sums = 2 * (2 * 16 * 24)  # of every head of queries
    layer = projections + logits_and_sums + 2 * (8 * 32 + 32 * 8)
    assert flops_per_token(config) == 3 * (2 * layer + 2 * 8 * 50)


def test_weights_and_flops_of_a_small_llama_counted_by_hand():
    config = tiny_config(**LLAMA, n_embd=8, n_head=2, n_vocab=50, n_ctx=16, attention_types=[[["global"], 2]])
    kernels = 2 * (4 * 8 * 8 + 3 * 8 * 24) + 8 * 50  # q, k, v, o; values, gates and back; the untied head
    norms = 5 * 8
    assert weight_count(config.model) == kernels + 50 * 8 + norms
    assert flops_per_token(config) == 3 * (2 * kernels + 2 * (2 * 16 * 8 + 2 * 16 * 8))


def test_a_window_wider_than_the_context_costs_the_context():
    keys = {"attention_types": [[["local"], 2]], "n_ctx": 16}
    wide = flops_per_token(tiny_config(**keys, local_attention_radius=1000))
    assert wide == flops_per_token(tiny_config(**keys | {"attention_types": [[["global"], 2]]}))


@pytest.mark.parametrize(
    ("device", "precision", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", "bfloat16", 989.4e12),
        ("NVIDIA A100-SXM4-40GB", "bfloat16", 312e12),
        ("NVIDIA A100-SXM4-40GB", "float32", 156e12),
        ("NVIDIA A10G", "bfloat16", 125e12),
        ("NVIDIA L4", "bfloat16", 121e12),
        ("NVIDIA L40S", "bfloat16", 362e12),
        ("NVIDIA GeForce RTX 4090", "bfloat16", 165.2e12),
        ("NVIDIA L40", "bfloat16", None),
        ("NVIDIA RTX A1000 Laptop GPU", "bfloat16", None),
        ("Tesla K80", "float32", None),
        ("", "float32", None),
    ],
)
def test_peaks_by_name(device, precision, peak):
    assert peak_flops(device, precision) == peak


def test_the_peak_of_a_cpu_is_not_known():
    assert device_peak(["/device:CPU:0"], "float32") is None
    assert device_peak(["/device:GPU:99"], "float32") is None


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (1023, "1023 B"), (1024, "1 KiB"), (3 * 2**20, "3 MiB"), (1.5 * 2**30, "1.5 GiB")]
)
def test_human_bytes(count, text):
    assert human_bytes(count) == text
