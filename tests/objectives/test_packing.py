"""Several samples in one window are learned as each alone in a window."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gpt_mesh.data.marks import beginning, marked
from gpt_mesh.data.packing import one_each, packed
from gpt_mesh.models.attention import streaming
from tests.support.models import LLAMA, ONE_LAYER, enlarge_weights, make_engine, tiny_config

ALIBI: dict[str, Any] = {"pos_emb": "alibi", "attention_types": [[["global"], 2]]}
SPLIT: dict[str, Any] = {"mesh_shape": "x:2", "layout": "sequence:x", **ONE_LAYER}
LENGTHS = ((20, 7, 33), (64,), (31, 30), (2, 3, 50, 5))  # of the samples of four windows


def windows(n_ctx: int, n_vocab: int) -> tuple[np.ndarray, np.ndarray]:
    """The same samples, packed into four windows and alone in twelve: int32 [rows, n_ctx + 1]."""
    rng = np.random.default_rng(0)
    together, alone = np.full((4, n_ctx + 1), -1, np.int32), np.full((12, n_ctx + 1), -1, np.int32)
    number = 0
    for row, lengths in enumerate(LENGTHS):
        place = 0
        for length in lengths:
            ids = rng.integers(0, n_vocab, length)
            sample = marked(ids, rng.random(length) < 0.6)
            sample[:1] = beginning(sample[:1])
            together[row, place : place + length] = alone[number, :length] = sample
            for tokens, at, end in ((together, row, place + length), (alone, number, length)):
                tokens[at, end : end + 1] = beginning(tokens[at, end : end + 1])
            place, number = place + length, number + 1
    return together, alone


def trained(keys: dict[str, Any], tokens: np.ndarray, *, compiled: bool = True) -> tuple[float, dict[str, np.ndarray]]:
    """The loss of a step, and the weights after it."""
    config = tiny_config(
        **{"n_ctx": 64, "local_attention_radius": 5, "objective": "sft", "train_batch_size": len(tokens), "lr": 0.01,
           "datasets": [["tiny", 1, "documents_packed", 1.0]]} | keys
    )  # fmt: skip
    engine = make_engine(config, compiled=compiled)
    engine.create_variables(training=True)
    enlarge_weights(engine)
    loss = float(engine.train_step(tokens)["loss"])
    engine.store.gather()
    names = [name for name in engine.store.masters if not name.endswith(("adam_m", "adam_v"))]
    return loss, {name: engine.store.masters[name].numpy() for name in names}


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"fused_ops": False},
        {**LLAMA, "num_kv_heads": 2, "n_embd": 16},
        ALIBI,
        pytest.param({**ALIBI, "fused_ops": False}, marks=pytest.mark.slow),
        pytest.param({"num_mem_kv": 3}, marks=pytest.mark.slow),
        pytest.param({"recompute_grad": True, "tokens_per_mb_per_replica": 64}, marks=pytest.mark.slow),
        pytest.param({"mesh_shape": "x:2,y:2", "layout": "batch:x,heads:y"}, marks=pytest.mark.slow),
        {**LLAMA, "mesh_shape": "x:2,y:2", "layout": "batch:x,heads:y", "num_kv_heads": 2},
        {**SPLIT, "pos_emb": "rotary"},
        {**SPLIT, "pos_emb": "alibi"},
    ],
    ids=["in C", "plain", "a Llama", "ALiBi in C", "ALiBi", "learned memory", "recomputed in microbatches", "on a mesh",
         "a Llama on a mesh", "split positions", "ALiBi over split positions"],
)  # fmt: skip
def test_packed_samples_are_learned_as_alone(keys: dict[str, Any]) -> None:
    together, alone = windows(64, 64)
    compiled = "mesh_shape" not in keys
    loss, weights = trained(keys, together, compiled=compiled)
    expected, others = trained({k: v for k, v in keys.items() if "mb_per" not in k}, alone, compiled=compiled)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    for name, value in weights.items():
        np.testing.assert_allclose(value, others[name], rtol=2e-4, atol=2e-5, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("keys", [{"attention_types": [[["global"], 2]]}, {**LLAMA, "num_kv_heads": 2, "n_embd": 16}])
def test_in_streams(keys: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "MIN_POSITIONS", 16)
    monkeypatch.setattr(streaming, "BLOCK", 16)
    together, alone = windows(64, 64)
    found = [trained(keys, tokens, compiled=False) for tokens in (together, alone)]
    np.testing.assert_allclose(found[0][0], found[1][0], rtol=1e-5)
    for name, value in found[0][1].items():
        np.testing.assert_allclose(value, found[1][1][name], rtol=2e-4, atol=2e-5, err_msg=name)


def test_without_packing_samples_would_see_each_other() -> None:
    together, alone = windows(64, 64)
    keys = {"datasets": [["tiny", 1, "documents_padded", 1.0]]}
    assert abs(trained(keys, together)[0] - trained(keys, alone)[0]) > 1e-3


@pytest.mark.parametrize("seed", range(20))
def test_windows_hold_every_document_once_and_waste_little(seed: int) -> None:
    rng = np.random.default_rng(seed)
    lengths, width = rng.integers(1, 65, int(rng.integers(1, 400))).astype(np.int64), 64
    found = packed(lengths, width, "some", seed)
    assert sorted(found.documents.tolist()) == list(range(len(lengths)))
    for number in range(found.n_windows):
        part = slice(found.first[number], found.first[number + 1])
        ends = found.columns[part] + lengths[found.documents[part]]
        assert found.columns[part][0] == 0 and ends.max() <= width
        np.testing.assert_array_equal(found.columns[part][1:], ends[:-1])
    assert found.n_windows <= 11 / 9 * -(-lengths.sum() // width) + 1  # what best-fit decreasing is known to reach
    assert one_each(lengths).n_windows == len(lengths)
