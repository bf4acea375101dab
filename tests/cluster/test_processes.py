"""Runs over several processes of this machine, one of them killed, stopped or told to end."""

from __future__ import annotations

import functools
import json
import re
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from gpt_mesh import main
from tests.support.clusters import Host, addresses, run_of_two
from tests.support.models import cpu_names
from tests.support.runs import Workspace, different, losses

pytestmark = pytest.mark.slow

KEYS = {"n_head": 4}
BATCH = {"mesh_shape": "x:2", "layout": "batch:x"}
HEADS = {"mesh_shape": "x:2", "layout": "heads:x,vocab:x"}
BOTH = {"mesh_shape": "x:2,y:2", "layout": "batch:x,heads:y,intermediate_expanded:y"}
LONG = {"train_steps": 28, "iterations": 4}
EVERY = ("--steps_per_checkpoint", 4)


@pytest.mark.parametrize(
    ("name", "mesh", "cpus"), [("batch", BATCH, 1), ("heads", HEADS, 1), ("both", BOTH, 2)]
)
def test_losses_are_those_of_one_host(workspace: Workspace, name: str, mesh: dict[str, str], cpus: int) -> None:
    config = workspace.config(f"two_hosts_{name}", iterations=2, **KEYS, **mesh)
    with run_of_two(workspace, config, cpus=cpus) as (chief, worker):
        assert chief.end()[0] == 0, chief.lines
        status, said = worker.end(30)
    assert (status, said.splitlines()[-1]) == (0, "the chief has finished"), said
    alone = workspace.config(f"one_host_{name}", iterations=2, **KEYS, **mesh)
    assert main.main(["--model", str(alone), "--gpu_ids", *cpu_names(2 * cpus)]) == 0
    ours, theirs = (losses(workspace.root / f"{hosts}_{name}") for hosts in ("two_hosts", "one_host"))
    assert [row["step"] for row in ours] == [2, 4, 6, 8, 10, 12]
    for key in ("loss", "nll", "grad_norm"):
        np.testing.assert_allclose([row[key] for row in ours], [row[key] for row in theirs], rtol=1e-5)


@functools.cache
def uninterrupted(workspace: Workspace) -> Path:
    """The directory of a run of two hosts that nothing happened to."""
    config = workspace.config("whole_life", **KEYS, **BATCH, **LONG)
    with run_of_two(workspace, config, *EVERY) as (chief, worker):
        assert chief.end()[0] == 0, chief.lines
        assert worker.end(30)[0] == 0
    return workspace.root / "whole_life"


@pytest.mark.timeout(900)  # five runs
def test_whatever_dies_a_restart_resumes(workspace: Workspace) -> None:
    """A worker that is told to end, one that is killed, a chief that is killed; then the end, with the same bits."""
    config = workspace.config("hard_life", **KEYS, **BATCH, **LONG)
    run = functools.partial(run_of_two, workspace, config, *EVERY)
    with run() as (chief, worker):
        chief.until("saved .*model.ckpt-4$")
        worker.kill(signal.SIGTERM)
        check_saved_and_ended(chief.end(60), worker.end(30))
    with run() as (chief, worker):
        began = check_resumed(chief)
        chief.until(f"saved .*model.ckpt-{began + 4}$")
        worker.kill(signal.SIGKILL)
        begin = time.monotonic()
        check_loss(chief.end(40))
        assert time.monotonic() - begin < 20
    with run() as (chief, worker):
        began = check_resumed(chief)
        chief.until(f"saved .*model.ckpt-{began + 4}$")
        chief.kill(signal.SIGKILL)
        status, said = worker.end(20)
    assert status == 1 and re.search(r"error: the chief, localhost:\d+, is gone \(the connection was closed\)$", said)
    with run() as (chief, worker):
        check_resumed(chief)
        assert chief.end()[0] == 0, chief.lines
        assert worker.end(30)[0] == 0, worker.lines
    whole, hard = uninterrupted(workspace), workspace.root / "hard_life"
    assert losses(hard) == losses(whole)
    assert not different(hard / "model.ckpt-28", whole / "model.ckpt-28")


def check_saved_and_ended(chief: tuple[int, str], worker: tuple[int, str]) -> None:
    """Both ended well, because the worker had been told to end."""
    status, said = chief
    assert status == 0 and re.search(r"interrupted at step \d+ of 28, saved in .*the same command", said), said
    assert re.search(r"worker localhost:\d+ got a signal to end \(SIGTERM\)", said)
    assert worker[0] == 0 and "SIGTERM: asked the chief to save and end" in worker[1], worker


def check_resumed(chief: Host) -> int:
    """The step from which a run goes on, in the same interval of four at the latest."""
    match = re.search(r"training steps (\d+) to 28, from .*model.ckpt-", chief.until("training steps"))
    assert match, chief.lines
    return int(match[1]) // 4 * 4


def check_loss(chief: tuple[int, str]) -> None:
    """The chief said in one line, its last, which worker was lost and where the run can go on."""
    status, said = chief
    assert status == 1 and "Traceback" not in said, said
    match = re.fullmatch(
        r"error: worker localhost:\d+ was lost: the connection was closed; the newest checkpoint is "
        r"(.*/model\.ckpt-\d+): the same commands, on all hosts, continue from there",
        said.splitlines()[-1],
    )
    assert match and Path(match[1] + ".index").exists(), said


def test_a_worker_that_falls_silent(workspace: Workspace) -> None:
    config = workspace.config("silent_worker", **KEYS, **BATCH, **{**LONG, "train_steps": 100_000})
    with run_of_two(workspace, config, "--steps_per_checkpoint", 100) as (chief, worker):
        chief.until("saved .*model.ckpt-100")
        worker.kill(signal.SIGSTOP)
        begin = time.monotonic()
        status, said = chief.end(90)
    assert 25 < time.monotonic() - begin < 60  # 30 s of silence, and 15 s of grace
    assert status == 1 and "Traceback" not in said, said
    assert "was lost: no sign of life for 30 s; the newest checkpoint is " in said.splitlines()[-1]


def test_what_a_trained_model_is_used_for(workspace: Workspace) -> None:
    run = uninterrupted(workspace)
    config = workspace.root / "whole_life.json"
    assert main.main(["--model", str(config), "--gpu_ids", "device:CPU:0", "--eval"]) == 0
    with run_of_two(workspace, config, "--eval") as (chief, worker):
        status, said = chief.end()
        assert status == 0 and "/task:1/device:CPU:0" in said, said
        assert worker.end(30)[0] == 0
    alone, both = (json.loads(line) for line in (run / "eval.jsonl").read_text().splitlines()[-2:])
    assert both["nll"] == pytest.approx(alone["nll"], rel=1e-5) and both["tokens"] == alone["tokens"]


def test_a_worker_that_waits_ends_with_a_signal(workspace: Workspace) -> None:
    waiting = Host(workspace.start("--cluster", ",".join(addresses(2)), "--worker", 1))
    waiting.until("waiting for the chief")
    waiting.kill(signal.SIGTERM)
    status, said = waiting.end(20)
    assert status == 0 and said.splitlines()[-1] == "SIGTERM: ended while waiting for the chief", said
