"""Rows of one batch, of any lengths and kinds of layers: each as a full pass has it, some tokens at a time."""

from __future__ import annotations

import numpy as np
import pytest

from gpt_mesh import sample
from gpt_mesh.generation.decoder import Decoder
from gpt_mesh.sample import Batch, Row, build_generate
from tests.support.models import ONE_LAYER, enlarge_weights, make_engine, tiny_config, unoptimised_graphs

N_CTX, N_VOCAB = 32, 64
KINDS = {
    "local": {"attention_types": [[["local"], 1]]},
    "linear": {"attention_types": [[["linear"], 1]], "num_mem_kv": 2},
    "rotary": {"rotary_emb": True, "num_mem_kv": 3},
    "axial, shared": {"axial_pos_emb": [4, 8], "share_parameters": True, "n_layer": 2},
    "experts": {"moe_layers": [0], "moe_params": {"moe_num_experts": 3}},
    "top-k experts": {
        "moe_layers": [0], "moe_params": {"moe_num_experts": 4, "moe_gating": "top_k", "moe_dropless": True},
    },
    "bfloat16": {"precision": "bfloat16"},
}


@pytest.fixture(scope="module", autouse=True)
def quickly():
    with unoptimised_graphs():
        yield


def make(**keys):
    given = {**ONE_LAYER, "attention_types": [[["global"], keys.get("n_layer", 1)]], "n_ctx": N_CTX, **keys}
    engine = make_engine(tiny_config(**given), compiled=False)
    engine.create_variables(training=False)
    enlarge_weights(engine)
    if engine.program is not None:
        engine.store.scatter()
    return engine


def prompt(length):
    return np.random.default_rng(length).integers(0, N_VOCAB, length).tolist()


def run(decoder, requests, chunk, top=None):
    """All chunks of a batch, as one array [rows, tokens] each."""
    started = decoder.start(requests, top)
    chunks = [started.prefill()]
    while (more := started.advance(chunk)).tokens.shape[1]:
        chunks.append(more)
    names = ("tokens",) if top is None else ("tokens", "logprobs", "top_ids", "top_logprobs")
    return {name: np.concatenate([getattr(one, name) for one in chunks], 1)[: len(requests)] for name in names}


QUICK = ("local", "linear")


@pytest.mark.parametrize(
    "keys",
    [pytest.param(keys, id=name, marks=[] if name in QUICK else pytest.mark.slow) for name, keys in KINDS.items()],
)
def test_unequal_rows_say_what_a_full_pass_finds_likeliest(keys):
    engine = make(**keys)
    lengths = (1, 5, 13, 22)
    requests = [Row(prompt(length), 9, 0, temperature=0.0) for length in lengths]
    found = run(Decoder(engine, ()), requests, 4, top=2)
    for row, length in enumerate(lengths):
        whole = np.array([prompt(length) + found["tokens"][row, :9].tolist()])
        logits = engine.logits(whole).numpy()[0, length - 1 : -1].astype(np.float64)
        logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        tolerance = 0.03 if "precision" in keys else 1e-4
        np.testing.assert_allclose(found["logprobs"][row, :9], logs.max(-1), atol=tolerance)
        np.testing.assert_allclose(found["top_logprobs"][row, :9, 1], np.sort(logs)[:, -2], atol=tolerance)
        if "precision" not in keys:
            np.testing.assert_array_equal(whole[0, length:], logs.argmax(-1))


def test_calls_of_any_size_rooms_that_grow_and_one_graph_give_the_same(monkeypatch):
    engine = make()
    requests = [Row(prompt(length), room, length) for length, room in ((2, 30), (7, 3), (16, 9))]
    monkeypatch.setattr(sample, "MIN_ROOM", 8)
    decoder = Decoder(engine, ())
    by_one, by_five = run(decoder, requests, 1)["tokens"], run(decoder, requests, 5)["tokens"]
    batch = Batch.of(requests, 4, engine.config.model)

    def build(*arrays):
        mesh = engine.mesh_for(4, None)
        return build_generate(Batch.from_arrays(arrays), config=engine.config, mesh_impl=mesh, eos_ids=(), top=None)

    in_one_graph = batch.continuations(engine.function(build)(*batch.arrays)[0].numpy(), ())[:3]
    for row, tokens in enumerate(in_one_graph):
        assert tokens == by_one[row, : len(tokens)].tolist() == by_five[row, : len(tokens)].tolist()
    assert [len(tokens) for tokens in in_one_graph] == [30, 3, 9]


def test_a_cancelled_row_ends_the_batch_when_the_others_have():
    decoder = Decoder(make(), ())
    started = decoder.start([Row(prompt(3), 20, 0), Row(prompt(5), 4, 1)])
    started.prefill()
    started.cancel(0)
    assert started.advance().tokens.shape[1] == 3
    assert started.advance().tokens.shape[1] == 0


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["heads:a,vocab:a", "batch:a"])
def test_on_a_mesh_the_tokens_are_the_same(layout):
    requests = [Row(prompt(length), 8, length, top_k=9) for length in (2, 7)]
    alone, mesh = make(), make(mesh_shape="a:2", layout=layout)
    found = [run(Decoder(engine, ()), requests, 3)["tokens"].tolist() for engine in (alone, mesh)]
    assert found[0] == found[1]
