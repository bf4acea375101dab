"""1.5-entmax and its loss against NumPy float64: the paper's algorithm 2, which sorts (arXiv:1905.05702)."""

from __future__ import annotations

import functools

from gpt_mesh.meshes.compat import mtf

import numpy as np
import pytest
import tensorflow as tf

from gpt_mesh import main, model_fns
from gpt_mesh.models import entmax
from gpt_mesh.models.next_token import Controls, choose
from gpt_mesh.sample import Row
from tests.support import reference
from tests.support.decoding import generate
from tests.support.models import enlarge_weights, make_engine, mesh_of, tiny_config, token_batch


def by_sorting(scores: np.ndarray) -> np.ndarray:
    """Probabilities of one row of scores."""
    z = np.sort(scores.astype(np.float64) / 2)[::-1]
    for k in range(len(z), 0, -1):  # the largest support that its own threshold confirms
        mean = z[:k].mean()
        room = 1 - ((z[:k] - mean) ** 2).sum()
        if room >= 0 and (tau := mean - np.sqrt(room / k)) <= z[k - 1]:
            return np.maximum(scores.astype(np.float64) / 2 - tau, 0) ** 2
    raise AssertionError("the largest score alone is always a support")


def loss_of(scores: np.ndarray, label: np.integer) -> float:
    """Definition: the conjugate of the Tsallis entropy at the scores, less the label's score."""
    p = by_sorting(scores)
    entropy = (p - p**1.5).sum() / (1.5 * 0.5)
    return float((p * scores).sum() + entropy - scores[label])


ROWS = {
    "flat": np.random.default_rng(0).normal(0, 0.01, (4, 300)),
    "sparse": np.random.default_rng(1).normal(0, 2, (4, 300)),
    "peaked": np.random.default_rng(2).normal(0, 40, (4, 300)),
    "far from zero": 1e3 + np.random.default_rng(3).normal(0, 1, (4, 300)),
    "equal": np.full((1, 300), -7.0),
    "tied at the top": np.array([[3.0, 3.0, 3.0, -9.0, 1.5]]),
    "on the edge of the support": np.array([[0.0, -2.0, -2.0]]),
    "one score": np.array([[5.0]]),
}


@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
def test_probabilities_in_float64_are_those_of_the_paper(rows):
    found = entmax.probabilities(tf.constant(rows)).numpy()
    np.testing.assert_allclose(found, [by_sorting(row) for row in rows], rtol=0, atol=1e-12)
    np.testing.assert_allclose(found.sum(-1), 1, rtol=1e-12)


def test_most_probabilities_are_exactly_zero():
    found = entmax.probabilities(tf.constant(ROWS["sparse"])).numpy()
    assert 1 < (found > 0).sum(-1).mean() < 60
    np.testing.assert_array_equal(found > 0, [by_sorting(row) > 0 for row in ROWS["sparse"]])


@pytest.mark.parametrize("spread", [0.01, 1, 4])
def test_a_large_vocabulary_in_float32_sums_to_one(spread):
    rows = np.random.default_rng(4).normal(0, spread, (2, 50257)).astype(np.float32)
    found = tf.function(entmax.probabilities, jit_compile=True)(tf.constant(rows)).numpy()
    np.testing.assert_allclose(found.sum(-1), 1, rtol=1e-5)
    # With the sum, this form says all: the largest score gives the threshold.
    tau = rows.max(-1) / 2 - np.sqrt(found.max(-1))
    np.testing.assert_allclose(found, np.maximum(rows / 2 - tau[:, None], 0) ** 2, rtol=0, atol=1e-6)


def run_loss(logits: np.ndarray, labels: np.ndarray, mesh_shape: str = "", layout: str = "", dtype=tf.float64):
    """The loss [batch, sequence] of logits [batch, sequence, vocab], and the gradient of its sum."""
    implementation = mesh_of(mesh_shape, layout)
    batch, sequence, vocab = logits.shape
    config = tiny_config(n_vocab=vocab)

    def build(logits: tf.Tensor, labels: tf.Tensor) -> list[tf.Tensor]:
        ctx = model_fns.make_context(config, implementation, batch, sequence, dtype)
        shape = mtf.Shape([ctx.dims.batch, ctx.dims.sequence, ctx.dims.vocab])
        x = mtf.import_tf_tensor(ctx.mesh, logits, shape)
        loss = entmax.loss(ctx, x, mtf.import_tf_tensor(ctx.mesh, labels, mtf.Shape(shape.dims[:2])))
        assert loss.dtype == ctx.statistics_dtype
        outputs = [loss, mtf.gradients([mtf.reduce_sum(loss)], [x])[0]]
        lowering = mtf.Lowering(ctx.mesh.graph, {ctx.mesh: implementation}, autostack=False)
        return [tf.cast(lowering.export_to_tf_tensor(t), tf.float64) for t in outputs]

    outputs = tf.function(build, autograph=False)(tf.cast(logits, dtype), tf.constant(labels, tf.int32))
    return [output.numpy() for output in outputs]


LOGITS = np.random.default_rng(5).normal(0, 3, (4, 6, 40))
LABELS = np.random.default_rng(6).integers(0, 40, (4, 6))


def test_the_loss_and_its_gradient_in_float64():
    found, gradient = run_loss(LOGITS, LABELS)
    scores, labels = LOGITS.reshape(24, 40), LABELS.reshape(24)
    wanted = np.array([loss_of(row, label) for row, label in zip(scores, labels, strict=True)])
    p = np.stack([by_sorting(row) for row in scores])
    assert (p[np.arange(24), labels] == 0).any(), "a label of probability 0 is the interesting case"
    np.testing.assert_allclose(found.reshape(24), wanted, rtol=0, atol=1e-12)
    np.testing.assert_allclose(gradient.reshape(24, 40), p - np.eye(40)[labels], rtol=0, atol=1e-12)


