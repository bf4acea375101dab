"""Next-token prediction of the tokens that the data marks as learned."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from gpt_mesh.data.marks import marked
from gpt_mesh.objectives.registry import objective_of
from tests.support import reference
from tests.support.models import enlarge_weights, make_engine, tiny_config, token_batch, weights_of


def test_labels_and_weights_follow_the_marks() -> None:
    tokens = marked([[1, 2, 0, 4]], [[True, False, False, True]])
    found = {name: x.numpy() for name, x in objective_of(tiny_config(objective="sft")).features(
        tf.constant(tokens)
    ).items()}  # fmt: skip
    assert found["inputs"].tolist() == [[1, 2, 0]] and found["labels"].tolist() == [[2, 0, 4]]
    assert found["weights"].tolist() == [[0, 0, 1]]
    again = objective_of(tiny_config(objective="sft")).features(
        tf.constant(tokens), weights=tf.constant([[1.0, 1.0, 0.0]])
    )
    assert not again["weights"].numpy().any()


def test_the_loss_is_the_mean_over_learned_tokens() -> None:
    config = tiny_config(objective="sft", z_loss=0.0)
    engine = make_engine(config)
    engine.create_variables(training=True)
    enlarge_weights(engine)
    tokens = token_batch(config)
    learned = np.random.default_rng(1).random(tokens.shape) < 0.4
    weights = weights_of(engine)
    nll = reference.nll_and_log_z(reference.logits(weights, tokens[:, :-1], config.model), tokens[:, 1:])[0]
    expected = nll[learned[:, 1:]].mean()
    sums = engine.eval_step(marked(tokens, learned), np.ones(nll.shape, np.float32))
    np.testing.assert_allclose(sums[0].numpy().sum() / sums[2].numpy().sum(), expected, rtol=1e-5)
    np.testing.assert_allclose(float(engine.train_step(marked(tokens, learned))["loss"]), expected, rtol=1e-5)


def test_text_without_marks_is_next_token_prediction() -> None:
    plain, ours = tiny_config(), tiny_config(objective="sft")
    tokens = token_batch(plain)
    losses = []
    for config in (plain, ours):
        engine = make_engine(config)
        losses.append([float(engine.train_step(tokens)["loss"]) for _ in range(3)])
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)
