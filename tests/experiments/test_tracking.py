"""What run_experiment.py keeps of a run, in its directory and in MongoDB."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gpt_mesh import run_experiment
from gpt_mesh.experiments import observers, outbox, process, report, supervisor, tracking
from tests.support.mongo_server import MongoServer

ROOT = Path(__file__).resolve().parents[2]
STEPS = 30
Track = Callable[..., tuple[int, Path]]


@pytest.fixture
def track(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Track:
    """Tracks a run of the stand-in; returns the status and the folder of its record."""
    monkeypatch.setattr(process, "LAUNCHER", ROOT / "tests" / "support" / "stand_in.py")
    monkeypatch.setenv("STAND_IN", str(tmp_path / "script.json"))
    monkeypatch.delenv("SACRED_MONGO_URL", raising=False)
    monkeypatch.setattr(supervisor, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(outbox, "RETRY_SECONDS", 0.05)

    def track(*lives: tuple[str, int], flags: tuple[str, ...] = ()) -> tuple[int, Path]:
        script = {"model_path": str(tmp_path / "run"), "train_steps": STEPS, "every": 8, "lives": lives}
        (tmp_path / "script.json").write_text(json.dumps(script))
        model = json.loads((ROOT / "configs" / "demo.json").read_text())
        model.update(model_path=str(tmp_path / "run"), train_steps=STEPS)
        (tmp_path / "tiny.json").write_text(json.dumps(model))
        (tmp_path / "run").mkdir(exist_ok=True)
        status = run_experiment.main(["--model", str(tmp_path / "tiny.json"), "--beat", "0.05", *flags])
        records = [path for path in (tmp_path / "run" / "sacred").iterdir() if path.name.isdecimal()]
        return status, max(records, key=lambda path: int(path.name))

    return track


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def reached(folder: Path, step: int) -> None:
    """Waits for a row of this step, for a minute at most."""
    metrics = folder / "run" / "metrics.jsonl"
    for _ in range(6000):
        if metrics.exists() and f'"step": {step},' in metrics.read_text():
            return
        time.sleep(0.01)


def check_series(metrics: dict[str, dict[str, list[Any]]], last: int = STEPS) -> None:
    """Each metric once and in order."""
    assert metrics["training.loss"]["steps"] == list(range(1, last + 1))
    assert metrics["training.loss"]["values"] == [1 / step for step in range(1, last + 1)]
    assert metrics["validation.nll"]["steps"] == list(range(8, last + 1, 8))
    others = metrics.keys() - {"training.loss", "training.tokens_per_second", "validation.nll"}
    assert not others, "no counts, and no mfu where the peak is not known"


def test_a_record_says_what_ran_and_what_came_of_it(track: Track, tmp_path: Path) -> None:
    status, record = track(("end", 0), flags=("--experiment_name", "first try"))
    assert status == 0
    run, config, info = (read(record / f"{name}.json") for name in ("run", "config", "info"))
    assert run["status"] == "COMPLETED" and run["experiment"]["name"] == "first try"
    assert config["lr"] == 0.002 and config["model_path"] == str(tmp_path / "run")
    assert info["command"].endswith("tiny.json") and info["exit_status"] == 0
    sources = dict(run["experiment"]["sources"])
    stored = record.parent / sources["models/gpt.py"]
    assert stored.read_text() == (ROOT / "models" / "gpt.py").read_text()
    assert any(name.startswith("numpy==") for name in run["experiment"]["dependencies"])
    assert run["host"]["hostname"] and run["host"]["python_version"]
    if (ROOT / ".git").exists():
        (repository,) = run["experiment"]["repositories"]
        assert len(repository["commit"]) == 40
    check_series(read(record / "metrics.json"))
    samples = {f"samples_step_{step}.txt" for step in (8, 16, 24)}
    assert {*run["artifacts"]} == samples | {"run_curves.png"}
    assert (record / "samples_step_24.txt").read_text() == "sample of 24\n"
    assert (record / "run_curves.png").read_bytes().startswith(b"\x89PNG")
    assert "training from step 0" in (record / "cout.txt").read_text()


def test_restarts_are_in_the_record(track: Track) -> None:
    status, record = track(("kill", 11), ("traceback", 21), ("end", 0))
    assert status == 0 and read(record / "run.json")["status"] == "COMPLETED"
    check_series(read(record / "metrics.json"))
    first, second = read(record / "info.json")["restarts"]
    assert first == "ended by SIGKILL" and "RuntimeError: the device is gone" in second


def test_only_training_is_restarted(track: Track) -> None:
    status, record = track(("kill", 3), ("end", 0), flags=("--eval", "--heartbeat_timeout", "0.01"))
    assert status == 128 + signal.SIGKILL and read(record / "run.json")["status"] == "FAILED"
    assert "restarts" not in read(record / "info.json")


def test_a_failure_is_in_the_record(track: Track, capsys: pytest.CaptureFixture[str]) -> None:
    status, record = track(("traceback", 11), flags=("--max_restarts", "0"))
    run = read(record / "run.json")
    assert (status, run["status"]) == (1, "FAILED")
    assert "stand_in.py" in run["fail_trace"][-1] and "RuntimeError: the device is gone" in run["fail_trace"][-1]
    check_series(read(record / "metrics.json"), last=11)
    said = capsys.readouterr().err
    assert "the run failed: (after 0 restarts" in said and "Failed after" not in said, "Sacred says nothing"
    status, record = track(("error", 13))
    assert status == 1 and "the loss became nan" in read(record / "run.json")["fail_trace"][-1]
    assert capsys.readouterr().err.count("the loss became nan") == 1


def test_an_interruption_is_in_the_record(track: Track, tmp_path: Path) -> None:
    def send() -> None:
        reached(tmp_path, 12)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=send, daemon=True)
    thread.start()
    status, record = track(("wait", 12))
    thread.join(60)
    assert (status, read(record / "run.json")["status"]) == (0, "INTERRUPTED")
    check_series(read(record / "metrics.json"), last=12)


def test_a_killed_run_does_not_stay_running(track: Track) -> None:
    """The next start of the same run says how it ended; records of other runs stay as they are."""
    for _ in range(3):
        _, record = track(("end", 0))
    ours, other, done = (record.with_name(number) for number in "123")
    for folder in (ours, other):
        values = read(folder / "run.json")
        (folder / "run.json").write_text(json.dumps({**values, "status": "RUNNING", "stop_time": None}))
    info = read(other / "info.json")
    (other / "info.json").write_text(json.dumps({**info, "model_path": "/elsewhere"}))
    track(("end", 0))
    found = read(ours / "run.json")
    assert (found["status"], found["stop_time"]) == ("INTERRUPTED", found["heartbeat"])
    assert [read(folder / "run.json")["status"] for folder in (other, done)] == ["RUNNING", "COMPLETED"]


def test_a_signal_while_the_record_is_begun_starts_nothing(track: Track, monkeypatch: pytest.MonkeyPatch) -> None:
    def signalled(path: Path) -> tuple[None, None, None]:
        os.kill(os.getpid(), signal.SIGTERM)
        return None, None, None

    monkeypatch.setattr(tracking, "_repository", signalled)
    status, record = track(("end", 0))
    assert (status, read(record / "run.json")["status"]) == (143, "INTERRUPTED")
    assert not (record.parent.parent / "lives.jsonl").exists(), "nothing was started"


def test_a_signal_while_the_record_is_ended_is_too_late(track: Track, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "draw_curves", lambda rows, path: os.kill(os.getpid(), signal.SIGINT))
    status, record = track(("end", 0))
    assert (status, read(record / "run.json")["status"]) == (0, "COMPLETED")


def test_ctrl_c_anywhere_else_ends_with_its_status(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def interrupt(*_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(report, "write_report", interrupt)
    assert run_experiment.main(["--report", str(tmp_path)]) == 130


@pytest.mark.parametrize("ending", ["end", "traceback"])
def test_the_last_metrics_are_waited_for(track: Track, monkeypatch: pytest.MonkeyPatch, ending: str) -> None:
    """Sacred waits for its last beat for two seconds."""
    log_metrics = observers.LocalObserver.log_metrics

    def slow(self: Any, metrics_by_name: Any, info: Any) -> None:
        if metrics_by_name:
            time.sleep(2.5)
        log_metrics(self, metrics_by_name, info)

    monkeypatch.setattr(observers.LocalObserver, "log_metrics", slow)
    _, record = track((ending, STEPS), flags=("--beat", "60", "--max_restarts", "0"))
    check_series(read(record / "metrics.json"))
    assert read(record / "run.json")["status"] in ("COMPLETED", "FAILED")


def in_mongo(server: MongoServer, number: int = 1) -> tuple[dict[str, Any], dict[str, Any]]:
    """A run's document, and its metrics by name."""
    run = server.database["runs"].find_one({"_id": number})
    return run, {one["name"]: one for one in server.database["metrics"].find({"run_id": number})}


