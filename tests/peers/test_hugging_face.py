"""The same checkpoints in Hugging Face's GPT-Neo, read by its own reader, give the same logits.

Contexts shorter than the window of local attention, as long, one longer, and full.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpt_mesh import api
from gpt_mesh.config import Config, load_config
from gpt_mesh.inputs import EvaluationData
from tests.support.models import enlarge_weights, make_engine
from tests.support.outside import ask, hugging_face_keys
from tests.support.published import write_published
from tests.support.runs import Workspace, weights

pytestmark = pytest.mark.peers

MODEL = {"n_embd": 64, "n_head": 4, "n_layer": 2, "train_batch_size": 8, "embed_dropout": 0, "iterations": 100}
GLOBAL = {"attention_types": [[["global"], 2]]}
MIXED = {"attention_types": [[["global", "local"], 1]]}
TRAINED_TOLERANCE, LARGE_TOLERANCE = 1e-5, 1e-4


def held_out(config: Config, lengths: tuple[int, ...]) -> list[np.ndarray]:
    """Two rows of held-out text of each length."""
    tokens, _ = next(EvaluationData(config, progress=False).batches(2))
    return [tokens[:, :length] for length in lengths]


def both_logits(
    config: Config, checkpoint: str, folder: Path, lengths: tuple[int, ...], **changed: Any
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Ours and Hugging Face's for a context of each length. changed: keys of Hugging Face's config."""
    tokens = held_out(config, lengths)
    model = hugging_face_keys(config.model) | changed
    job = {"checkpoint": checkpoint, "model": model, "tokens": [rows.tolist() for rows in tokens]}
    theirs = ask("logits", job, folder)
    ours = api.Model(config, checkpoint=checkpoint)
    return [(ours.logits(rows)[..., : model["vocab_size"]], theirs[str(i)]) for i, rows in enumerate(tokens)]


def assert_within(tolerance: float, pairs: list[tuple[np.ndarray, np.ndarray]]) -> None:
    for ours, theirs in pairs:
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance, err_msg=f"context of {ours.shape[1]}")


@pytest.mark.parametrize(("name", "layers"), [("all_global", GLOBAL), ("mixed", MIXED)])
def test_after_training_on_text(workspace: Workspace, tmp_path: Path, name: str, layers: dict[str, Any]) -> None:
    config = load_config(str(workspace.config(f"judged_{name}", **MODEL, **layers, train_steps=300)))
    result = api.train(config)
    pairs = both_logits(config, result.checkpoint, tmp_path, (5, 8, 9, 32))
    assert_within(TRAINED_TOLERANCE, pairs)
    assert pairs[-1][0].std() > 1, "it learned nothing"


@pytest.mark.parametrize(
    ("name", "layers", "window", "lengths"),
    [("all_global", GLOBAL, 8, (9, 32)), ("mixed", MIXED, 8, (8, 9, 32)), ("mixed", MIXED, 16, (9, 17, 32))],
)
def test_with_large_random_weights(
    workspace: Workspace, tmp_path: Path, name: str, layers: dict[str, Any], window: int, lengths: tuple[int, ...]
) -> None:
    path = workspace.config(f"large_{name}_{window}", **MODEL, **layers, local_attention_radius=window)
    config = load_config(str(path))
    pairs = both_logits(config, large(config, tmp_path), tmp_path, lengths)
    assert_within(LARGE_TOLERANCE, pairs)
    assert 3.5 < pairs[-1][0].std() < 4.5


def large(config: Config, directory: Path) -> str:
    """A checkpoint of random weights under which every part shows in the logits, and these have a deviation near 4."""
    engine = make_engine(config, compiled=False)
    engine.create_variables(training=True)
    enlarge_weights(engine, scale=0.15)  # no more, or attention is all on one position and a window hides nothing
    wte = engine.store.masters["gpt2/wte"]
    wte.assign(wte * (4 / 0.15 / config.model.n_embd**0.5))
    return engine.save(str(directory), 0, {})


def test_a_vocabulary_padded_for_the_mesh_is_cut_by_the_reader(workspace: Workspace, tmp_path: Path) -> None:
    """Ours has more rows in `wte` than the tokenizer has tokens; Hugging Face keeps those of its own `vocab_size`."""
    config = load_config(str(workspace.config("padded", **MODEL, **MIXED, n_vocab=352)))
    pairs = both_logits(config, large(config, tmp_path), tmp_path, (32,), vocab_size=320)
    assert pairs[0][0].shape == (2, 32, 320)
    assert_within(LARGE_TOLERANCE, pairs)


def test_the_window_counts_the_position_itself(workspace: Workspace, tmp_path: Path) -> None:
    """A window one wider agrees where the context is no longer than the narrower one, and only there."""
    config = load_config(str(workspace.config("window", **MODEL, **MIXED)))
    eight, nine = both_logits(config, large(config, tmp_path), tmp_path, (8, 9), window_size=9)
    assert_within(LARGE_TOLERANCE, [eight])
    assert np.abs(nine[0] - nine[1]).max() > 0.1


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_checkpoint_of_the_published_form(workspace: Workspace, tmp_path: Path, dtype: str) -> None:
    """Ours and Hugging Face read the same weights from a file that neither wrote."""
    config = load_config(str(workspace.config("published_form", **MODEL, **MIXED)))
    stored = weights(Path(large(config, tmp_path)))
    path = write_published(tmp_path / "published", stored, step=362000, dtype=dtype)
    assert_within(LARGE_TOLERANCE, both_logits(config, str(path), tmp_path, (32,)))
