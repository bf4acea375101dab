"""Every shipped config as a training graph at its real size: built and lowered, but nothing of it allocated."""

from __future__ import annotations

import resource
from dataclasses import replace as with_fields
from typing import Any

import pytest
import tensorflow as tf

from gpt_mesh.config import load_config
from gpt_mesh.engine.engine import DeviceEngine
from gpt_mesh.meshes.devices import MeshPlan
from gpt_mesh.models.shapes import weight_count
from gpt_mesh.planning.metrics import flops_per_token
from tests.support.models import is_weight
from tests.test_config import SHIPPED

WHOLE = "gpt3_13B_256"


def build(config):
    """Shapes of the variables of a training step that was built for a real batch, on one device."""
    settings = config.training
    # In a graph of its own, variables have a shape and an initial value, and take memory only when that is computed.
    with tf.Graph().as_default():
        engine = DeviceEngine(config, MeshPlan({}, {}, ("/device:CPU:0",)))
        step: Any = engine._train.traced(tf.TensorSpec((settings.train_batch_size, config.model.n_ctx + 1), tf.int32))
        assert all(shape.rank == 0 for shape in step.output_shapes.values())
        return {name: tuple(v.shape.as_list()) for name, v in engine.store.masters.items()}


def elements(shapes):
    return sum(tf.TensorShape(shape).num_elements() for shape in shapes)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted({*SHIPPED} - {WHOLE}))
def test_a_training_step_is_built(name):
    """With as many layers as it takes to see each kind."""
    config = load_config(name)
    kinds = config.model.attention_types
    layers = max(kinds.index(kind) for kind in set(kinds)) + 1
    layers = max([layers, 2, *[layer + 1 for layer in config.model.moe_layers]])
    model = config.model.model_copy(update={"n_layer": layers, "attention_types": kinds[:layers]})
    shapes = build(with_fields(config, model=model))
    assert elements(shape for key, shape in shapes.items() if is_weight(key)) == weight_count(model)
    width, vocab = model.n_embd, model.n_vocab
    assert shapes["gpt2/wte"] == shapes["gpt2/wte/adam_m"] == shapes["gpt2/wte/adam_v"] == (vocab, width)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_13b_training_step_is_built_whole_and_allocates_nothing():
    config = load_config(WHOLE)
    layers, width, context, vocab = 40, 5120, 2048, 50257
    block = 12 * width**2 + (1 + 4 + 1) * width + 4 * width  # matrices, biases, two norms
    weights = (vocab + context) * width + layers * block + 2 * width
    shapes = build(config)
    assert elements(shape for name, shape in shapes.items() if is_weight(name)) == weights == 12_852_771_840
    assert elements(shapes.values()) == 3 * weights + 1, "two slots each, and the step"
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    assert held < 16e9 < 4 * weights, "the float32 weights alone would take 51 GB"
    matrices = layers * 12 * width**2 + vocab * width
    seen = layers // 2 * (context + config.model.local_attention_radius)  # keys, over all layers
    assert flops_per_token(config) == 6.0 * (matrices + 2 * width * seen)
