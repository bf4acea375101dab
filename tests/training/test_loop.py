"""Runs: the files they leave, and that ending them at any moment and starting again changes nothing."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import random
import shutil
import signal
import struct
import subprocess
import termios
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf

from gpt_mesh import api
from gpt_mesh.config import load_config, replace
from gpt_mesh.engine.engine import DeviceEngine
from gpt_mesh.errors import InputError
from gpt_mesh.storage import progress
from gpt_mesh.storage.progress import Progress, alive
from gpt_mesh.training import loop, report
from gpt_mesh.training.interrupts import Interrupts, watch
from gpt_mesh.training.interval import Interval
from gpt_mesh.training.loop import finished
from tests.support.runs import (
    ONE_LAYER,
    STEPS,
    STEPS_PER_CHECKPOINT,
    Trained,
    Workspace,
    different,
    logged,
    losses,
    rows,
)


def test_a_full_disk_is_one_line_and_want_of_memory_is_not() -> None:
    config = load_config("demo")
    for error in (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), exhausted("a.ckpt; No space left on device")):
        refused = pytest.raises(InputError, match=r"model_path = .*: cannot be written to \(No space left on device\)")
        with refused, report.file_errors_explained(config):
            raise error
    with pytest.raises(tf.errors.ResourceExhaustedError), report.file_errors_explained(config):
        raise exhausted("OOM when allocating tensor")


def exhausted(message: str) -> tf.errors.ResourceExhaustedError:
    return tf.errors.ResourceExhaustedError(None, None, message)


# What a run leaves


def test_metrics_have_these_keys_and_no_others(trained: Trained) -> None:
    written = rows(trained.directory / "metrics.jsonl")
    keys = ["step", "loss", "nll", "lr", "grad_norm", "tokens_per_second", "mfu"]
    assert [list(row) for row in written] == [keys] * (STEPS // 3)
    assert [row["step"] for row in written] == list(range(3, STEPS + 1, 3))
    assert written[-1]["nll"] < written[0]["nll"] - 0.5
    assert all(row["mfu"] is None for row in written)  # a CPU's peak is not known
    assert all(row["tokens_per_second"] > 0 for row in written)


def test_evaluations_have_step_task_and_metrics(trained: Trained) -> None:
    written = rows(trained.directory / "eval.jsonl")
    assert [row["step"] for row in written] == [40, 80, 120]
    assert {row["task"] for row in written} == {"validation"}
    measured = {"nll", "perplexity", "bits_per_byte", "accuracy"}
    keys = {"step", "task", *measured, *(f"{name}_stderr" for name in measured), "tokens", "bytes"}
    assert all(set(row) == keys | {"config_sha256", "tokenizer_sha256"} for row in written)
    assert all(0 < row["nll_stderr"] < row["nll"] / 10 for row in written)
    assert written[-1]["nll"] < written[0]["nll"]
    assert {row["tokens"] for row in written} == {2 * 4 * 32}


def test_tensorboard_reads_scalars_and_text(trained: Trained) -> None:
    found: dict[str, dict[int, Any]] = {}
    for path in trained.directory.glob("events.out.tfevents.*"):
        for event in tf.compat.v1.train.summary_iterator(str(path)):
            for value in event.summary.value:
                found.setdefault(value.tag, {})[event.step] = tf.make_ndarray(value.tensor)
    written = rows(trained.directory / "metrics.jsonl")
    for name in ("loss", "nll", "lr", "grad_norm", "tokens_per_second"):
        assert found[f"training/{name}"] == {row["step"]: pytest.approx(row[name]) for row in written}
    evaluations = rows(trained.directory / "eval.jsonl")
    assert found["validation/nll"] == {row["step"]: pytest.approx(row["nll"]) for row in evaluations}
    assert sorted(found["samples"]) == [40, 80, 120]
    text = (trained.directory / "predictions" / "samples_step_120.txt").read_text(encoding="utf-8")
    assert found["samples"][120].item().decode() == text


def test_everything_is_written_under_the_model_path(trained: Trained) -> None:
    assert list(trained.cwd.iterdir()) == []
    names = {path.name for path in trained.directory.iterdir() if not path.name.startswith("events.out")}
    suffixes = (".index", ".data-00000-of-00001", ".json")
    checkpoints = {f"model.ckpt-{n}{suffix}" for n in (40, 80, 120) for suffix in suffixes}
    folders = {"predictions", "dataset_configs"}
    assert names == checkpoints | folders | {"checkpoint", "config.json", "metrics.jsonl", "eval.jsonl"}


def test_the_log_is_of_plain_lines_and_says_what_runs(trained: Trained) -> None:
    assert trained.process.stdout == ""
    log = trained.process.stderr
    assert "\r" not in log and "\x1b" not in log
    assert max(map(len, log.replace(str(trained.workspace.root), "").splitlines())) < 160
    for part in (
        "36,544 parameters",
        "memory of each device, about",
        "devices device:CPU:0",
        "n_layer 2",
        "warmup_steps 4",
        "compiling the training step",
        "step 3/120: loss",
        "step 120/120: loss",
        "validation nll",
    ):
        assert part in log, part
    assert "beta1" not in log  # at its default


def test_the_config_as_run_has_every_key(trained: Trained) -> None:
    values = json.loads((trained.directory / "config.json").read_text())
    assert values["beta1"] == 0.9 and values["train_steps"] == STEPS
    assert load_config(str(trained.directory / "config.json")).model == load_config(str(trained.config)).model


# Ended and started again


def wait_for_line(process: subprocess.Popen[str], wanted: Callable[[str], bool]) -> None:
    """Read standard error until a line is wanted; the rest is read in the background, so that the pipe never fills."""
    assert process.stderr is not None
    for line in process.stderr:
        if wanted(line):
            break
    else:
        raise AssertionError("the run ended before the line came")


def saved_step_at_least(step: int) -> Callable[[str], bool]:
    return lambda line: line.startswith("saved ") and int(line.rsplit("-", 1)[1]) >= step


def while_a_checkpoint_is_written(process: subprocess.Popen[str], directory: Path, after: int) -> None:
    """Wait until a checkpoint has a temporary name. Standard error is drained meanwhile."""
    wait_for_line(process, saved_step_at_least(after))
    threading.Thread(target=process.stderr.read, daemon=True).start()  # type: ignore[union-attr]
    while process.poll() is None:
        if any(".writing" in name and name.startswith("model.ckpt") for name in os.listdir(directory)):
            return
    raise AssertionError("the run ended before it wrote another checkpoint")


def test_a_run_killed_and_restarted_ends_as_one_that_was_not(trained: Trained) -> None:
    # Without evaluation and sampling, which the other run has: they change nothing either.
    workspace, chance = trained.workspace, random.SystemRandom()
    config = workspace.config("killed", train_steps=STEPS)
    directory = workspace.root / "killed"
    flags = ("--model", config, "--steps_per_checkpoint", 3)

    after = chance.randrange(3, 20)
    with workspace.start(*flags) as process:
        while_a_checkpoint_is_written(process, directory, after)
        process.kill()
    assert process.returncode == -signal.SIGKILL

    after, delay = chance.randrange(24, 36), chance.uniform(0, 0.03)
    with workspace.start(*flags) as process:
        wait_for_line(process, saved_step_at_least(after))
        time.sleep(delay)
        process.kill()
    assert process.returncode == -signal.SIGKILL

    after = chance.randrange(40, 56)
    with workspace.start(*flags) as process:
        wait_for_line(process, saved_step_at_least(after))
        process.terminate()
        _, log = process.communicate(timeout=60)
    assert process.returncode == 0, log
    assert "interrupted at step" in log and "the same command continues from there" in log

    done = workspace.run(*flags)
    assert done.returncode == 0, done.stderr
    assert losses(directory) == losses(trained.directory)
    assert different(directory / f"model.ckpt-{STEPS}", trained.directory / f"model.ckpt-{STEPS}") == []
    assert not list(directory.glob("*.writing*"))
    assert len(list(directory.glob("model.ckpt-*.index"))) == 5


def test_a_signal_within_a_logging_interval_loses_nothing(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config(str(trained.workspace.config("interrupted", train_steps=STEPS)))
    directory = Path(config.training.model_path)
    step, steps_done = DeviceEngine.train_step, []

    def interrupted_in_step_8(self: DeviceEngine, tokens: Any) -> Any:
        steps_done.append(1)
        if len(steps_done) == 8:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, tokens)

    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with monkeypatch.context() as patch:
        patch.setattr(DeviceEngine, "train_step", interrupted_in_step_8)
        result = api.train(config, steps_per_checkpoint=STEPS_PER_CHECKPOINT)
    assert (result.step, result.interrupted) == (8, True)
    assert result.checkpoint == str(directory / "model.ckpt-8")
    assert [row["step"] for row in losses(directory)] == [3, 6]
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers

    result = api.train(config, steps_per_checkpoint=STEPS_PER_CHECKPOINT)
    assert (result.step, result.interrupted) == (STEPS, False)
    assert losses(directory) == losses(trained.directory)
    assert different(directory / f"model.ckpt-{STEPS}", trained.directory / f"model.ckpt-{STEPS}") == []


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_200_steps_with_three_kills_end_as_200_without(workspace: Workspace) -> None:
    chance = random.SystemRandom()
    results = []
    for name, kills in (("whole", 0), ("broken", 3)):
        config = workspace.config(name, train_steps=200, attn_dropout=0.1)
        flags = ("--model", config, "--steps_per_checkpoint", 10)
        for number in range(kills):
            with workspace.start(*flags, cached=False) as process:
                wait_for_line(process, saved_step_at_least(50 * number + chance.randrange(10, 50)))
                time.sleep(chance.uniform(0, 0.1))
                process.kill()
        done = workspace.run(*flags, cached=False)
        assert done.returncode == 0, done.stderr
        results.append(workspace.root / name)
    assert losses(results[0]) == losses(results[1])
    assert different(results[0] / "model.ckpt-200", results[1] / "model.ckpt-200") == []


def test_a_finished_run_goes_on_when_train_steps_is_raised(trained: Trained, tmp_path: Path) -> None:
    shutil.copytree(trained.directory, tmp_path / "run")
    config = load_config(str(trained.config))
    longer = replace(config, model_path=str(tmp_path / "run"), train_steps=122, eval_steps=0, predict_steps=0)
    assert finished(longer, STEPS_PER_CHECKPOINT, None) is None
    result = api.train(longer, steps_per_checkpoint=STEPS_PER_CHECKPOINT)
    assert (result.step, result.interrupted, result.evaluation) == (122, False, None)
    assert [row["step"] for row in losses(tmp_path / "run")][-2:] == [120, 122]  # the last step is always logged


def test_a_finished_run_is_only_finished_with_its_evaluation_and_samples(trained: Trained, tmp_path: Path) -> None:
    shutil.copytree(trained.directory, tmp_path / "run")
    config = replace(load_config(str(trained.config)), model_path=str(tmp_path / "run"))
    result = finished(config, STEPS_PER_CHECKPOINT, None)
    assert result is not None and (result.step, result.interrupted) == (STEPS, False)
    assert finished(config, STEPS_PER_CHECKPOINT, "named") is None  # the samples have another name
    lines = (tmp_path / "run" / "eval.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "run" / "eval.jsonl").write_text("".join(lines[:-1]) + lines[-1][:20])  # killed while it wrote
    assert finished(config, STEPS_PER_CHECKPOINT, None) is None
    assert loop.due_outputs(config, STEPS, STEPS_PER_CHECKPOINT, None) == loop.Due(("validation",), samples=False)
    assert loop.due_outputs(config, 37, STEPS_PER_CHECKPOINT, None) == loop.Due((), samples=False)


# Signals and signs of life


def test_deferred_signals_only_ask_once() -> None:
    interrupts = Interrupts()
    with interrupts.deferred():
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)
        assert interrupts.requested
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1)


def test_a_thread_leaves_signals_alone() -> None:
    before, seen = signal.getsignal(signal.SIGTERM), []

    def body() -> None:
        with Interrupts().deferred():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert seen == [before]


def test_watch_answers_the_first_signal_and_puts_things_back(capfd: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with watch(), pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1)
    assert signal.getsignal(signal.SIGTERM) is before
    assert signal.set_wakeup_fd(-1) == -1
    assert capfd.readouterr().err.startswith("SIGTERM: ending")


def test_a_second_signal_ends_the_process_at_once(workspace: Workspace) -> None:
    config = workspace.config("twice", train_steps=10**9, iterations=10**9, **ONE_LAYER)
    with workspace.start("--model", config, "--steps_per_checkpoint", 10**9, cached=False) as process:
        wait_for_line(process, lambda line: line.startswith("compiling"))
        process.send_signal(signal.SIGINT)
        wait_for_line(process, lambda line: line.startswith("SIGINT: ending"))
        process.send_signal(signal.SIGINT)
        start = time.monotonic()
        process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGINT
    assert time.monotonic() - start < 5
    assert not list((workspace.root / "twice").glob("model.ckpt-*"))


def test_a_log_shows_signs_of_life(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.5)
    with logged() as messages:
        shown = Progress(100, "training", "steps", done=10)
        shown.update()
        assert not messages  # too early
        time.sleep(0.6)
        shown.update()
        (line,) = messages
        assert line.startswith("training: 12 of 100 steps, ") and line.endswith(" left")
        shown.update()
        assert len(messages) == 1
        with alive("compiling"):
            time.sleep(0.8)
    assert messages[1:] == ["compiling: 00:00 so far"]


def test_a_terminal_shows_a_bar(workspace: Workspace) -> None:
    config = workspace.config("bar", train_steps=30, **ONE_LAYER)
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 160, 0, 0))  # rows, columns
    with workspace.start("--model", config, "--new", stderr=theirs) as process:
        os.close(theirs)
        shown = b""
        try:
            while part := os.read(ours, 65536):
                shown += part
        except OSError:  # Linux's way to say that the other end was closed
            pass
        process.wait(timeout=60)
    os.close(ours)
    assert process.returncode == 0, shown
    text = shown.decode()
    assert "training: 100%" in text and "30/30 [" in text and "steps/s" in text
    assert "loss=" in text and "tokens_per_second=" in text
    assert "step 30/30: loss" in text  # and still a line for every logged step


def test_losses_and_loads_are_means_since_the_last_line() -> None:
    interval = Interval()
    for value in (1.0, 3.0):
        step = {"loss": value, "nll": value / 2, "load/h0/1": value / 4, "lr": value, "grad_norm/wte": value}
        interval.pending.append({name: tf.constant(x) for name, x in step.items()})
    interval.fetch()
    assert interval.values() == {"loss": 2.0, "nll": 1.0, "load/h0/1": 0.5, "lr": 3.0, "grad_norm/wte": 3.0}
    resumed = Interval.of(json.loads(json.dumps(interval.state())))
    assert (resumed.steps, resumed.sums) == (interval.steps, interval.sums)
    assert Interval.of({"steps": 2, "loss": 4.0, "nll": 2.0}).sums == {"loss": 4.0, "nll": 2.0}
