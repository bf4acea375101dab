"""Attention by cuDNN's kernels. Here no GPU can be counted on: a stand-in in TensorFlow reads the StableHLO that would
call them and does as it says; where there is a GPU, the kernels themselves are compared with the plain operations.
"""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from gpt_mesh.engine.engine import DeviceEngine
from gpt_mesh.meshes import compat
from gpt_mesh.meshes.devices import MeshPlan, have_tensor_cores
from gpt_mesh.models.attention import cudnn
from gpt_mesh.models.attention.backend import View
from tests.support.models import enlarge_weights, make_engine, tiny_config, train, unoptimised_graphs

BATCH, POSITIONS, HEADS, FEATURES = 2, 128, 3, 16
ON_GPU = have_tensor_cores(["/device:GPU:0"])
needs_gpu = pytest.mark.skipif(not ON_GPU, reason="no NVIDIA GPU here")


def by_query(x: tf.Tensor, q: tf.Tensor) -> tf.Tensor:
    """Keys or values, once for each head of `q` that shares them."""
    return tf.repeat(x, q.shape[2] // x.shape[2], axis=2)


def scores_of(settings: dict[str, Any], q: tf.Tensor, k: tf.Tensor) -> tf.Tensor:
    """float32 [batch, heads, queries, keys]."""
    k = by_query(k, q)
    scores = tf.einsum("bqhf,bkhf->bhqk", tf.cast(q, tf.float32), tf.cast(k, tf.float32)) * settings["fmha_scale"]
    distance = tf.range(q.shape[1])[:, None] - tf.range(k.shape[1])[None, :]
    seen = tf.ones_like(distance, tf.bool)
    if settings["mask_type"] == "CAUSAL":
        seen = distance >= 0
    if settings["sliding_window_length"]:
        seen = tf.logical_and(seen, distance < settings["sliding_window_length"])
    return tf.where(seen, scores, -np.inf)


class StandIn:
    """Plays `compat.xla_call_module` for modules that call cuDNN's attention, and counts them by target."""

    def __init__(self) -> None:
        self.calls: dict[str, int] = {}

    def __call__(
        self, module: str, arguments: list[tf.Tensor], results: list[tf.TensorSpec], platform: str
    ) -> list[tf.Tensor]:
        assert platform == "CUDA"
        target = re.search(r"@__cudnn\$(\w+)\(", module)
        quoted = re.search(r'backend_config = ("(?:[^"\\]|\\.)*")', module)
        assert target and quoted
        self.calls[target[1]] = self.calls.get(target[1], 0) + 1
        settings = json.loads(json.loads(quoted[1]))["cudnn_fmha_backend_config"]
        given = re.search(r"@main\((.*?)\) ->", module)
        assert given
        kinds = {tf.bfloat16: "bf16", tf.float16: "f16", tf.float32: "f32"}
        types = [f"tensor<{'x'.join(map(str, x.shape))}x{kinds[x.dtype]}>" for x in arguments]
        assert re.findall(r"tensor<\w+>", given[1]) == types
        found = getattr(self, target[1])(settings, *arguments)
        for value, spec in zip(found, results, strict=True):
            assert value.shape == spec.shape
        return [tf.cast(value, spec.dtype) for value, spec in zip(found, results, strict=True)]

    @staticmethod
    def fmhaSoftmax(settings: dict[str, Any], q: tf.Tensor, k: tf.Tensor, v: tf.Tensor) -> list[tf.Tensor]:
        scores = scores_of(settings, q, k)
        values = tf.cast(by_query(v, q), tf.float32)
        return [tf.einsum("bhqk,bkhf->bqhf", tf.nn.softmax(scores), values), tf.reduce_logsumexp(scores, -1)]

    @staticmethod
    def fmhaSoftmaxBackward(
        settings: dict[str, Any],
        q: tf.Tensor,
        k: tf.Tensor,
        v: tf.Tensor,
        log_sums: tf.Tensor,
        upstream: tf.Tensor,
        attended: tf.Tensor,
    ) -> list[tf.Tensor]:
        """The formulas of the paper, from what the forward pass has kept."""
        q, k, v, upstream, attended = (tf.cast(x, tf.float32) for x in (q, k, v, upstream, attended))
        weights = tf.exp(scores_of(settings, q, k) - log_sums[..., None])
        by_weight = tf.einsum("bqhf,bkhf->bhqk", upstream, by_query(v, q))
        share = tf.einsum("bqhf,bqhf->bhq", upstream, attended)
        by_score = weights * (by_weight - share[..., None]) * settings["fmha_scale"]
        grouped = (*k.shape[:3], q.shape[2] // k.shape[2], k.shape[3])
        return [
            tf.einsum("bhqk,bkhf->bqhf", by_score, by_query(k, q)),
            tf.reduce_sum(tf.reshape(tf.einsum("bhqk,bqhf->bkhf", by_score, q), grouped), 3),
            tf.reduce_sum(tf.reshape(tf.einsum("bhqk,bqhf->bkhf", weights, upstream), grouped), 3),
        ]


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    found = StandIn()
    monkeypatch.setattr(compat, "xla_call_module", found)
    monkeypatch.setattr(compat, "optimization_barrier", lambda values: values)  # the graphs here are not compiled
    return found


@pytest.fixture
def any_type(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wider types than cuDNN takes, so that equality can be told to more digits."""
    fits = cudnn.fits
    monkeypatch.setattr(cudnn, "fits", lambda n, f, dtype, *rest: fits(n, f, tf.bfloat16, *rest))


def engine_with(keys: dict[str, Any], *, flash: bool) -> DeviceEngine:
    engine = make_engine(tiny_config(**{"n_embd": 32, "n_ctx": 64, **keys}), compiled=False)
    engine.mesh_impl.tensor_cores = flash
    return engine


def trained(keys: dict[str, Any], *, flash: bool, steps: int = 2) -> tuple[list[float], np.ndarray]:
    """Losses, and one layer's weights after them."""
    engine = engine_with(keys, flash=flash)
    with unoptimised_graphs():
        engine.create_variables(training=True)
        enlarge_weights(engine)
        losses = train(engine, steps)
    engine.store.gather()
    return losses, engine.store.masters["gpt2/h0/attn/q"].numpy()


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"recompute_grad": True, "tokens_per_mb_per_replica": 64},
        {"mlm_training": True, "mlm_mask_id": 3, "attention_types": [[["global"], 2]]},
        {"mesh_shape": "a:2,b:2", "layout": "batch:a,heads:b", "n_layer": 1, "attention_types": [[["local"], 1]]},
        {"num_kv_heads": 2, "scale_attn_weights": True},
        {
            "mesh_shape": "a:2",
            "layout": "heads:a",
            "n_layer": 1,
            "attention_types": [[["global"], 1]],
            "num_kv_heads": 1,
        },
    ],
    ids=[
        "one device",
        "recomputed in microbatches",
        "both directions",
        "split batch and heads",
        "shared heads",
        "one head of keys, split queries",
    ],
)
@pytest.mark.usefixtures("any_type")
def test_training_is_that_of_the_plain_path(stand_in: StandIn, keys: dict[str, Any]) -> None:
    losses, weights = trained(keys, flash=True)
    assert stand_in.calls["fmhaSoftmaxBackward"] == keys.get("n_layer", 2)  # once each: microbatches are a loop
    plain_losses, plain_weights = trained(keys, flash=False)
    np.testing.assert_allclose(losses, plain_losses, rtol=1e-5)
    np.testing.assert_allclose(weights, plain_weights, rtol=1e-4, atol=1e-4)


