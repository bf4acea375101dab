"""Checkpoints are written while training goes on, from the values and the state of their step."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from gpt_mesh import api
from gpt_mesh.config import Config, load_config, replace
from gpt_mesh.engine import checkpoints
from gpt_mesh.engine.engine import DeviceEngine
from gpt_mesh.errors import InputError
from gpt_mesh.meshes.devices import MeshPlan
from gpt_mesh.training.saving import CheckpointWriter
from tests.support.models import ONE_LAYER, make_engine, tiny_config, train
from tests.support.runs import REPOSITORY, Workspace, different, losses, rows

VALUES = {"gpt2/wte": tf.reshape(tf.range(12.0), [4, 3]), "global_step": tf.constant(3, tf.int64)}


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Until it is set, writers stop before they write."""
    save, opened = checkpoints.save, threading.Event()

    def held(*arguments: Any) -> str:
        assert opened.wait(60)
        return save(*arguments)

    monkeypatch.setattr(checkpoints, "save", held)
    yield opened
    opened.set()


def writer_in(directory: Path) -> CheckpointWriter:
    return CheckpointWriter(tiny_config(model_path=str(directory)))


@pytest.mark.parametrize(
    "keys",
    [{}, {"mesh_shape": "a:2", "layout": "vocab:a"}, pytest.param({"compiled": True}, marks=pytest.mark.slow)],
    ids=["one device", "two devices", "compiled"],
)
def test_a_snapshot_stays_as_it_is(keys: dict[str, Any]) -> None:
    compiled = keys.pop("compiled", False)
    engine = make_engine(tiny_config(**ONE_LAYER, **keys), compiled=compiled)
    train(engine, 1)
    snapshot = engine.snapshot()
    values = {name: value.numpy().copy() for name, value in snapshot.items()}
    train(engine, 3, seed=7)
    assert all(np.array_equal(values[name], snapshot[name].numpy()) for name in values)
    now = engine.snapshot()
    assert int(now["global_step"]) == 4 and not np.array_equal(now["gpt2/wte"], values["gpt2/wte"])


def test_the_files_are_those_of_a_checkpoint_written_at_once(tmp_path: Path) -> None:
    state = {"samples": 12, "interval": {"steps": 1, "sums": {"loss": 0.5}}}
    for name in ("behind", "at_once"):
        (tmp_path / name).mkdir()
    writer = writer_in(tmp_path / "behind")
    assert writer.written(wait=True) is None
    writer.start(3, VALUES, state)
    assert writer.written(wait=True) == str(tmp_path / "behind" / "model.ckpt-3")
    assert writer.written(wait=True) is None  # told once
    writer.close()
    checkpoints.save(str(tmp_path / "at_once"), 3, VALUES, state)
    contents = [
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("behind", "at_once")
    ]
    assert contents[0] == contents[1] and len(contents[0]) == 4


def test_the_state_is_that_of_the_step(tmp_path: Path, gate: threading.Event) -> None:
    sums = {"loss": 1.0}
    writer = writer_in(tmp_path)
    writer.start(3, VALUES, {"interval": {"steps": 1, "sums": sums}})
    assert writer.written(wait=False) is None
    sums["loss"] += 2.0
    gate.set()
    writer.close()
    written = checkpoints.restore_state(str(tmp_path / "model.ckpt-3"))
    assert written == {"interval": {"steps": 1, "sums": {"loss": 1.0}}}


def test_a_signal_ends_the_wait_and_not_the_writing(tmp_path: Path, gate: threading.Event) -> None:
    writer = writer_in(tmp_path)
    writer.start(3, VALUES, {})
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        writer.written(wait=True)
    gate.set()
    assert writer.written(wait=True) == str(tmp_path / "model.ckpt-3")
    writer.close()


def test_what_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    writer = writer_in(tmp_path / "file")
    writer.start(3, VALUES, {})
    refused = r"^tiny\.json: model_path = .*file: cannot be written to \(/\S+; Not a directory\); fix that"
    with pytest.raises(InputError, match=refused) as caught:
        writer.close()
    assert "\n" not in str(caught.value)


def uncompiled(workspace: Workspace, monkeypatch: pytest.MonkeyPatch, name: str, **keys: Any) -> Config:
    monkeypatch.setattr(MeshPlan, "compiled", False)
    return load_config(str(workspace.config(name, train_steps=8, **ONE_LAYER, **keys)))


def test_training_goes_on_while_one_checkpoint_is_written(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, gate: threading.Event
) -> None:
    config = uncompiled(workspace, monkeypatch, "behind")
    step, save, events = DeviceEngine.train_step, checkpoints.save, list[str]()

    def train_step(self: DeviceEngine, tokens: Any) -> Any:
        events.append("step")
        if events.count("step") == 8:  # the first checkpoint, of step 4, is not whole before
            gate.set()
        return step(self, tokens)

    def noted_save(directory: str, number: int, *arguments: Any) -> str:
        events.append(f"begin {number}")
        path = save(directory, number, *arguments)
        events.append(f"end {number}")
        return path

    with monkeypatch.context() as patch:
        patch.setattr(DeviceEngine, "train_step", train_step)
        patch.setattr(checkpoints, "save", noted_save)
        result = api.train(config, steps_per_checkpoint=4)
    behind, at_once = Path(config.training.model_path), workspace.root / "at_once"
    assert (result.step, result.checkpoint) == (8, str(behind / "model.ckpt-8"))
    assert [event for event in events if event != "step"] == ["begin 4", "end 4", "begin 8", "end 8"]
    between = events[events.index("begin 4") : events.index("end 4")]
    assert between.count("step") == 4

    api.train(replace(config, model_path=str(at_once), background_checkpoints=False), steps_per_checkpoint=4)
    assert losses(behind) == losses(at_once)
    for name in ("model.ckpt-4", "model.ckpt-8"):
        assert different(behind / name, at_once / name) == []
        assert checkpoints.restore_state(str(behind / name)) == checkpoints.restore_state(str(at_once / name))


