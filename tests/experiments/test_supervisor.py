"""A run is followed, restarted and ended as it should be, whatever becomes of its process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from gpt_mesh.experiments import process, supervisor
from gpt_mesh.experiments.signals import Signals
from gpt_mesh.experiments.stream import RowStream, newest_checkpoint
from gpt_mesh.experiments.supervisor import Ending, Plan, Supervisor
from gpt_mesh.storage import heartbeat
from tests.support.stand_in import append, rewind

STEPS = 20


class Heard:
    """What a listener was told."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.files: list[str] = []
        self.reasons: list[str] = []

    def row(self, row: dict[str, Any]) -> None:
        self.rows.append(row)

    def file(self, path: str) -> None:
        self.files.append(os.path.basename(path))

    def restarted(self, count: int, reason: str) -> None:
        self.reasons.append(reason)

    def steps(self, task: str | None = None) -> list[int]:
        return [row["step"] for row in self.rows if row.get("task") == task]


Watch = Callable[..., tuple[Ending, Heard]]


@pytest.fixture
def watch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Watch:
    """Watches a run of the stand-in whose starts end like this, with a checkpoint every six steps."""
    monkeypatch.setattr(process, "LAUNCHER", Path(__file__).parents[1] / "support" / "stand_in.py")
    monkeypatch.setenv("STAND_IN", str(tmp_path / "script.json"))
    monkeypatch.setattr(supervisor, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(supervisor, "GRACE_SECONDS", 0.5)

    def watch(*lives: tuple[str, int], flags: tuple[str, ...] = (), **plan: Any) -> tuple[Ending, Heard]:
        folder = tmp_path / "run"
        script = {"model_path": str(folder), "train_steps": STEPS, "every": 6, "lives": lives}
        (tmp_path / "script.json").write_text(json.dumps(script))
        given = {"heartbeat_timeout": 30.0, "max_restarts": 3, **plan}
        heard = Heard()
        given |= {name: f"--{name}" in flags for name in ("new", "yes")}
        run = Plan(["--model", "model.json", *flags], str(folder), STEPS, **given)
        with Signals() as signals:
            return Supervisor(run, heard, signals).run(), heard

    return watch


@pytest.fixture
def clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that runs fast from when the stand-in stands still until it is restarted: limits of minutes pass at once
    there, and a slow machine does not pass them elsewhere.
    """
    real, told, ahead, restarts = time.monotonic, Heard.restarted, [0.0], []

    def restarted(self: Heard, count: int, reason: str) -> None:
        restarts.append(count)
        told(self, count, reason)

    def now() -> float:
        if len(list(tmp_path.glob("hung-*"))) > len(restarts):
            ahead[0] += 100
        return real() + ahead[0]

    monkeypatch.setattr(Heard, "restarted", restarted)
    monkeypatch.setattr(time, "monotonic", now)


@contextmanager
def meanwhile(path: Path, part: str, *numbers: int) -> Iterator[None]:
    """Sends these signals to this process once the file has that in it."""

    def send() -> None:
        for _ in range(6000):
            if path.exists() and part in path.read_text():
                break
            time.sleep(0.01)
        for number in numbers:
            os.kill(os.getpid(), number)
            time.sleep(0.05)  # or two of one kind are one

    thread = threading.Thread(target=send, daemon=True)
    thread.start()
    yield
    thread.join(60)


def lives(folder: Path) -> list[list[str]]:
    """The flags of each start."""
    return [json.loads(line)["flags"] for line in (folder / "run" / "lives.jsonl").read_text().splitlines()]


def test_a_run_that_ends_well(watch: Watch) -> None:
    ending, heard = watch(("end", 0))
    assert ending == Ending("completed", 0)
    assert heard.steps() == list(range(1, STEPS + 1))
    assert heard.steps("validation") == [6, 12, 18]
    assert heard.files == [f"samples_step_{step}.txt" for step in (6, 12, 18)]


@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize(
    ("how", "why"),
    [
        ("kill", "ended by SIGKILL"),
        ("stop", "stalled: no progress for 500 s"),
        ("stuck", "stalled: no progress for 500 s"),
        ("hang", "stalled: no progress for 500 s"),
        ("traceback", "RuntimeError: the device is gone"),
    ],
)
def test_every_row_comes_once_and_in_order_over_restarts(watch: Watch, how: str, why: str) -> None:
    """Ended between two checkpoints, so that the next start takes its rows back and writes them again."""
    ending, heard = watch((how, 9), ("kill", 16), ("end", 0), heartbeat_timeout=500.0)
    assert ending == Ending("completed", 0)
    assert heard.steps() == list(range(1, STEPS + 1))
    assert heard.steps("validation") == [6, 12, 18]
    assert [reason.splitlines()[-1] for reason in heard.reasons] == [why, "ended by SIGKILL"]
    assert [row["tokens_per_second"] for row in heard.rows if row["step"] in (9, 10, 20)] == [1.0, 2.0, 3.0]


def test_how_long_a_start_may_be_silent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the seconds since it last finished a piece of work, and since its last beat, if there was one."""
    now = 10_000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)

    def limit(work: float, beat: float, begun: bool = True, logged: bool = False) -> float | None:
        watch = heartbeat.Watch(str(tmp_path / "none"), beat_at=now - beat, worked_at=now - work, begun=begun)
        return Supervisor._exceeded(supervisor._Start(None, watch, logged=logged), 500.0)  # type: ignore[arg-type]

    assert limit(400, 400, begun=False) is None and limit(600, 600, begun=False) == 500
    assert limit(3000, 5) is None, "compiling, and alive"
    assert limit(3000, 600) == 500, "not even that"
    assert limit(4000, 5) == 3600
    assert limit(600, 5, logged=True) == 500 and limit(450, 5, logged=True) is None


