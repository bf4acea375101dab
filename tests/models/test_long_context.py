"""Causal linear attention's reason to be: a long context."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tests.support.models import make_engine, tiny_config, token_batch


def long_config(n_ctx, **keys):
    return tiny_config(
        n_ctx=n_ctx, n_embd=32, n_head=1, n_layer=1, attention_types=[[["linear"], 1]], train_batch_size=1, **keys
    )


def test_training_holds_no_features_by_features_for_each_position():
    engine = make_engine(long_config(1024), compiled=False)
    step: Any = engine._train.traced(tf.TensorSpec((1, 1025), tf.int32))
    shapes = [output.shape for op in step.graph.get_operations() for output in op.outputs]
    largest = max(shape.num_elements() or 0 for shape in shapes if shape.rank is not None)
    positions, features, vocab = 1024, 32, 64
    assert positions * vocab <= largest < positions * features * features / 4


@pytest.mark.slow
def test_a_context_of_16384_is_learned():
    engine = make_engine(long_config(16384, train_steps=20))
    tokens = token_batch(engine.config)
    found = [float(engine.train_step(tokens)["nll"]) for _ in range(20)]
    assert found[0] == pytest.approx(np.log(64), rel=0.02)
    assert min(found[10:]) < 0.98 * found[0]
