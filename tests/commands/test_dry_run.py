"""`--dry_run` and `--find_lr`: what they say, and that they write nothing."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest

from gpt_mesh.config import load_config
from gpt_mesh.errors import InputError
from gpt_mesh.library.find_lr import Point, find_lr, suggestion, table
from tests.support.runs import ONE_LAYER, Workspace


def test_a_dry_run_shows_data_time_and_memory_and_writes_nothing(workspace: Workspace) -> None:
    config = workspace.config("rehearsed", eval_steps=2, train_steps=1000, **ONE_LAYER)
    done = workspace.run("--model", config, "--dry_run", "--gpu_ids", "device:CPU:0")
    assert done.returncode == 0, done.stderr
    assert "memory of each device, about " in done.stdout and " tokens per epoch" in done.stdout
    assert "first batch, row 0: '" in done.stdout and "first batch, row 1: " in done.stdout
    assert "with its compilation; loss 5." in done.stdout and " tokens/s" in done.stdout
    assert "an evaluation of the held-out text " in done.stdout
    assert "training 1000 steps: " in done.stdout
    assert not (workspace.root / "rehearsed").exists()


def test_a_dry_run_of_a_run_counts_what_is_left(workspace: Workspace) -> None:
    config = workspace.config("half", train_steps=2, **ONE_LAYER)
    assert workspace.run("--model", config).returncode == 0
    before = sorted(path.name for path in (workspace.root / "half").iterdir())
    done = workspace.run("--model", config, "--dry_run", "--set", "train_steps=9")
    assert "training from step 2 to 9: " in done.stdout, done.stderr
    assert sorted(path.name for path in (workspace.root / "half").iterdir()) == before
    wrong = workspace.run("--model", config, "--dry_run", "--set", "n_embd=16")
    assert wrong.returncode == 1 and "n_embd = 16, but the run in" in wrong.stderr


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"datasets": ["none_such"]}, "no dataset config"),
        ({"eval_steps": 1, "datasets": [["tiny", 1, "chunks", 1.0]]}, "needs n_ctx + 1 = 33 in every record"),
        ({"model_path": "/dev/null/run"}, "model_path = /dev/null/run: cannot be written to"),
        ({"mesh_shape": "x:2", "layout": "batch:x"}, "mesh_shape"),
    ],
)
def test_what_training_would_refuse_a_dry_run_refuses(workspace: Workspace, keys: dict[str, Any], words: str) -> None:
    config = workspace.config("refused", **{**ONE_LAYER, **keys})
    done = workspace.run("--model", config, "--dry_run", "--gpu_ids", "device:CPU:0")
    assert done.returncode == 1 and words in done.stderr and done.stderr.count("\n") == 1, done.stderr


def test_the_search_finds_a_rate_between_too_slow_and_divergence(workspace: Workspace) -> None:
    config = load_config(str(workspace.config("searched", embed_dropout=0.0, **ONE_LAYER)))
    points = find_lr(config, 40, ["device:CPU:0"])
    assert points[0].lr == pytest.approx(1e-6, rel=0.01)
    assert all(later.lr > earlier.lr for earlier, later in itertools.pairwise(points))
    assert points[0].loss == pytest.approx(math.log(config.model.n_vocab), abs=0.2)
    found = suggestion(points)
    assert found is not None and 1e-4 < found < 0.1
    assert len(table(points)) <= 26
    assert not (workspace.root / "searched").exists()


def test_a_loss_that_does_not_fall_gives_no_suggestion() -> None:
    assert suggestion([]) is None
    assert suggestion([Point(1e-6, 3.0, 3.0), Point(1e-5, 3.1, 3.1)]) is None


def test_optimizers_that_depend_on_the_step_are_refused(workspace: Workspace) -> None:
    config = load_config(str(workspace.config("ada", opt_name="adafactor", **ONE_LAYER)))
    with pytest.raises(InputError, match="opt_name = adafactor: the search is for adam alone"):
        find_lr(config)