# In processes of their own

HOLD = """
import os, pathlib, sys, time
from gpt_mesh import main
from gpt_mesh.meshes import devices
import tensorflow as tf
devices.MeshPlan.compiled = False
write, opened = tf.raw_ops.SaveV2, pathlib.Path(sys.argv[1])
def held(*, prefix, **rest):
    write(prefix=prefix, **rest)
    if not prefix.endswith("model.ckpt-3.writing"):
        os.write(2, b"\\nin the middle of it\\n")  # in one piece, whatever else is being printed
        while not opened.exists():
            time.sleep(0.01)
tf.raw_ops.SaveV2 = held
sys.exit(main.main(sys.argv[2:]))
"""


def held_run(workspace: Workspace, config: Path, opened: Path) -> subprocess.Popen[str]:
    """A run, when it is in the middle of writing its second checkpoint, or any later one, and `opened` is not there."""
    command = [sys.executable, "-c", HOLD, str(opened), "--model", str(config)]
    process = subprocess.Popen([*command, "--steps_per_checkpoint", "3"], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if "in the middle of it" in line:
            return process
    raise AssertionError("the run ended before it wrote a second checkpoint")


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.slow
def test_ended_within_a_write_by_a_kill_and_by_a_signal(workspace: Workspace, tmp_path: Path) -> None:
    config = workspace.config("held", train_steps=10**6, **ONE_LAYER)
    directory, opened = workspace.root / "held", tmp_path / "opened"
    with held_run(workspace, config, opened) as process:
        wait_for(lambda: rows(directory / "metrics.jsonl")[-1]["step"] == 9)  # and no further: one write at a time
        time.sleep(0.1)
        assert rows(directory / "metrics.jsonl")[-1]["step"] == 9
        process.kill()
    assert checkpoints.latest(str(directory)) == str(directory / "model.ckpt-3")
    assert list(directory.glob("model.ckpt-6.writing*"))

    with held_run(workspace, config, opened) as process:  # on from step 3
        process.terminate()
        assert process.stderr is not None
        assert any("SIGTERM: ending" in line for line in process.stderr)
        time.sleep(0.3)
        assert process.poll() is None  # waits for the checkpoints of step 6 and of the step that it ends at
        opened.touch()
        _, log = process.communicate(timeout=60)
    newest = checkpoints.latest(str(directory))
    assert process.returncode == 0 and newest is not None
    step = checkpoints.step_of(newest)
    assert f"interrupted at step {step} of" in log and step >= 6
    assert int(tf.train.load_variable(newest, "global_step")) == step
    assert not list(directory.glob("*.writing*"))


CALL = """
import json, os, pathlib, signal, sys, threading
from gpt_mesh import api
from gpt_mesh.meshes import devices
from gpt_mesh.engine import checkpoints
devices.MeshPlan.compiled = False
save = checkpoints.save
def signalled(*arguments):
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM)).start()
    threading.Event().wait(1.5)
    return save(*arguments)
checkpoints.save = signalled
result = api.train(sys.argv[1], steps_per_checkpoint=4)
print(json.dumps([result.step, result.interrupted, signal.getsignal(signal.SIGTERM) == signal.SIG_DFL]))
"""


@pytest.mark.slow
def test_a_signal_while_a_caller_of_the_library_waits_for_the_last_checkpoint(workspace: Workspace) -> None:
    config = workspace.config("called", train_steps=4, **ONE_LAYER)
    command = [sys.executable, "-c", CALL, str(config)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [4, False, True]
    assert checkpoints.latest(str(workspace.root / "called")) == str(workspace.root / "called" / "model.ckpt-4")


@pytest.mark.slow
def test_a_file_that_cannot_grow_ends_the_run_with_one_line(workspace: Workspace) -> None:
    """As on a full disk: the system refuses to write more than a part of the checkpoint."""
    config = workspace.config("refused", train_steps=40, **ONE_LAYER)

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))

    environment = {name: value for name, value in os.environ.items() if name != "TF_XLA_FLAGS"}
    environment["GPT_MESH_CACHE"] = "off"
    command = [sys.executable, str(REPOSITORY / "main.py"), "--model", str(config), "--steps_per_checkpoint", "4"]
    done = subprocess.run(command, env=environment, preexec_fn=limit, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    *_, last = done.stderr.splitlines()
    assert last.startswith(f"error: {config}: model_path = ") and "cannot be written to (" in last
    assert "Traceback" not in done.stderr
    assert checkpoints.latest(str(workspace.root / "refused")) is None
