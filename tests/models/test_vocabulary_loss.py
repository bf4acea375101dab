"""The cross-entropy that is computed in chunks, against NumPy float64 and against the plain operations."""

from __future__ import annotations

from typing import Any

from gpt_mesh.meshes.compat import mtf

import numpy as np
import pytest
import tensorflow as tf

from gpt_mesh import model_fns
from gpt_mesh.meshes.variables import VariableStore
from gpt_mesh.models import vocabulary_loss
from tests.support.models import enlarge_weights, make_engine, mesh_of, tiny_config, token_batch

BATCH, SEQUENCE, EMBD, VOCAB = 4, 6, 16, 64
Z_LOSS, UPSTREAM = 0.1, 1.7
RNG = np.random.default_rng(0)
X = RNG.standard_normal((BATCH, SEQUENCE, EMBD)) * 2
WEIGHT = RNG.standard_normal((VOCAB, EMBD))
LABELS = RNG.integers(0, VOCAB, (BATCH, SEQUENCE)).astype(np.int32)
SHARES = RNG.random((BATCH, SEQUENCE)) * (RNG.random((BATCH, SEQUENCE)) > 0.3)
MASKED = {"mlm_training": True, "mlm_mask_id": 3, "mlm_mask_prob": 0.4}


BIAS = RNG.standard_normal(VOCAB) * 2
# By name: a bias and a bound of the logits.
HEADS: dict[str, tuple[np.ndarray | None, float | None]] = {
    "plain": (None, None),
    "bias": (BIAS, None),
    "bound": (None, 3.0),
    "bias, bound": (BIAS, 3.0),
}
each_head = pytest.mark.parametrize("head", HEADS)


def expected(head: str) -> dict[str, np.ndarray]:
    """By the formulas, for an upstream gradient of UPSTREAM."""
    bias, cap = HEADS[head]
    scores = X @ WEIGHT.T + (0.0 if bias is None else bias)
    slope = 1.0 if cap is None else 1 / np.cosh(scores / cap) ** 2
    scores = scores if cap is None else cap * np.tanh(scores / cap)
    log_z = np.log(np.exp(scores).sum(-1))
    nll = log_z - np.take_along_axis(scores, LABELS[..., None], -1)[..., 0]
    probabilities, one_hot = np.exp(scores - log_z[..., None]), np.eye(VOCAB)[LABELS]
    by_scores = SHARES[..., None] * (probabilities - one_hot + 2 * Z_LOSS * log_z[..., None] * probabilities)
    by_scores *= slope
    return {
        "objective": (SHARES * (nll + Z_LOSS * log_z**2)).sum(),
        "nll": (SHARES * nll).sum(),
        "x": UPSTREAM * by_scores @ WEIGHT,
        "weight": UPSTREAM * np.einsum("bsv,bse->ve", by_scores, X),
    } | ({} if bias is None else {"bias": UPSTREAM * by_scores.sum((0, 1))})


def found(
    mesh_shape: str, layout: str, head: str, *, untied: bool, dtype: tf.DType, compiled: bool = False
) -> dict[str, np.ndarray]:
    implementation = mesh_of(mesh_shape, layout, VariableStore("/device:CPU:0"))

    bias, cap = HEADS[head]

    def build(x: tf.Tensor, weight: tf.Tensor, shares: tf.Tensor, *biases: tf.Tensor) -> dict[str, tf.Tensor]:
        ctx = model_fns.make_context(tiny_config(), implementation, BATCH, SEQUENCE, dtype)
        dims = ctx.dims
        tokens = mtf.Shape([dims.batch, dims.sequence])
        rows = mtf.Shape([dims.embd, dims.vocab] if untied else [dims.vocab, dims.embd])
        features = mtf.import_tf_tensor(ctx.mesh, x, mtf.Shape([*tokens.dims, dims.embd]))
        table = mtf.import_tf_tensor(ctx.mesh, tf.transpose(weight) if untied else weight, rows)
        labels, parts = (mtf.import_tf_tensor(ctx.mesh, t, tokens) for t in (LABELS, shares))
        added = [mtf.import_tf_tensor(ctx.mesh, t, mtf.Shape([dims.vocab])) for t in biases]
        objective, nll = vocabulary_loss.cross_entropy(
            ctx, features, table, labels, parts, Z_LOSS, added[0] if added else None, cap
        )
        gradients = mtf.gradients([objective * UPSTREAM], [features, table, *added])
        lowering = mtf.Lowering(ctx.mesh.graph, {ctx.mesh: implementation}, autostack=False)
        names = ["objective", "nll", "x", "weight", *["bias"] * len(added)]
        return {
            n: lowering.export_to_tf_tensor(t) for n, t in zip(names, [objective, nll, *gradients], strict=True)
        }

    wide = tf.float32 if dtype == tf.bfloat16 else dtype
    given = [tf.cast(X, dtype), tf.cast(WEIGHT, dtype), tf.cast(SHARES, wide)]
    given += [] if bias is None else [tf.cast(bias, dtype)]
    outputs = tf.function(build, autograph=False, jit_compile=compiled or None)(*given)
    values = {name: tf.cast(value, tf.float64).numpy() for name, value in outputs.items()}
    if untied:
        values["weight"] = values["weight"].T
    return values


