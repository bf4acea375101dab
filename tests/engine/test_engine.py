"""The engine's bookkeeping: one set of variables, each graph traced once. Its numbers: tests/test_model_fns.py."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from gpt_mesh import model_fns
from tests.support.models import ONE_LAYER, make_engine, tiny_config, token_batch, train


def test_each_form_of_arguments_is_traced_once():
    engine = make_engine(tiny_config(**ONE_LAYER), compiled=False)
    traces = []

    def build(tokens: tf.Tensor) -> tf.Tensor:
        traces.append(tuple(tokens.shape))
        return model_fns.build_logits(tokens, engine.config, engine.mesh_impl)

    function = engine.function(build)
    for rows in (2, 2, 3, 2, 3):
        function(token_batch(engine.config, rows=rows, width=16))
    assert traces == [(2, 16), (3, 16)]


def test_graphs_share_their_variables():
    engine = make_engine(tiny_config(**ONE_LAYER), compiled=False)
    engine.create_variables(training=False)
    before = dict(engine.store.masters)
    engine.create_variables(training=True)
    assert all(engine.store.masters[name] is variable for name, variable in before.items())
    assert len(engine.store.masters) == 1 + 3 * (len(before) - 1)
    tokens = token_batch(engine.config, width=16)
    untrained = engine.logits(tokens).numpy()
    train(engine, 1)
    assert np.abs(engine.logits(tokens).numpy() - untrained).max() > 1e-3, "logits are those of the trained weights"


def test_creating_variables_runs_no_step():
    engine = make_engine(tiny_config(**ONE_LAYER), compiled=False)
    engine.create_variables(training=True)
    assert int(engine.global_step) == 0
    assert not engine.store.masters["gpt2/wte/adam_m"].numpy().any()