def test_bfloat16_training_takes_it_where_the_devices_have_it(stand_in: StandIn) -> None:
    keys = {"precision": "bfloat16", "attn_dropout": 0.0}
    losses, _ = trained(keys, flash=True, steps=1)
    assert stand_in.calls == {"fmhaSoftmax": 2, "fmhaSoftmaxBackward": 2}
    np.testing.assert_allclose(losses, trained(keys, flash=False, steps=1)[0], rtol=2e-2)


@pytest.mark.parametrize(
    "keys",
    [
        {"precision": "float32"},
        {"fused_ops": False},
        {"num_mem_kv": 2},
        {"attn_dropout": 0.1},
        {"n_embd": 16},  # heads of 4 features
        {"n_ctx": 48},
        {"mlm_training": True, "mlm_mask_id": 3, "attention_types": [[["local"], 2]]},
    ],
    ids=lambda keys: next(iter(keys)),
)
def test_other_attention_keeps_to_the_plain_path(stand_in: StandIn, keys: dict[str, Any]) -> None:
    engine = engine_with({"precision": "bfloat16", **keys}, flash=True)
    engine.create_variables(training=True)
    assert not stand_in.calls


@pytest.mark.parametrize("capability", [(7, 5), (8, 0), (9, 0)])
def test_which_devices_have_the_kernels(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int]) -> None:
    assert not have_tensor_cores(["/device:CPU:0"])
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: ["a GPU"])
    details = {"compute_capability": capability}
    monkeypatch.setattr(tf.config.experimental, "get_device_details", lambda gpu: details)
    assert have_tensor_cores(["/device:GPU:0"]) == (capability >= (8, 0))
    assert not have_tensor_cores(["/device:CPU:0"])