def test_the_gradient_is_the_slope_of_the_definition():
    _, gradient = run_loss(LOGITS, LABELS)
    h = 1e-6
    for i in range(40):
        step = h * np.eye(40)[i]
        slope = (loss_of(LOGITS[1, 2] + step, LABELS[1, 2]) - loss_of(LOGITS[1, 2] - step, LABELS[1, 2])) / (2 * h)
        assert gradient[1, 2, i] == pytest.approx(slope, abs=1e-7)


def test_the_loss_is_zero_where_the_label_has_all_probability():
    logits = np.zeros((1, 1, 20))
    logits[0, 0, 4] = 2.0
    found, gradient = run_loss(logits, np.array([[4]]))
    np.testing.assert_allclose(found, 0, atol=1e-15)
    np.testing.assert_allclose(gradient, 0, atol=1e-15)


def test_bfloat16_logits_are_scored_in_float32():
    rounded = tf.cast(tf.cast(LOGITS, tf.bfloat16), tf.float64).numpy()
    found, gradient = run_loss(rounded, LABELS, dtype=tf.bfloat16)
    wanted, slopes = run_loss(rounded, LABELS)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)
    np.testing.assert_allclose(gradient, slopes, rtol=0, atol=2.0**-8)


@pytest.mark.parametrize("layout", ["batch:x,vocab:y", "sequence:x", "vocab:x,sequence:y"])
def test_any_layout_gives_the_same_loss(layout):
    for found, wanted in zip(run_loss(LOGITS, LABELS, "x:2,y:2", layout), run_loss(LOGITS, LABELS), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-12)


@functools.cache
def trained():
    """An engine of the entmax loss with weights that matter, a batch, its logits, and what a step made of them."""
    engine = make_engine(tiny_config(entmax_loss=True, z_loss=0.5, lr=1e-9), compiled=False)
    engine.create_variables(training=True)
    enlarge_weights(engine)
    tokens = token_batch(engine.config)
    logits = engine.logits(tokens[:, :-1]).numpy()
    return engine, tokens, logits, {name: float(x) for name, x in engine.train_step(tokens).items()}


def test_training_optimises_the_entmax_loss_and_reports_the_nll_of_softmax():
    _, tokens, logits, found = trained()
    rows, labels = logits.reshape(-1, 64).astype(float), tokens[:, 1:].reshape(-1)
    wanted = np.mean([loss_of(row, label) for row, label in zip(rows, labels, strict=True)])
    assert found["loss"] == pytest.approx(wanted, rel=1e-5), "no z-loss in it"
    assert found["nll"] == pytest.approx(reference.nll_and_log_z(rows, labels)[0].mean(), rel=1e-5)


def test_samples_stay_in_the_support():
    engine, tokens, *_ = trained()
    prompts = [row[:3].tolist() for row in tokens]
    drawn = {}
    for sparse in (True, False):
        rows = [Row(p, 13, seed) for seed, p in enumerate(prompts)]
        drawn[sparse] = generate(engine, rows, 1.5, sparse=sparse)
    assert count_outside(engine, prompts, drawn[True], 1.5) == 0
    assert count_outside(engine, prompts, drawn[False], 1.5) > 0, "softmax leaves it: the test can fail"


def count_outside(engine, prompts, drawn, temperature: float) -> int:
    """How many drawn tokens have probability 0 under 1.5-entmax."""
    count = 0
    for prompt, continuation in zip(prompts, drawn, strict=True):
        logits = engine.logits(np.array([prompt + continuation], np.int32)).numpy()[0]
        for place, token in enumerate(continuation, len(prompt) - 1):
            count += by_sorting(logits[place] / temperature)[token] == 0
    return count


def drawn_sparsely(rows: int, vocab: int, temperature: float) -> dict:
    """The arguments of `choose` for draws from entmax, a seed a row."""
    ones, zeros = tf.ones(rows), tf.zeros(rows, tf.int32)
    settings = Controls(tf.range(rows), ones * temperature, zeros, ones, ones, zeros + 1, zeros)
    return {"seen": tf.zeros([rows, vocab], tf.bool), "position": zeros + 3, "controls": settings}


def test_draws_follow_the_sparse_probabilities():
    scores, draws = np.array([1.0, 0.7, 0.3, -0.2, -5.0], np.float32), 20000
    logits = tf.constant(np.tile(scores, (draws, 1)))
    found = choose(logits, **drawn_sparsely(draws, 5, 0.8)).numpy()
    p = by_sorting(scores / 0.8)
    assert p[-1] == 0 < p[-2]
    np.testing.assert_allclose(np.bincount(found, minlength=5) / draws, p, atol=4 * np.sqrt(0.25 / draws))
    assert (found != 4).all()


def test_temperature_zero_takes_the_largest_score():
    logits = tf.constant(np.random.default_rng(7).normal(size=(50, 20)).astype(np.float32))
    found = choose(logits, **drawn_sparsely(50, 20, 0.0))
    np.testing.assert_array_equal(found, np.argmax(logits, -1))


def test_the_flag_goes_with_predict():
    arguments = ["--model", "any", "--entmax_sampling"]
    assert main.parse_arguments([*arguments, "--predict", "--prompt", "-"]).entmax_sampling
    with pytest.raises(SystemExit) as refused:
        main.parse_arguments(arguments)
    assert refused.value.code == 2
