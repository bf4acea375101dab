"""Checkpoints of the published form, which this program did not write: they load, and training goes on from them.

The published 1.3B model has bfloat16 weights, the 2.7B model float32; both have `global_step`, and may have Adam's
slots. Hugging Face's reader fails on any other name, and reads both: nothing else is in them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpt_mesh.engine import checkpoints
from tests.support.models import is_weight, make_engine, tiny_config
from tests.support.published import write_published
from tests.support.runs import Trained, logged, losses, printed, rows, weights

BEGIN, END = 80, 120  # of the steps that are taken again
AFTER = {"eval_steps": 0, "predict_steps": 0}


def stored(trained: Trained) -> dict[str, np.ndarray]:
    return weights(trained.directory / f"model.ckpt-{BEGIN}")


def weights_alone(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: array for name, array in arrays.items() if is_weight(name)}


def published(
    trained: Trained, name: str, arrays: Mapping[str, np.ndarray], *, dtype: str = "float32", **keys: Any
) -> Path:
    """The trained run's config, with some keys changed, for a new model_path that has a published checkpoint."""
    values = {**json.loads(trained.config.read_text()), **AFTER, **keys}
    config = trained.workspace.config(name, **{**values, "model_path": str(trained.workspace.root / name)})
    write_published(trained.workspace.root / name, arrays, step=BEGIN, dtype=dtype, shards=2)
    return config


def resume(trained: Trained, config: Path) -> tuple[Path, str]:
    """Train to the end; the run's directory and what it logged."""
    done = trained.workspace.run("--model", config, "--steps_per_checkpoint", END)
    assert done.returncode == 0, done.stderr
    return config.with_suffix(""), done.stderr


def since(directory: Path) -> list[dict[str, Any]]:
    """The logged rows whose steps all came after BEGIN."""
    return [row for row in losses(directory) if row["step"] > BEGIN + 3]


def test_training_goes_on_as_if_it_had_never_changed_hands(trained: Trained) -> None:
    directory, log = resume(trained, published(trained, "taken_over", stored(trained)))
    assert f"training steps {BEGIN} to {END}, from {directory}/model.ckpt-{BEGIN}" in log
    assert "no optimizer state" not in log and "does not use" not in log
    wanted = since(trained.directory)
    assert [row["step"] for row in wanted] == list(range(84, END + 1, 3))
    for name in wanted[0]:
        found = [row[name] for row in since(directory)]
        np.testing.assert_allclose(found, [row[name] for row in wanted], rtol=1e-6, err_msg=name)
    ours, theirs = (weights(d / f"model.ckpt-{END}") for d in (trained.directory, directory))
    assert ours.keys() == theirs.keys()
    for name, array in ours.items():
        np.testing.assert_allclose(theirs[name], array, rtol=1e-6, atol=1e-9, err_msg=name)


@pytest.mark.slow
def test_without_slots_training_differs_and_says_so(trained: Trained) -> None:
    arrays = weights_alone(stored(trained))
    directory, log = resume(trained, published(trained, "without_slots", arrays))
    assert f"model.ckpt-{BEGIN} has no optimizer state for {len(arrays)} weights: it starts at zero" in log
    apart = [abs(a["loss"] - b["loss"]) for a, b in zip(since(directory), since(trained.directory), strict=True)]
    assert max(apart) > 1e-3
    assert checkpoints.steps(str(directory)) == [BEGIN, END]


def test_bfloat16_weights_evaluate_and_score(trained: Trained, tmp_path: Path) -> None:
    arrays = weights_alone(stored(trained))
    config = published(trained, "rounded", arrays, dtype="bfloat16", precision="bfloat16", eval_steps=2)
    done = trained.workspace.run("--model", config, "--eval")
    assert done.returncode == 0, done.stderr
    table = printed(done.stdout)
    (evaluation,) = [row for row in rows(trained.directory / "eval.jsonl") if row["step"] == BEGIN]
    assert table["step"] == BEGIN and table["nll"] == pytest.approx(evaluation["nll"], rel=0.01)
    assert table["nll"] != pytest.approx(evaluation["nll"], rel=1e-6)

    (tmp_path / "text.txt").write_text("import email\n")
    done = trained.workspace.run("--model", config, "--score", tmp_path / "text.txt")
    assert done.returncode == 0, done.stderr
    score = json.loads(done.stdout)
    assert len(score["logprobs"]) == len(score["tokens"]) > 3 and score["sum"] < 0


def test_bfloat16_weights_become_float32_without_a_change(tmp_path: Path) -> None:
    engine = make_engine(tiny_config(), compiled=False)
    engine.create_variables(training=True)
    arrays = {name: v.numpy() for name, v in engine.store.masters.items()}
    slots = {name: np.full_like(array, 1 / 3) for name, array in arrays.items() if "/adam_" in name}
    path = write_published(tmp_path, arrays | slots, step=9, dtype="bfloat16")
    assert engine.restore(str(path)) == []
    rounded = weights(path)
    assert rounded.keys() == arrays.keys() and int(engine.global_step) == 9
    for name, variable in engine.store.masters.items():
        kinds = ("bfloat16", "float32") if is_weight(name) else (variable.dtype.name,) * 2
        assert (rounded[name].dtype.name, variable.dtype.name) == kinds
        np.testing.assert_array_equal(variable.numpy(), rounded[name].astype(variable.dtype.as_numpy_dtype))


@pytest.mark.parametrize("where", ["", "/gone/", "gs://models/GPT3_XL/"])
def test_the_newest_is_found_where_the_files_are_now(tmp_path: Path, where: str) -> None:
    """A `checkpoint` file may still name the place that it was downloaded from."""
    path = write_published(tmp_path, {"gpt2/wte": np.ones((4, 3), np.float32)}, step=7, dtype="float32", shards=2)
    (tmp_path / "checkpoint").write_text(f'model_checkpoint_path: "{where}model.ckpt-7"\n')
    assert checkpoints.latest(str(tmp_path)) == str(path)
    assert checkpoints.restore_state(str(path)) == {}


def test_weights_that_the_model_does_not_use_are_named(tmp_path: Path) -> None:
    """Such as those of a variant that the config does not ask for."""
    engine = make_engine(tiny_config(), compiled=False)
    engine.create_variables(training=False)
    arrays = {name: v.numpy() for name, v in engine.store.masters.items()}
    more = {f"gpt2/h0/attn/mem_{x}": np.ones((2, 16), np.float32) for x in "kv"}
    slots = {f"{name}/adam_m": array for name, array in more.items()}
    path = write_published(tmp_path, arrays | more | slots, step=9, dtype="float32")
    with logged() as messages:
        engine.restore(str(path))
    assert messages == [f"{path}: tiny.json does not use gpt2/h0/attn/mem_k, gpt2/h0/attn/mem_v"]