def test_the_module_says_where_in_memory_everything_lies(monkeypatch: pytest.MonkeyPatch) -> None:
    """As XLA wants it of such calls: operands in the order of their dimensions, results with positions before heads."""
    modules = []

    def write_down(
        module: str, arguments: list[tf.Tensor], results: list[tf.TensorSpec], platform: str
    ) -> list[tf.Tensor]:
        modules.append(module)
        return [tf.zeros(result.shape, result.dtype) for result in results]

    monkeypatch.setattr(compat, "xla_call_module", write_down)
    q = tf.zeros([2, 64, 4, 8], tf.bfloat16)
    attended, log_sums = cudnn.attend(q, q, q, View(True, 16))
    cudnn.gradient(q, q, q, attended, log_sums, q, View(True, 16))
    forward, backward = modules
    whole, by_head, sums = "tensor<2x64x4x8xbf16>", "tensor<2x4x64x8xbf16>", "tensor<2x4x64xf32>"
    straight, turned = "dense<[3, 2, 1, 0]> : tensor<4xindex>", "dense<[3, 1, 2, 0]> : tensor<4xindex>"
    flat, scratch = "dense<[2, 1, 0]> : tensor<3xindex>", "dense<0> : tensor<1xindex>"
    assert f"operand_layouts = [{straight}, {straight}, {straight}]" in forward
    assert f"result_layouts = [{turned}, {flat}, {scratch}]" in forward
    assert f"({whole}, {whole}, {whole}) -> ({by_head}, {sums}, tensor<0xui8>)" in forward
    assert f"%1 = stablehlo.transpose %0#0, dims = [0, 2, 1, 3] : ({by_head}) -> {whole}" in forward
    assert f"return %1, %0#1 : {whole}, {sums}" in forward
    assert f"operand_layouts = [{straight}, {straight}, {straight}, {flat}, {straight}, {straight}]" in backward
    assert f"result_layouts = [{turned}, {turned}, {turned}, {scratch}]" in backward
    assert backward.count(f"dims = [0, 2, 1, 3] : ({by_head}) -> {whole}") == 3
    for module in modules:
        assert '\\"sliding_window_length\\": 16' in module and '\\"mask_type\\": \\"CAUSAL\\"' in module
        assert '\\"dimensions\\": [\\"2\\", \\"4\\", \\"64\\", \\"64\\"]' in module


def test_the_matmuls_inside_are_numbered_as_xla_numbers_them() -> None:
    assert cudnn._matmul("bqhf,bkhf") == {
        "lhs_contracting_dimensions": ["3"],
        "rhs_contracting_dimensions": ["3"],
        "lhs_batch_dimensions": ["0", "2"],
        "rhs_batch_dimensions": ["0", "2"],
    }
    assert cudnn._matmul("bhqk,bqhf") == {
        "lhs_contracting_dimensions": ["2"],
        "rhs_contracting_dimensions": ["1"],
        "lhs_batch_dimensions": ["0", "1"],
        "rhs_batch_dimensions": ["0", "2"],
    }


@needs_gpu
@pytest.mark.parametrize(("causal", "window"), [(True, None), (True, 48), (False, None)])
def test_the_kernels_equal_float32_attention(causal: bool, window: int | None) -> None:
    rng, view = np.random.default_rng(0), View(causal, window)
    shape = (BATCH, POSITIONS, HEADS, FEATURES)
    q, k, v, upstream = (tf.cast(rng.standard_normal(shape), tf.bfloat16) for _ in range(4))
    settings = {
        "fmha_scale": 1.0,
        "mask_type": "CAUSAL" if causal else "NO_MASK",
        "sliding_window_length": window or 0,
    }

    @tf.function(jit_compile=True, autograph=False)
    def kernels() -> tuple[tf.Tensor, ...]:
        attended, log_sums = cudnn.attend(q, k, v, view)
        return attended, log_sums, *cudnn.gradient(q, k, v, attended, log_sums, upstream, view)

    found = kernels()
    attended, log_sums = StandIn.fmhaSoftmax(settings, q, k, v)
    plain = [attended, log_sums, *StandIn.fmhaSoftmaxBackward(settings, q, k, v, log_sums, upstream, attended)]
    for value, wanted in zip(found, plain, strict=True):
        difference = tf.norm(tf.cast(value, tf.float32) - wanted) / tf.norm(wanted)
        assert difference < 0.01  # bfloat16 has 8 bits; one in 256 is 0.004


@needs_gpu
def test_training_on_a_gpu_is_that_of_the_plain_path() -> None:
    keys = {"n_embd": 128, "n_ctx": 128, "precision": "bfloat16", "local_attention_radius": 20}
    losses = {}
    for fused in (True, False):
        engine = DeviceEngine(tiny_config(**keys, fused_ops=fused), MeshPlan({}, {}, ("/device:GPU:0",)))
        engine.create_variables(training=True)
        enlarge_weights(engine, scale=0.1)
        losses[fused] = train(engine, 10)
    np.testing.assert_allclose(losses[True], losses[False], rtol=1e-2)
