"""Generated tokens: those of full passes when greedy, those of the softmax when drawn, and where they stop."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from gpt_mesh.meshes import cpu_matmul
from gpt_mesh.models import next_token
from gpt_mesh.models.next_token import CONTROL_TYPES, Controls, choose
from gpt_mesh.sample import Batch, Row, fit_prompt
from tests.support import reference
from tests.support.decoding import generate
from tests.support.models import ONE_LAYER, enlarge_weights, make_engine, tiny_config, weights_of
from tests.support.statistics import chi_square_z

N_CTX, N_VOCAB = 24, 64


@pytest.fixture(scope="module")
def engine():
    engine = make_engine(tiny_config(n_ctx=N_CTX), compiled=False)
    engine.create_variables(training=False)
    enlarge_weights(engine)
    return engine


def prompt(length, seed=0):
    return np.random.default_rng([seed, length]).integers(0, N_VOCAB, length).tolist()


def greedy(weights, model, tokens, count):
    """The likeliest continuation, by a full pass of the reference for each token."""
    tokens = list(tokens)
    for _ in range(count):
        tokens.append(int(reference.logits(weights, np.array([tokens]), model)[0, -1].argmax()))
    return tokens[len(tokens) - count :]


def test_greedy_tokens_are_the_likeliest_of_full_passes(engine):
    weights, model = weights_of(engine), engine.config.model
    # Rows of one batch that begin and end at different places: alone in the window, beyond it, to the context's end;
    # a fifth request goes into a second batch, and a prompt of 23 tokens leaves room for one.
    requests = [Row(prompt(length), count, 0) for length, count in [(1, 6), (3, 21), (9, 4), (14, 40), (23, 5)]]
    found = generate(engine, requests, 0.0)
    assert [len(tokens) for tokens in found] == [6, 21, 4, 10, 1]
    for request, tokens in zip(requests, found, strict=True):
        assert tokens == greedy(weights, model, request.prompt, len(tokens))
    assert len({token for tokens in found for token in tokens}) > 5, "a model that repeats one token shows little"


@pytest.mark.parametrize(
    "keys",
    [
        {},
        pytest.param({"mesh_shape": "a:2", "layout": "heads:a,vocab:a"}),
        pytest.param({"mesh_shape": "a:2", "layout": "batch:a"}, marks=pytest.mark.slow),
        pytest.param({"mesh_shape": "a:2", "layout": "embd:a,memory_length:a"}, marks=pytest.mark.slow),
        pytest.param({"mesh_shape": "a:2", "layout": "sequence:a"}, marks=pytest.mark.slow),
    ],
    ids=lambda keys: keys.get("layout", "compiled"),
)
def test_compiled_or_on_a_mesh_the_tokens_are_the_same(keys):
    engine = make_engine(tiny_config(**ONE_LAYER, n_ctx=N_CTX), compiled=False)
    other = make_engine(tiny_config(**ONE_LAYER, n_ctx=N_CTX, **keys))
    assert other.compiled == (not keys)
    for e in (engine, other):
        e.create_variables(training=False)
        enlarge_weights(e)
    requests = [Row(prompt(length), 8, length) for length in (2, 7, 16)]
    for temperature in (0.0, 1.0):
        assert generate(other, requests, temperature) == generate(engine, requests, temperature)


@pytest.mark.parametrize("compiled", [False, True])
def test_the_same_seed_draws_the_same_text_wherever_it_sits(compiled, monkeypatch):
    for threshold in ("MIN_ELEMENTS", "MIN_ELEMENTS_BATCHED"):  # products of a few rows of any size
        monkeypatch.setattr(cpu_matmul, threshold, 1)
    engine = make_engine(tiny_config(n_ctx=N_CTX), compiled=compiled)
    engine.create_variables(training=False)
    enlarge_weights(engine)
    wanted = Row(prompt(5), 12, 77)
    others = [Row(prompt(length, 9), 12, length) for length in (2, 5, 8)]
    [alone] = generate(engine, [wanted], 1.0)
    assert generate(engine, [*others, wanted], 1.0)[3] == alone
    assert generate(engine, [wanted, *others], 1.0)[0] == alone
    assert generate(engine, [others[0], wanted], 1.0, batch=2)[1] == alone
    [other_seed] = generate(engine, [Row(wanted.prompt, 12, 78)], 1.0)
    assert other_seed != alone


def test_a_seed_beyond_32_bits_works(engine):
    found = [generate(engine, [Row(prompt(5), 6, seed)], 1.0) for seed in (-1, 2**31, 2**63)]
    assert all(len(tokens[0]) == 6 for tokens in found)


def test_temperatures(engine):
    request = Row(prompt(5), 12, 3)
    [cold], [warm], [hot] = (generate(engine, [request], t) for t in (0.0, 1.0, 100.0))
    assert cold != warm != hot
    [almost_cold] = generate(engine, [request], 1e-4)
    assert almost_cold == cold


def test_generation_stops_at_the_first_end_of_text_after_the_prompt(engine):
    requests = [Row(prompt(length), 12, 0) for length in (4, 9, 11)]
    without = generate(engine, requests, 0.0)
    eos = without[1][5]  # what the second row says sixth, if not earlier
    wanted = [tokens[: tokens.index(eos)] if eos in tokens else tokens for tokens in without]
    assert wanted[1] != without[1] and any(len(tokens) == 12 for tokens in wanted), "rows stop at different places"
    assert generate(engine, requests, 0.0, eos_ids=(eos,)) == wanted


def test_an_end_of_text_inside_the_prompt_stops_nothing(engine):
    eos = 7
    tokens = prompt(9)
    for place in (0, 4, 8):  # the first token, one inside, and the last
        tokens[place] = eos
    # Beside a short row, so that the positions of the prompt are passed one by one.
    requests = [Row(tokens, 6, 0), Row(prompt(2), 6, 0)]
    without = generate(engine, requests, 0.0)
    wanted = [found[: found.index(eos)] if eos in found else found for found in without]
    assert generate(engine, requests, 0.0, eos_ids=(eos,)) == wanted
    assert len(wanted[0]) > 0


def test_a_minimum_length_beyond_32_bits_is_the_contexts(engine):
    batch = Batch.of([Row(prompt(5), 6, 0, min_new_tokens=3 * 10**9)], 1, engine.config.model)
    assert batch.controls.min_length.tolist() == [N_CTX]


def test_no_new_token_is_none(engine):
    assert generate(engine, [Row(prompt(5), 0, 0), Row(prompt(3), 2, 0)], 1.0)[0] == []
    assert generate(engine, [], 1.0) == []


# ---------------------------------------------------------------------------------------------------------------------
# Drawing one token
# ---------------------------------------------------------------------------------------------------------------------

LOGITS = np.array([2.0, 1.0, 0.5, 0.0, 0.0, -0.5, -1.0, -2.0], np.float32)


def controls(rows, **given):
    """The settings of `choose`, the same for all rows but where a list is given."""
    values = {"seeds": 0, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "penalty": 1.0, "sparse": 0, "min_length": 0}
    values, kinds = values | given, CONTROL_TYPES._asdict()
    return Controls(**{n: tf.constant(np.broadcast_to(v, rows), kinds[n]) for n, v in values.items()})


def draw(seeds, position, temperature, logits=LOGITS, *, seen=(), eos_ids=(), **given):
    rows = np.tile(logits, (len(seeds), 1))
    known = np.tile(np.isin(np.arange(len(logits)), seen), (len(seeds), 1))
    settings = controls(len(seeds), seeds=seeds, temperature=temperature, **given)
    places = tf.fill([len(seeds)], tf.constant(position, tf.int32))
    return choose(tf.constant(rows), tf.constant(known), places, settings, eos_ids).numpy()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("position", [0, 1000])
def test_draws_have_the_probabilities_of_the_softmax(temperature, position):
    n = 40_000
    counts = np.bincount(draw(np.arange(n), position, temperature), minlength=8)
    expected = n * reference.softmax(LOGITS.astype(np.float64) / temperature)
    assert abs(chi_square_z(counts, expected)) < 4


def test_successive_positions_and_neighbouring_seeds_draw_independently():
    n = 40_000
    first, second = draw(np.arange(n), 5, 3.0), draw(np.arange(n), 6, 3.0)
    odds = reference.softmax(LOGITS.astype(np.float64) / 3)
    for a, b in [(first, second), (first[:-1], first[1:]), (first[:-1], second[1:])]:
        counts = np.zeros((8, 8))
        np.add.at(counts, (a, b), 1)
        assert abs(chi_square_z(counts.ravel(), (len(a) * np.outer(odds, odds)).ravel())) < 4


def test_temperature_zero_draws_the_largest():
    assert (draw(np.arange(100), 3, 0.0) == 0).all()
    assert (draw(np.arange(100), 3, 0.0, LOGITS[::-1].copy()) == 7).all()


@pytest.mark.parametrize("extreme", [0.0, 1 - 2.0**-24])
def test_no_single_draw_overrules_the_model(monkeypatch, extreme):
    """Of 50,257 draws a token, one in 300 tokens meets the largest: it must not choose what the model finds absurd."""

    def uniform(shape, begin, strides, key):
        u = np.full((key.shape[0], shape[1]), 0.5, np.float32)
        u[:, 7] = extreme
        return tf.constant(u)

    monkeypatch.setattr(next_token, "uniform", uniform)
    logits = np.array([0.0] * 7 + [-100.0], np.float32)
    assert (draw(np.arange(4), 0, 1.0, logits) < 7).all()
    # Nor does it end in NaN where all draw the same.
    monkeypatch.setattr(next_token, "uniform", lambda shape, *_: tf.fill(shape, np.float32(extreme)))
    assert (draw(np.arange(4), 0, 1.0, logits[::-1].copy()) > 0).all()


# ---------------------------------------------------------------------------------------------------------------------
# Prompts
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("length", "max_new_tokens", "kept", "cut"),
    [
        (1, None, 1, 0),
        (9, None, 9, 0),  # n_ctx - 1: stays whole
        (9, 5, 9, 0),
        (10, None, 9, 1),
        (10, 1, 9, 1),
        (10, 4, 6, 4),
        (30, 4, 6, 24),
        (30, None, 9, 21),
        (30, 9, 1, 29),
        (30, 100, 1, 29),  # at least one token of the prompt is kept
    ],
)
def test_a_prompt_keeps_its_end_and_leaves_room(length, max_new_tokens, kept, cut):
    tokens = list(range(length))
    assert fit_prompt(tokens, 10, max_new_tokens) == (tokens[length - kept :], cut)
    assert kept + cut == length