@pytest.mark.parametrize("chunks", [1, 3, 5])  # 5 chunks of 24 tokens (3 of a device's 6): the last is padded
@pytest.mark.parametrize(
    ("mesh_shape", "layout", "untied"),
    [("", "", False), ("", "", True), ("a:2,b:2", "batch:a,sequence:b", False), ("a:2", "batch:a", True)],
)
@each_head
def test_equals_the_formulas(
    monkeypatch: pytest.MonkeyPatch, mesh_shape: str, layout: str, untied: bool, chunks: int, head: str
) -> None:
    monkeypatch.setattr(vocabulary_loss, "chunks", lambda tokens, row_bytes: (chunks, -(-tokens // chunks)))
    values = found(mesh_shape, layout, head, untied=untied, dtype=tf.float64)
    for name, value in expected(head).items():
        np.testing.assert_allclose(values[name], value, rtol=1e-12, atol=1e-12, err_msg=name)


@each_head
@pytest.mark.parametrize("untied", [False, True])
def test_compiled_for_a_cpu_in_float32(head: str, untied: bool) -> None:
    values = found("", "", head, untied=untied, dtype=tf.float32, compiled=True)
    for name, value in expected(head).items():
        np.testing.assert_allclose(values[name], value, rtol=0, atol=2e-5 * np.abs(value).max(), err_msg=name)


@each_head
def test_bfloat16_sums_in_float32(head: str) -> None:
    values = found("", "", head, untied=False, dtype=tf.bfloat16)
    for name, value in expected(head).items():
        assert np.abs(values[name] - value).max() < 0.02 * np.abs(value).max(), name


def test_chunks_stay_within_their_bytes() -> None:
    for tokens, row in ((16384, 50304 * 4), (2048, 8192 * 4), (7, 4), (9, 2**22), (1009, 2**25)):
        count, size = vocabulary_loss.chunks(tokens, row)
        assert (count - 1) * size < tokens <= count * size
        assert size == 1 or size * row <= vocabulary_loss.CPU_BYTES


@pytest.mark.parametrize(
    "keys",
    [
        {"z_loss": 0.01},
        {"lm_head_bias": True, "final_logit_softcapping": 4.0, "mesh_shape": "a:2", "layout": "vocab:a"},
        pytest.param({"no_weight_tie": True, "tokens_per_mb_per_replica": 32}, marks=pytest.mark.slow),
        pytest.param({**MASKED, "mesh_shape": "a:2", "layout": "batch:a"}, marks=pytest.mark.slow),
    ],
    ids=["z-loss", "bias and bound, split vocabulary", "untied, microbatches", "masked, split batch"],
)
def test_training_is_that_of_the_plain_operations(keys: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vocabulary_loss, "CPU_BYTES", 16 * 64 * 4)

    def losses(**more: Any) -> list[float]:
        engine = make_engine(tiny_config(n_layer=1, attention_types=[[["global"], 1]], **keys, **more), compiled=False)
        engine.create_variables(training=True)
        enlarge_weights(engine)
        steps = [engine.train_step(token_batch(engine.config, seed)) for seed in range(3)]
        return [float(step[name]) for step in steps for name in ("loss", "nll", "grad_norm")]

    np.testing.assert_allclose(losses(), losses(fused_ops=False), rtol=2e-5)
