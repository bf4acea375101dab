"""When a run evaluates, what it keeps, and batches that grow."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gpt_mesh
from gpt_mesh.config import Config, load_config
from gpt_mesh.engine.checkpoints import Retention, steps
from gpt_mesh.errors import InputError
from gpt_mesh.inputs import TrainingData
from gpt_mesh.training.ramp import ramped_batches, samples_before, stages
from tests.support.models import tiny_config
from tests.support.runs import ONE_LAYER, Workspace, different, losses, rows


def stopping(stop: int, last: int) -> Callable[[gpt_mesh.Event], bool]:
    """Ends a run at a step, unless that is its last."""
    return lambda event: event.kind == "metrics" and event.step == stop < last


@pytest.mark.parametrize(
    ("retention", "kept"),
    [
        (Retention(), [30, 40, 50, 60, 70]),
        (Retention(1), [70]),
        (Retention(2, 30), [30, 60, 70]),
        (Retention(2, 20), [20, 40, 60, 70]),
        (Retention(9, 10), [10, 20, 30, 40, 50, 60, 70]),
    ],
)
def test_retention(retention: Retention, kept: list[int]) -> None:
    assert retention.kept(list(range(10, 80, 10))) == kept


def test_evaluations_and_checkpoints_at_steps_of_their_own(workspace: Workspace) -> None:
    config = workspace.config(
        "apart", train_steps=11, eval_steps=1, eval_interval=3, keep_last_n_checkpoints=1, keep_every_n_steps=4,
        log_interval=2, **ONE_LAYER,
    )  # fmt: skip
    result = gpt_mesh.train(str(config), steps_per_checkpoint=2)
    assert [row["step"] for row in rows(workspace.root / "apart" / "eval.jsonl")] == [3, 6, 9, 11]
    assert [row["step"] for row in rows(workspace.root / "apart" / "metrics.jsonl")] == [2, 4, 6, 8, 10, 11]
    assert steps(str(workspace.root / "apart")) == [4, 8, 11]
    assert result.evaluation is not None


def test_a_run_that_goes_on_evaluates_as_one_that_was_not_stopped(workspace: Workspace) -> None:
    keys: dict[str, Any] = {"eval_steps": 1, "eval_interval": 3, **ONE_LAYER}
    for name, stops in (("stopped", [5, 10]), ("straight", [10])):
        for stop in stops:  # the schedule is that of the whole run
            path = workspace.config(f"go_{name}", train_steps=10, **keys)
            gpt_mesh.train(
                str(path), steps_per_checkpoint=4, log_interval=1,
                watch=stopping(stop, 10),
            )  # fmt: skip
    stopped, straight = (workspace.root / f"go_{name}" for name in ("stopped", "straight"))
    assert losses(stopped) == losses(straight)
    evaluations = [[(row["step"], row["nll"]) for row in rows(run / "eval.jsonl")] for run in (stopped, straight)]
    assert evaluations[0] == evaluations[1]


RAMP = [[1, 2], [2, 3]]


def test_stages_of_a_ramp() -> None:
    config = tiny_config(batch_ramp=RAMP)
    assert stages(config) == [(1, 2), (2, 5), (4, None)]
    assert [samples_before(config, step) for step in range(8)] == [0, 1, 2, 4, 6, 8, 12, 16]
    assert samples_before(tiny_config(), 7) == 28


def test_batches_of_a_ramp_are_the_samples_in_order(workspace: Workspace) -> None:
    config: Config = load_config(str(workspace.config("ramp_data", batch_ramp=RAMP)))
    data = TrainingData(config)
    expected = data.batch(0, 16)
    for begin in (0, 1, 4, 5):
        position = samples_before(config, begin)
        found = list(itertools.islice(ramped_batches(config, data, begin, position), 7 - begin))
        assert [len(batch) for batch in found] == [1, 1, 2, 2, 2, 4, 4][begin:]
        np.testing.assert_array_equal(np.concatenate(found), expected[position:])


def test_a_ramp_resumes_exactly(workspace: Workspace) -> None:
    for name, stops in (("stopped", [3, 8]), ("straight", [8])):
        for stop in stops:
            path = workspace.config(f"ramp_{name}", train_steps=8, batch_ramp=RAMP, **ONE_LAYER)
            gpt_mesh.train(str(path), log_interval=1, watch=stopping(stop, 8))
    stopped, straight = (workspace.root / f"ramp_{name}" for name in ("stopped", "straight"))
    assert losses(stopped) == losses(straight)
    assert different(stopped / "model.ckpt-8", straight / "model.ckpt-8") == []


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"batch_ramp": [3]}, r"batch_ramp = \[3\]: must be a list of \[batch, steps\] pairs"),
        ({"batch_ramp": [[0, 3]]}, "the batch 0 cannot work: must be >= 1"),
        ({"batch_ramp": [[4, 1.5]]}, "the number of steps 1.5 cannot work: must be an integer"),
        ({"keep_last_n_checkpoints": 0}, "keep_last_n_checkpoints = 0: must be >= 1"),
        ({"eval_interval": 0}, "eval_interval = 0: must be >= 1 or null"),
    ],
)
def test_what_cannot_work(keys: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        tiny_config(**keys)


def test_a_ramp_divides_by_the_mesh(workspace: Workspace, tmp_path: Path) -> None:
    config = workspace.config("ramp_mesh", batch_ramp=[[1, 2]], mesh_shape="x:2", layout="batch:x", **ONE_LAYER)
    with pytest.raises(InputError, match="batch_ramp: a batch of 1 does not divide by 2"):
        gpt_mesh.train(str(config), devices=["device:CPU:0", "device:CPU:1"])
