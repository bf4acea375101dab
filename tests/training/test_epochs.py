"""The length of a run in passes over its data."""

from __future__ import annotations

import math

import pytest

import gpt_mesh
from gpt_mesh.config import load_config
from gpt_mesh.errors import InputError
from gpt_mesh.inputs import TrainingData
from gpt_mesh.training.epochs import steps_of, with_epochs
from gpt_mesh.training.ramp import samples_before
from tests.support.models import tiny_config
from tests.support.runs import ONE_LAYER, Workspace


def test_steps_of_samples_follow_a_ramp() -> None:
    config = tiny_config(batch_ramp=[[1, 2], [2, 3]])
    for samples in range(1, 30):
        steps = steps_of(config, samples)
        assert samples_before(config, steps) >= samples > samples_before(config, steps - 1)
    assert steps_of(tiny_config(), 0) == 1


def test_an_epoch_reads_as_many_tokens_as_there_are(workspace: Workspace) -> None:
    config = load_config(str(workspace.config("epochs", **ONE_LAYER)))
    tokens = TrainingData(config).n_tokens
    training = with_epochs(config, 0.5).training
    assert training.train_steps == math.ceil(0.5 * tokens / 32 / 4)
    for wrong in (0, -1, math.nan, math.inf):
        with pytest.raises(InputError, match=r"--epochs = .*: must be a number above 0"):
            with_epochs(config, wrong)


def test_epochs_of_the_library_and_the_command_line(workspace: Workspace) -> None:
    rows = [[number % 7] * 17 for number in range(10)]  # each a sample of 17 tokens
    small = {"n_layer": 1, "n_head": 2, "n_embd": 16, "n_ctx": 17 - 1, "train_batch_size": 4}
    result = gpt_mesh.train(small, data=rows, epochs=2)
    assert result.step == math.ceil(2 * 170 / 16 / 4)
    config = workspace.config("epochs_flag", **ONE_LAYER)
    done = workspace.run("--model", config, "--dry_run", "--epochs", "0.01")
    expected = math.ceil(0.01 * TrainingData(load_config(str(config))).n_tokens / 32 / 4)
    assert f"training {expected} steps: " in done.stdout, done.stderr
    wrong = workspace.run("--model", config, "--epochs", "x")
    assert wrong.returncode == 2 and "--epochs: invalid float value: 'x'" in wrong.stderr