def test_a_database_that_dies_in_the_middle_has_all_in_the_end(track: Track, tmp_path: Path) -> None:
    """It dies, the run is killed and restarted without it, and it comes back."""
    with MongoServer() as server:

        def trouble() -> None:
            reached(tmp_path, 5)
            server.stop()
            reached(tmp_path, 20)
            server.start()

        thread = threading.Thread(target=trouble, daemon=True)
        thread.start()
        status, record = track(("kill", 11), ("end", 0), flags=("--mongo_url", server.url))
        thread.join(60)
        assert status == 0
        run, metrics = in_mongo(server)
        check_series(metrics)
        local = read(record / "metrics.json")
        assert {name: one["values"] for name, one in metrics.items()} == {n: one["values"] for n, one in local.items()}
        assert run["status"] == "COMPLETED" and run["info"]["restarts"] == ["ended by SIGKILL"]
        assert [one["name"] for one in run["artifacts"]] == read(record / "run.json")["artifacts"]
        assert "training from step 8" in run["captured_out"]
        assert not list((record.parent / "outbox").iterdir()), "nothing waits"


def test_what_a_database_missed_is_delivered_later_and_once(
    track: Track, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(observers, "FINISH_SECONDS", 0.1)
    server = MongoServer()
    server.start()
    server.stop()
    monkeypatch.setenv("SACRED_MONGO_URL", server.url + "?serverSelectionTimeoutMS=100")
    status, record = track(("end", 0))
    assert status == 0, "the run does not depend on it"
    assert run_experiment.main(["--deliver", str(record.parent)]) == 1, "it is away"
    server.start()
    for _ in range(2):
        assert run_experiment.main(["--deliver", str(record.parent)]) == 0
        assert server.database["runs"].count_documents({}) == 1
        run, metrics = in_mongo(server)
        check_series(metrics)
        assert run["status"] == "COMPLETED"
    server.stop()


@pytest.mark.parametrize(
    ("flags", "part"),
    [
        (["--model", "demo", "--mongo_url", "nowhere"], "error: --mongo_url: "),
        (["--model", "demi"], f"error: {Path.cwd()}/configs/demi.json: no such model config"),
        (["--model", "demo", "--sacred_dir", "gs://bucket/x"], "error: --sacred_dir gs://bucket/x: "),
        (["--model", "demo", "--wandb", "project"], "error: --wandb: wandb is not installed; pip install wandb"),
        (["--deliver", "."], "error: --deliver: --mongo_url is missing"),
        (
            ["--deliver", "nowhere", "--mongo_url", "mongodb://127.0.0.1:1"],
            f"error: --deliver {Path.cwd()}/nowhere: no such folder",
        ),
    ],
)
def test_mistakes_are_one_line(
    flags: list[str], part: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("SACRED_MONGO_URL", raising=False)
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "wandb" else find_spec(name))
    if "--sacred_dir" not in flags and "--deliver" not in flags:
        flags = [*flags, "--sacred_dir", str(tmp_path)]
    assert run_experiment.main(flags) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith(part)


@pytest.mark.parametrize(
    "flags",
    [
        [],
        ["--model", "demo", "--ne"],
        ["--model", "demo", "--modle", "x"],
        ["--report", ".", "--model", "demo"],
        ["--max_restarts", "-1"],
    ],
)
def test_wrong_flags_end_with_status_two(flags: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run_experiment.main(flags)
    assert ended.value.code == 2


def test_help_lists_both_programs_flags(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run_experiment.main(["--help"])
    text = capsys.readouterr().out
    assert all(flag in text for flag in ("--steps_per_checkpoint", "--tpu", "--experiment_name", "--heartbeat_timeout"))


def test_the_watcher_does_without_tensorflow() -> None:
    code = (
        "import sys, run_experiment, experiments.tracking, experiments.observers, experiments.command\n"
        "import gpt_mesh.experiments.report, gpt_mesh.experiments.tensorboard_page\n"
        "assert 'tensorflow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