def test_a_crash_while_rows_are_written_again_is_tried_again(watch: Watch, tmp_path: Path) -> None:
    """They were reported before, but the run has come past its beginning."""
    ending, heard = watch(("kill", 11), ("traceback", 10), ("end", 0))
    assert ending.status == "completed" and len(lives(tmp_path)) == 3
    assert heard.steps() == list(range(1, STEPS + 1))


def test_what_a_start_leaves_behind_is_ended(watch: Watch, tmp_path: Path) -> None:
    ending, _ = watch(("leave", 4))
    assert ending.status == "completed"
    left = (tmp_path / "run" / "left").read_text()
    for _ in range(500):
        state = subprocess.run(["ps", "-o", "stat=", "-p", left], capture_output=True, text=True).stdout.strip()
        if state[:1] in ("", "Z"):
            return
        time.sleep(0.01)
    pytest.fail(f"{left} is there: {state}")


def test_a_start_that_says_nothing_has_longer(watch: Watch, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(process, "LAUNCHER", tmp_path / "silent.py")
    (tmp_path / "silent.py").write_text("import time\ntime.sleep(60)\n")
    monkeypatch.setattr(supervisor, "START_SECONDS", 0.5)
    begin = time.monotonic()
    ending, _ = watch(("end", 0), heartbeat_timeout=0.01, max_restarts=0)
    assert ending.status == "failed" and time.monotonic() - begin >= 0.5


def test_restarts_are_counted(watch: Watch, tmp_path: Path) -> None:
    ending, heard = watch(("kill", 7), max_restarts=1)
    assert (ending.status, ending.code) == ("failed", 128 + signal.SIGKILL)
    assert "SIGKILL" in ending.reason and "1 restarts" in ending.reason
    assert len(lives(tmp_path)) == 2 and heard.steps() == list(range(1, 8))


def test_a_failure_is_told_with_its_traceback(watch: Watch) -> None:
    ending, _ = watch(("traceback", 3), max_restarts=0)
    assert (ending.status, ending.code) == ("failed", 1)
    assert ending.reason.startswith("Traceback (most recent call last):\n")
    assert "RuntimeError: the device is gone" in ending.reason


def test_what_the_user_got_wrong_is_not_tried_again(watch: Watch, tmp_path: Path) -> None:
    ending, heard = watch(("error", 8))
    assert ending == Ending("failed", 1, "error: model.json: the loss became nan")
    assert len(lives(tmp_path)) == 1 and not heard.reasons


def test_a_crash_before_the_first_row_is_not_tried_again(watch: Watch, tmp_path: Path) -> None:
    ending, heard = watch(("traceback", 7), ("early", 0), ("end", 0))
    assert ending.status == "failed" and "RuntimeError: no device" in ending.reason
    assert len(heard.reasons) == 1 and len(lives(tmp_path)) == 2
    ending, _ = watch(("early", 0), ("early", 0), ("early", 0), ("end", 0), before_restart="true")
    assert ending.status == "completed", "the hook may have mended it"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_is_passed_on(watch: Watch, tmp_path: Path, number: int) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with meanwhile(tmp_path / "run" / "metrics.jsonl", '"step": 8,', number):
        ending, heard = watch(("wait", 8))
    assert ending == Ending("interrupted", 0)
    assert heard.steps() == list(range(1, 9)) and newest_checkpoint(str(tmp_path / "run")) == 8
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_signal_wakes_what_was_stopped(watch: Watch, tmp_path: Path) -> None:
    with meanwhile(tmp_path / "hung-1", "", signal.SIGTERM):
        ending, _ = watch(("stop", 8))
    assert ending == Ending("interrupted", 0) and newest_checkpoint(str(tmp_path / "run")) == 8


def test_a_third_signal_ends_what_is_deaf(watch: Watch, tmp_path: Path) -> None:
    with meanwhile(tmp_path / "hung-1", "", *[signal.SIGTERM] * 3):
        ending, _ = watch(("stuck", 8))
    assert ending == Ending("interrupted", 128 + signal.SIGKILL)


def test_a_signal_during_the_hook_ends_it_and_the_run(watch: Watch, tmp_path: Path) -> None:
    mark = tmp_path / "hooked"
    with meanwhile(mark, "", signal.SIGTERM):
        ending, _ = watch(("kill", 4), before_restart=f"touch {mark}; sleep 60; touch {mark}-again")
    assert ending == Ending("interrupted", 128 + signal.SIGTERM)
    assert len(lives(tmp_path)) == 1 and not (tmp_path / "hooked-again").exists()


def test_a_signal_before_the_start_starts_nothing(watch: Watch, tmp_path: Path) -> None:
    with Signals() as signals:
        os.kill(os.getpid(), signal.SIGINT)
        plan = Plan([], str(tmp_path / "run"), STEPS, heartbeat_timeout=30.0, max_restarts=0)
        assert Supervisor(plan, Heard(), signals).run() == Ending("interrupted", 130)
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert not (tmp_path / "run").exists()


def test_a_run_that_goes_on_tells_only_its_own_rows(watch: Watch) -> None:
    _, first = watch(("kill", 9), max_restarts=0)
    assert first.steps() == list(range(1, 10))
    ending, second = watch(("end", 0))
    assert ending.status == "completed"
    assert second.steps() == list(range(7, STEPS + 1)), "from its checkpoint, as it wrote them"
    assert all(row["tokens_per_second"] == 2.0 for row in second.rows if "task" not in row)


def test_new_holds_until_there_is_a_checkpoint_of_its_own(watch: Watch, tmp_path: Path) -> None:
    watch(("end", 0))
    (tmp_path / "run" / "lives.jsonl").unlink()
    ending, heard = watch(("kill", 3), ("kill", 9), ("end", 0), flags=("--new", "--yes"))
    assert ending.status == "completed" and heard.steps() == list(range(1, STEPS + 1))
    assert ["--new" in flags for flags in lives(tmp_path)] == [True, True, False]


def test_the_hook_comes_before_the_restart(watch: Watch, tmp_path: Path) -> None:
    hook = f"echo again $RESTART >> {tmp_path / 'hook'}"
    watch(("kill", 2), ("kill", 4), ("end", 0), before_restart=hook)
    assert (tmp_path / "hook").read_text() == "again 1\nagain 2\n"
    ending, _ = watch(("kill", 2), flags=("--new",), before_restart="exit 3")
    assert ending.status == "failed" and "--before_restart exit 3: ended with status 3" in ending.reason


def test_a_child_ends_with_its_parent(tmp_path: Path) -> None:
    """The real launcher: asked to end when the process that started it is killed."""
    if not sys.platform.startswith("linux"):
        pytest.skip("needs Linux's PR_SET_PDEATHSIG")
    code = (
        "import os, subprocess, sys, time\n"
        "pid = os.fork()\n"
        "if pid == 0:\n"
        "    from gpt_mesh.experiments.child import end_with\n"
        "    end_with(os.getppid())\n"
        "    print('ready', flush=True)\n"
        "    time.sleep(60)\n"
        "os.waitpid(pid, 0)\n"
    )
    root = str(Path(__file__).resolve().parents[2])
    parent = subprocess.Popen([sys.executable, "-c", code, root], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None and parent.stdout.readline() == "ready\n"
    parent.kill()
    parent.wait()
    assert parent.stdout.read() == "", "the pipe closes when the child is gone"


def test_rows_in_the_writing_and_rewound_rows(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    for step in range(1, 6):
        append(path, step=step, loss=float(step))
    rows = RowStream(str(path), after=3)
    assert rows.new() == [], "4 and 5 will be written again"
    rewind(path, 3)
    assert rows.new() == []
    with path.open("a") as file:
        file.write('{"step": 4, "loss": 40')
        file.flush()
        assert rows.new() == []
        file.write(".0}\n")
    assert rows.new() == [{"step": 4, "loss": 40.0}]
    assert rows.new() == []


def test_an_evaluation_that_is_made_again_is_new(tmp_path: Path) -> None:
    path = tmp_path / "eval.jsonl"
    append(path, step=5, task="validation", nll=1.0)
    rows = RowStream(str(path), after=None)
    append(path, step=5, task="validation", nll=2.0)
    assert rows.new() == [{"step": 5, "task": "validation", "nll": 2.0}]


def test_rows_written_again_between_two_looks_are_growth(tmp_path: Path) -> None:
    """However fast a restarted run comes past its checkpoint, and however far the one before it had come."""
    path = tmp_path / "metrics.jsonl"
    stream = RowStream(str(path), after=-1)
    path.write_text("".join(f'{{"step": {step}}}\n' for step in range(1, 12)))
    assert len(stream.new()) == 11
    stream.rewound(6)
    assert not stream.new() and not stream.grew
    path.write_text("".join(f'{{"step": {step}}}\n' for step in range(1, 10)))
    assert not stream.new() and stream.grew
