"""Decoding with kept keys and values gives the logits of the full pass."""

from __future__ import annotations

import dataclasses
from typing import Any

from gpt_mesh.meshes.compat import mtf

import numpy as np
import pytest
import tensorflow as tf

from gpt_mesh import model_fns
from gpt_mesh.engine.engine import DeviceEngine
from gpt_mesh.meshes import cpu_matmul, native
from gpt_mesh.models import gpt
from gpt_mesh.models.attention.cache import Decode, Prefill
from gpt_mesh.models.attention.kind import DecodePosition, Loop
from gpt_mesh.models.attention.kinds import layer_kinds
from gpt_mesh.models.dims import Dims
from tests.support import reference
from tests.support.models import enlarge_weights, make_engine, tiny_config, token_batch, weights_of

needs_compiler = pytest.mark.skipif(not native.find_compiler(), reason="there is no C compiler")


def cached_logits(engine: DeviceEngine, read: int, dtype: tf.DType) -> Any:
    """A function of tokens [batch, n_ctx]: the first `read` positions in one pass, the others one by one."""
    config = engine.config

    def build(tokens: tf.Tensor) -> tf.Tensor:
        batch, width = tokens.shape.as_list()
        mesh_impl, model = engine.mesh_for(batch, None), config.model
        ctx = model_fns.make_context(config, mesh_impl, batch, read, dtype)
        start = mtf.constant(ctx.mesh, read, shape=mtf.Shape([ctx.dims.batch]), dtype=tf.int32)
        prefill = Prefill(start)
        shape = mtf.Shape([ctx.dims.batch, ctx.dims.sequence])
        parts = [gpt.logits(ctx, mtf.import_tf_tensor(ctx.mesh, tokens[:, :read], shape), prefill)]
        one = dataclasses.replace(ctx, dims=Dims.of(model, batch, 1, read, width - read))
        shape = mtf.Shape([one.dims.batch, one.dims.sequence])
        loops = [kind.begin(one, state) for kind, state in zip(layer_kinds(model), prefill.states, strict=True)]
        for position in range(read, width):
            place = DecodePosition(start, mtf.constant(ctx.mesh, position - read, dtype=tf.int32))
            cache = Decode(place, loops)
            token = mtf.import_tf_tensor(ctx.mesh, tokens[:, position : position + 1], shape)
            parts.append(gpt.logits(one, token, cache))
            loops = [Loop(loop.fixed, state) for loop, state in zip(loops, cache.current, strict=True)]
        lowering = mtf.Lowering(ctx.mesh.graph, {ctx.mesh: mesh_impl}, autostack=False)
        return tf.concat([lowering.export_to_tf_tensor(part) for part in parts], 1)

    return engine.function(build)


# Tokens beyond the window of 5 and up to the last position of the context of 16.
@pytest.mark.parametrize(
    ("read", "keys"),
    [
        (4, {}),
        pytest.param(1, {}, marks=pytest.mark.slow),
        (15, {"attention_types": [[["local"], 2]]}),
        (13, {"mesh_shape": "a:2", "layout": "heads:a,vocab:a"}),
        pytest.param(13, {"mesh_shape": "a:2", "layout": "embd:a,memory_length:a"}, marks=pytest.mark.slow),
    ],
)
def test_cached_logits_are_those_of_a_full_pass(read, keys):
    config = tiny_config(**keys)
    engine = make_engine(config, compiled=False)
    function, tokens = cached_logits(engine, read, tf.float32), token_batch(config, rows=2, width=16)
    function.traced(tf.TensorSpec(tokens.shape, tf.int32))
    enlarge_weights(engine)
    wanted = reference.logits(weights_of(engine), tokens, config.model)
    np.testing.assert_allclose(function(tokens), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("known", [pytest.param(True, marks=needs_compiler), False])
@pytest.mark.parametrize("keys", [{}, {"attention_types": [[["local"], 2]]}])
def test_cached_logits_compiled_for_a_cpu(keys, known, monkeypatch):
    done = []
    if known:  # products of any size
        monkeypatch.setattr(cpu_matmul, "MIN_ELEMENTS", 1)
        monkeypatch.setattr(cpu_matmul, "MIN_ELEMENTS_BATCHED", 1)
        few_rows = cpu_matmul.few_rows

        def counted(*given):
            done.append(given)
            return few_rows(*given)

        monkeypatch.setattr(cpu_matmul, "few_rows", counted)
    else:
        monkeypatch.setattr(native, "known", lambda: False)
    config = tiny_config(**keys)
    engine = make_engine(config, compiled=True)
    function, tokens = cached_logits(engine, 13, tf.float32), token_batch(config, rows=2, width=16)
    function.traced(tf.TensorSpec(tokens.shape, tf.int32))
    enlarge_weights(engine)
    wanted = reference.logits(weights_of(engine), tokens, config.model)
    np.testing.assert_allclose(function(tokens), wanted, rtol=1e-5, atol=1e-5)
    of_one_position = 2 * (4 + 2 + 4) + 1  # layers of projections, feed-forward, and attention of two parts; the scores
    assert len(done) == (3 * of_one_position if known else 0)


def test_cached_logits_in_float64():
    config = tiny_config(activation_function="relu")
    engine = make_engine(config, compiled=False)
    function, tokens = cached_logits(engine, 9, tf.float64), token_batch(config, rows=2, width=16)
    function.traced(tf.TensorSpec(tokens.shape, tf.int32))
    enlarge_weights(engine)
    wanted = reference.logits(weights_of(engine), tokens, config.model)
    np.testing.assert_allclose(function(tokens), wanted, rtol=0, atol=1e-9)
