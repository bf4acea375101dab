"""Weights & Biases, MLflow and Comet get what Sacred gets, offline: `make test-loggers`, in an environment without
TensorFlow.
"""

from __future__ import annotations

import json
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpt_mesh import run_experiment
from gpt_mesh.experiments import observers, process, supervisor

pytestmark = pytest.mark.loggers
ROOT = Path(__file__).resolve().parents[2]
STEPS = 20


@pytest.fixture
def track(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Tracks a run of the stand-in that is killed once; returns its status."""
    monkeypatch.setattr(process, "LAUNCHER", ROOT / "tests" / "support" / "stand_in.py")
    monkeypatch.setattr(supervisor, "POLL_SECONDS", 0.02)
    monkeypatch.setenv("STAND_IN", str(tmp_path / "script.json"))
    monkeypatch.setenv("WANDB_MODE", "offline")
    for name in ("COMET_API_KEY", "COMET_ERROR_TRACKING_ENABLE"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    for name in observers.MLFLOW:
        monkeypatch.setenv(name, "")  # so that it is put back
        monkeypatch.delenv(name)
    monkeypatch.delenv("SACRED_MONGO_URL", raising=False)

    def track(*flags: str, ending: str = "end") -> int:
        lives = [("kill", 9), (ending, 15)]
        script = {"model_path": str(tmp_path / "run"), "train_steps": STEPS, "every": 6, "lives": lives}
        (tmp_path / "script.json").write_text(json.dumps(script))
        model = json.loads((ROOT / "configs" / "demo.json").read_text())
        model.update(model_path=str(tmp_path / "run"), train_steps=STEPS)
        (tmp_path / "tiny.json").write_text(json.dumps(model))
        return run_experiment.main(["--model", str(tmp_path / "tiny.json"), "--beat", "0.2", *flags])

    return track


def test_mlflow_has_every_step_once(track, tmp_path: Path) -> None:
    from mlflow.tracking import MlflowClient

    uri = (tmp_path / "mlruns").as_uri()
    assert track("--mlflow", uri, "--experiment_name", "try", "--group", "night", "--tags", "small", "fast") == 0
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("try")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED" and run.data.params["lr"] == "0.002"
    assert {key: run.data.tags[key] for key in ("group", "small", "fast")} == {
        "group": "night", "small": "true", "fast": "true",
    }  # fmt: skip
    history = client.get_metric_history(run.info.run_id, "training.loss")
    assert [(point.step, point.value) for point in history] == [(step, 1 / step) for step in range(1, STEPS + 1)]
    assert [point.step for point in client.get_metric_history(run.info.run_id, "validation.nll")] == [6, 12, 18]
    assert "samples_step_18.txt" in [file.path for file in client.list_artifacts(run.info.run_id)]


def test_mlflow_knows_a_failure(track, tmp_path: Path) -> None:
    from mlflow.tracking import MlflowClient

    uri = (tmp_path / "mlruns").as_uri()
    assert track("--mlflow", uri, "--experiment_name", "try", "--max_restarts", "1", ending="traceback") == 1
    client = MlflowClient(tracking_uri=uri)
    (run,) = client.search_runs([client.get_experiment_by_name("try").experiment_id])
    assert run.info.status == "FAILED" and "the device is gone" in run.data.tags["failure"]


@pytest.mark.timeout(100)
def test_an_mlflow_server_that_is_away_is_left_out_soon(track, capsys: pytest.CaptureFixture[str]) -> None:
    """By itself MLflow would try for minutes, in which the run does not start."""
    assert track("--mlflow", "http://127.0.0.1:9") == 0
    assert "--mlflow: left out of this run from here on" in capsys.readouterr().err


def wandb_records(path: Path) -> Iterator[bytes]:
    """What an offline run holds: LevelDB's log format, in blocks of 32 KiB, after seven bytes of W&B's own."""
    data, position, parts = path.read_bytes(), 7, b""
    while position + 7 <= len(data):
        left = 32768 - position % 32768
        if left < 7:
            position += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, position)
        parts += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield parts
            parts = b""


def test_wandb_has_every_step_once(track, tmp_path: Path) -> None:
    import wandb
    from wandb.proto import wandb_internal_pb2

    assert track("--wandb", "project") == 0
    wandb.teardown()  # its service, which writes on for a moment
    (file,) = (tmp_path / "run" / "sacred" / "wandb").glob("offline-run-*/run-*.wandb")
    steps: list[int] = []
    for data in wandb_records(file):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        row = {item.key or item.nested_key[0]: item.value_json for item in record.history.item}
        if "training.loss" in row:
            steps.append(int(json.loads(row["step"])))
            assert json.loads(row["training.loss"]) == 1 / steps[-1]
    assert steps == list(range(1, STEPS + 1))


def test_comet_has_every_step_once(track, tmp_path: Path) -> None:
    assert track("--comet", "project", "--group", "night", "--tags", "small") == 0
    (path,) = (tmp_path / "run" / "sacred").glob("*.zip")
    with zipfile.ZipFile(path) as archive:
        experiment = json.loads(archive.read("experiment.json"))
        messages = [json.loads(line) for line in archive.read("messages.json").decode().splitlines()]
    assert experiment["project_name"] == "project" and experiment["tags"] == ["small"]
    metrics = [message["payload"]["metric"] for message in messages if message["type"] == "metric_msg"]
    losses = [(one["step"], one["metricValue"]) for one in metrics if one["metricName"] == "training.loss"]
    assert losses == [(step, 1 / step) for step in range(1, STEPS + 1)]
    others = {one["payload"]["key"]: one["payload"]["value"] for one in messages if one["type"] == "log_other"}
    assert others["group"] == "night" and others["status"] == "completed"
