"""A bias of attention's logits, through every path of softmax attention, against NumPy float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from gpt_mesh import model_fns
from gpt_mesh.engine.engine import DeviceEngine
from gpt_mesh.meshes import native as native_kernels
from gpt_mesh.models.attention import blocks, native, plain
from gpt_mesh.models.attention.backend import Backend
from gpt_mesh.models.context import Context, constant
from gpt_mesh.models.positions import POSITIONS, Bias, PositionEmbedding
from tests.models.test_cache import cached_logits
from tests.support import family
from tests.support.models import enlarge_weights, make_engine, tiny_config, token_batch, train, weights_of

SMALL = {"activation_function": "relu", "n_embd": 8, "n_head": 2, "n_ctx": 12, "n_vocab": 24, "train_batch_size": 2,
         "attention_types": [[["global"], 2]]}  # fmt: skip
MLM = {"mlm_training": True, "mlm_mask_id": 3}
LOCAL = {"attention_types": [[["local"], 2]], "local_attention_radius": 3}


class Linear(PositionEmbedding):
    """ALiBi (Press et al., 2022, arXiv:2108.12409) with learned slopes."""

    def bias(self, ctx: Context) -> Bias:
        slopes = ctx.variable("slopes", [ctx.dims.heads], constant(0.5))

        def linear(query: tf.Tensor, key: tf.Tensor, slopes: tf.Tensor) -> tf.Tensor:
            distance = tf.cast(query - key, slopes.dtype)
            return -slopes[:, None, None] * distance[..., None, :, :]

        return Bias(linear, [slopes])


def reference(weights: dict[str, np.ndarray], tokens: np.ndarray, engine: DeviceEngine) -> np.ndarray:
    return family.logits(weights, tokens, engine.config, lambda w, head, distance: -w["slopes"][head] * distance)


@pytest.fixture(autouse=True)
def linear_bias(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(POSITIONS, "learned", Linear())


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> list[type]:
    """The backends that attend, in order."""
    found: list[type] = []

    def watch(kind: type[Backend]) -> None:
        attend = kind.attend

        def watched(self: Any, problem: Any) -> Any:
            found.append(kind)
            return attend(self, problem)

        monkeypatch.setattr(kind, "attend", watched)

    for kind in (native.Native, blocks.Blocks, plain.Plain, plain.OnMesh):
        watch(kind)
    return found


@pytest.mark.parametrize(
    ("keys", "backend"),
    [
        ({}, plain.Plain),
        ({"num_mem_kv": 2, **MLM}, plain.Plain),
        (LOCAL, blocks.Blocks),
        ({**LOCAL, **MLM, "num_mem_kv": 2}, blocks.Blocks),
        ({**LOCAL, "fused_ops": False}, plain.Plain),
        ({"mesh_shape": "a:2", "layout": "memory_length:a", "num_mem_kv": 2}, plain.OnMesh),
        ({"mesh_shape": "a:2,b:2", "layout": "sequence:a,heads:b"}, plain.OnMesh),
        ({"mesh_shape": "a:2", "layout": "heads:a"}, plain.Plain),
    ],
    ids=lambda x: x.__name__ if isinstance(x, type) else None,
)
def test_logits_are_those_of_the_reference(
    keys: dict[str, Any], backend: type, used: list[type], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "MIN_BLOCK", 1)
    engine = make_engine(tiny_config(**{**SMALL, **keys}), compiled=False)
    used.clear()  # planning builds the layers too, on one device
    tokens = token_batch(engine.config, width=12)
    logits = engine.function(lambda t: model_fns.build_logits(t, engine.config, engine.mesh_impl, tf.float64))
    logits.traced(tf.TensorSpec(tokens.shape, tf.int32))
    enlarge_weights(engine, scale=0.5)
    engine.store.gather()
    np.testing.assert_allclose(logits(tokens), reference(weights_of(engine), tokens, engine), rtol=0, atol=1e-9)
    assert set(used) == {backend}


@pytest.mark.parametrize("keys", [{}, {**LOCAL, "num_mem_kv": 2}, {"mesh_shape": "a:2", "layout": "heads:a"}])
def test_decoding_gives_the_logits_of_a_full_pass(keys: dict[str, Any]) -> None:
    engine = make_engine(tiny_config(**{**SMALL, **keys}), compiled=False)
    function, tokens = cached_logits(engine, 5, tf.float64), token_batch(engine.config, width=12)
    function.traced(tf.TensorSpec(tokens.shape, tf.int32))
    enlarge_weights(engine, scale=0.5)
    engine.store.gather()
    np.testing.assert_allclose(function(tokens), reference(weights_of(engine), tokens, engine), rtol=0, atol=1e-9)


def test_training_is_the_same_by_every_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients reach a bias that is learned, also where its heads are split."""
    monkeypatch.setattr(blocks, "MIN_BLOCK", 1)
    losses: list[Any] = []
    slopes: list[Any] = []
    layouts: list[dict[str, Any]] = [{}, {"fused_ops": False}, {"mesh_shape": "a:2", "layout": "memory_length:a"},
                 {"mesh_shape": "a:2", "layout": "heads:a"}, {"mesh_shape": "a:2", "layout": "batch:a"}]  # fmt: skip
    for keys in layouts:
        engine = make_engine(tiny_config(**{**SMALL, **LOCAL, **keys}), compiled=False)
        engine.create_variables(training=True)
        enlarge_weights(engine)
        losses.append(train(engine, 3))
        engine.store.gather()
        slopes.append(weights_of(engine)["slopes"])
    for found in losses[1:]:
        np.testing.assert_allclose(found, losses[0], rtol=2e-5)
    for found in slopes[1:]:
        np.testing.assert_allclose(found, slopes[0], rtol=1e-3, atol=1e-4)


def test_backends_without_a_bias_leave_it_to_others(used: list[type]) -> None:
    """cuDNN's attention knows none, and C's only one that falls linearly with distance."""
    engine = make_engine(tiny_config(**SMALL), compiled=True)
    engine.create_variables(training=True)
    assert set(used) == {plain.Plain}


@pytest.mark.skipif(not native_kernels.find_compiler(), reason="there is no C compiler")
@pytest.mark.parametrize("keys", [{"num_kv_heads": 2}, {**LOCAL, **MLM}], ids=["grouped", "local, both ways"])
def test_alibi_in_c_trains_as_in_tensorflow(keys: dict[str, Any], used: list[type]) -> None:
    found = []
    for compiled, backend in ((True, native.Native), (False, plain.Plain)):
        engine = make_engine(tiny_config(**{**SMALL, **keys, "pos_emb": "alibi", "n_head": 4}), compiled=compiled)
        used.clear()
        engine.create_variables(training=True)
        assert set(used) == {backend}
        enlarge_weights(engine)
        found.append(train(engine, 3))
    np.testing.assert_allclose(found[0], found[1], rtol=2e-5)
