"""Masked language modelling: which tokens are hidden, by what, and what the loss makes of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from gpt_mesh.config import Config, parse_config
from gpt_mesh.data.encoders import load_encoder
from gpt_mesh.models.dropout import step_seed
from gpt_mesh.objectives.draws import draws
from gpt_mesh.objectives.registry import objective_of
from tests.support import family, reference
from tests.support.corpora import add_dataset, make_tokenizer
from tests.support.models import ONE_LAYER, enlarge_weights, make_engine, tiny_config, token_batch, weights_of

MASK, CLS, PADDING, IGNORED = 20, 21, 15, 4  # the tiny dataset has ids below 16
SPECIAL = [MASK, CLS, PADDING, IGNORED]


def mlm_config(**keys: Any) -> Config:
    values: dict[str, Any] = {
        "mlm_training": True,
        "mlm_mask_id": MASK,
        "mlm_mask_prob": 0.3,
        "mlm_same_token_prob": 0.2,
        "mlm_random_token_prob": 0.3,
        "mlm_mask_ignore_ids": [IGNORED],
        "padding_id": PADDING,
    }
    return tiny_config(**(values | keys))


def windows(rows: int = 64, width: int = 1025, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 16, (rows, width)).astype(np.int32)


def features(config: Config, tokens: np.ndarray, *more: Any, **named: Any) -> dict[str, np.ndarray]:
    found = objective_of(config).features(tf.constant(tokens), *more, **named)
    return {name: x.numpy() for name, x in found.items()}


def near(share: float, of: int) -> Any:
    """Within four standard deviations of a share among `of` independent draws."""
    return pytest.approx(share, abs=4 * (share * (1 - share) / of) ** 0.5)


def test_labels_are_the_tokens_and_what_is_not_chosen_stays():
    tokens = windows()
    found = features(mlm_config(), tokens, 1)
    np.testing.assert_array_equal(found["labels"], tokens[:, 1:])
    assert {name: x.dtype for name, x in found.items()} == {
        "inputs": np.int32,
        "labels": np.int32,
        "weights": np.float32,
    }
    assert set(np.unique(found["weights"])) == {0, 1}
    same = found["weights"] == 0
    np.testing.assert_array_equal(found["inputs"][same], tokens[:, 1:][same])


def test_special_tokens_are_never_chosen_and_the_others_as_often_as_asked():
    found = features(mlm_config(), windows(), 1)
    special = np.isin(found["labels"], SPECIAL)
    assert special.sum() > 1000
    assert not found["weights"][special].any()
    assert found["weights"][~special].mean() == near(0.3, int((~special).sum()))


def test_shares_of_the_chosen():
    found = features(mlm_config(), windows(), 1)
    chosen = found["weights"] == 1
    inputs, labels = found["inputs"][chosen], found["labels"][chosen]
    assert (inputs == MASK).mean() == near(0.5, len(inputs))
    # One random token in the fourteen ordinary ones is the same as before.
    assert (inputs == labels).mean() == near(0.2 + 0.3 / 14, len(inputs))
    other = inputs[(inputs != MASK) & (inputs != labels)]
    assert len(other) / len(inputs) == near(0.3 * 13 / 14, len(inputs))
    counts = np.bincount(other, minlength=64)
    ordinary = [token for token in range(16) if token not in SPECIAL]
    assert not np.delete(counts, ordinary).any(), "random tokens are of the dataset's vocabulary and not special"
    assert [count / len(other) for count in counts[ordinary]] == [near(1 / 14, len(other))] * 14


@pytest.mark.parametrize(
    ("same", "random", "masked"),
    [(0.0, 0.0, True), (1.0, 0.0, False), (0.0, 1.0, False)],
    ids=["mask", "same", "random"],
)
def test_shares_of_all_or_nothing(same, random, masked):
    config = mlm_config(mlm_same_token_prob=same, mlm_random_token_prob=random, mlm_mask_prob=1.0)
    found = features(config, windows(8), 1)
    ordinary = ~np.isin(found["labels"], SPECIAL)
    np.testing.assert_array_equal(found["weights"] == 1, ordinary)
    assert (found["inputs"][ordinary] == MASK).all() == masked
    unchanged = (found["inputs"] == found["labels"])[ordinary].mean()
    assert unchanged == (1.0 if same else 0.0 if masked else near(1 / 14, int(ordinary.sum())))


def correlation(x: np.ndarray, y: np.ndarray) -> float:
    return abs(float(np.corrcoef(x.ravel().astype(float), y.ravel().astype(float))[0, 1]))


def test_draws_are_independent():
    tokens = tf.constant(windows()[:, 1:])
    whether, how, which = (x.numpy() for x in draws(tokens, tf.constant(1)))
    later = draws(tokens, tf.constant(2))[0].numpy()
    limit = 4 / np.sqrt(whether.size)
    pairs = [
        (whether, how), (whether, which), (how, which),  # the three draws of a token
        (whether[:, 1:], whether[:, :-1]),  # neighbours
        (whether[1:], whether[:-1]),  # windows
        (whether, later),  # steps
        (whether, tokens.numpy()), (how, tokens.numpy()), (which, tokens.numpy()),
    ]  # fmt: skip
    for x, y in pairs:
        assert correlation(x, y) < 4 / np.sqrt(x.size)
        assert correlation(x < 0.15, y < np.median(y)) < 4 / np.sqrt(x.size)
    for x in (whether, how, which):
        assert x.mean() == pytest.approx(0.5, abs=limit * 0.2887)
        assert np.histogram(x, 16, (0, 1))[0] / x.size == pytest.approx([1 / 16] * 16, rel=0.05)


def test_masks_are_functions_of_seed_and_window():
    config, tokens = mlm_config(), windows(8)
    found, again, other = (features(config, tokens, seed) for seed in (1, 1, 2))
    for name in found:
        np.testing.assert_array_equal(found[name], again[name])
    assert (found["weights"] != other["weights"]).mean() == near(2 * 0.3 * 0.7 * 0.875, tokens.size)
    moved = features(config, tokens[::-1].copy(), 1)  # wherever in a batch a window stands
    np.testing.assert_array_equal(moved["inputs"], found["inputs"][::-1])
    default = [features(config, tokens) for _ in range(2)]
    np.testing.assert_array_equal(default[0]["inputs"], default[1]["inputs"])


def test_padding_is_never_chosen():
    weights = np.ones((8, 1024), np.float32)
    weights[:, 500:] = 0
    found = features(mlm_config(), windows(8), 1, weights)
    assert not found["weights"][:, 500:].any()
    assert found["weights"][:, :500].any()


def test_a_cls_token_comes_first():
    tokens, weights = windows(8), np.ones((8, 1024), np.float32)
    weights[:, 500:] = 0
    found = features(mlm_config(mlm_cls_token_id=CLS, mlm_mask_prob=1.0), tokens, 1, weights)
    assert (found["inputs"][:, 0] == CLS).all()
    np.testing.assert_array_equal(found["labels"][:, 1:], tokens[:, 1:-1])
    ordinary = ~np.isin(found["labels"], SPECIAL) & (np.arange(1024) <= 500)
    np.testing.assert_array_equal(found["weights"] == 1, ordinary)


def test_next_token_prediction_has_no_draws():
    tokens = windows(2, 9)
    found = features(tiny_config(), tokens)
    assert set(found) == {"inputs", "labels"}
    np.testing.assert_array_equal(found["inputs"], tokens[:, :-1])
    np.testing.assert_array_equal(found["labels"], tokens[:, 1:])


# ---------------------------------------------------------------------------------------------------------------------
# Losses
# ---------------------------------------------------------------------------------------------------------------------


def test_losses_average_over_the_chosen_positions():
    config = mlm_config(**ONE_LAYER, z_loss=0.1, activation_function="relu")
    engine, tokens = make_engine(config, compiled=False), token_batch(config) % 16
    engine.create_variables(training=True)
    enlarge_weights(engine, scale=0.2)
    hidden = features(config, tokens, step_seed(config.training.seed, tf.constant(0, tf.int64)))
    chosen = hidden["weights"] == 1
    assert 4 < chosen.sum() < chosen.size / 2
    scores = family.logits(weights_of(engine), hidden["inputs"], config)
    nll, log_z = reference.nll_and_log_z(scores, hidden["labels"])

    out = engine.train_step(tokens)
    assert float(out["nll"]) == pytest.approx(nll[chosen].mean(), rel=1e-5)
    assert float(out["loss"]) == pytest.approx((nll + 0.1 * log_z**2)[chosen].mean(), rel=1e-5)


def test_evaluation_sums_over_the_chosen_positions_the_same_each_time():
    config = mlm_config(**ONE_LAYER, activation_function="relu")
    engine, tokens = make_engine(config, compiled=False), token_batch(config) % 16
    engine.create_variables(training=False)
    enlarge_weights(engine, scale=0.2)
    given = np.ones((4, 16), np.float32)
    given[1, 8:] = 0
    hidden = features(config, tokens, weights=given)
    chosen = hidden["weights"] == 1
    scores = family.logits(weights_of(engine), hidden["inputs"], config)
    nll, _ = reference.nll_and_log_z(scores, hidden["labels"])
    correct = scores.argmax(-1) == hidden["labels"]

    sums = [float(np.sum(x)) for x in engine.eval_step(tokens, given)]
    assert sums == pytest.approx([nll[chosen].sum(), correct[chosen].sum(), chosen.sum()], rel=1e-5)
    assert [float(np.sum(x)) for x in engine.eval_step(tokens, given)] == sums


def test_a_batch_without_a_chosen_token_has_no_loss():
    config = mlm_config(**ONE_LAYER)
    engine = make_engine(config, compiled=False)
    out = engine.train_step(np.full((4, 17), PADDING, np.int32))
    assert [float(out[name]) for name in ("loss", "nll", "grad_norm")] == [0, 0, 0]


def test_the_tokenizers_padding_is_never_chosen(tmp_path: Path) -> None:
    tokenizer = make_tokenizer(tmp_path / "tokenizer")
    padding = load_encoder(str(tokenizer)).padding_id
    assert padding is not None
    add_dataset(tmp_path, "tiny", [[1, 2, 3]] * 4, n_vocab=320, tokenizer_path=str(tokenizer), padding_id=None)
    keys = {"n_vocab": 321, "mlm_mask_id": 320, "mlm_mask_ignore_ids": []}
    values = {**tiny_config(mlm_training=True, mlm_mask_id=20).to_json(), "datasets": ["tiny"], **keys}
    config = parse_config(values, "masks.json", tmp_path)
    tokens = np.full((8, 257), padding, np.int32)
    assert not features(config, tokens, 1)["weights"].any()
    assert features(config, tokens + 1, 1)["weights"].any()
