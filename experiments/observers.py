"""Where a tracked run is recorded: Sacred's observers. Each gets every event, through guarded.py."""

from __future__ import annotations

import html
import importlib.util
import json
import os
import threading
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from gpt_mesh.errors import InputError
from gpt_mesh.experiments.guarded import Metrics
from gpt_mesh.experiments.mongo import Mongo
from gpt_mesh.experiments.outbox import Delivery, Unreachable, left_behind, new_outbox
from gpt_mesh.experiments.sacred_import import import_sacred
from gpt_mesh.storage import strict_json
from gpt_mesh.storage.progress import log

import_sacred()

from sacred.dependencies import get_digest as _get_digest  # noqa: E402
from sacred.observers import FileStorageObserver, RunObserver  # noqa: E402
from sacred.serializer import flatten as _flatten  # noqa: E402

# Sacred's functions carry no types.
get_digest: Any = _get_digest
flatten: Any = _flatten

OUTPUT_KEPT = 1_000_000  # characters of output that a database gets; the local directory has everything
FINISH_SECONDS = 15.0  # for the last events, when a run has ended


class LocalObserver(FileStorageObserver):
    """Sacred's directory of runs, with files that are complete at any moment: heartbeats come from another thread."""

    def __init__(self, directory: str) -> None:
        super().__init__(directory)
        self._lock = threading.RLock()
        self.dir: Any
        self.run_entry: Any

    def save_json(self, obj: Any, filename: str) -> None:
        path = os.path.join(self.dir, filename)
        with self._lock:
            strict_json.write(path, flatten(obj))

    def artifact_event(self, name: str, filename: str, metadata: Any = None, content_type: Any = None) -> None:
        copy: Any = self.save_file
        copy(filename, name)
        with self._lock:
            if name not in self.run_entry["artifacts"]:  # the newer file replaces the older
                self.run_entry["artifacts"].append(name)
            self.save_json(self.run_entry, "run.json")


class QueueObserver(RunObserver):
    """Puts every event into an outbox, from which it is delivered when the database can be reached."""

    def __init__(self, parent: Path, mongo: Mongo) -> None:
        super().__init__()
        self.priority = 10  # after the local directory, which gives the run its number
        self._outbox, self._parent, self._mongo = new_outbox(parent), parent, mongo
        self._delivery = Delivery(self._outbox, mongo.receiver(self._outbox.key), mongo.name)

    def started_event(self, ex_info, command, host_info, start_time, config, meta_info, _id):  # type: ignore[no-untyped-def]
        base = ex_info["base_dir"]
        try:
            sources = [(name, self._outbox.copy(os.path.join(base, name))) for name, _ in ex_info["sources"]]
            self._put(
                "started",
                experiment={name: value for name, value in ex_info.items() if name != "sources"},
                sources=sources,
                command=command,
                host=host_info,
                time=start_time,
                config=config,
                meta=meta_info,
            )
        except Exception:
            self._outbox.discard()
            raise
        self._delivery.start()

    def heartbeat_event(self, info: Any, captured_out: str, beat_time: datetime, result: Any) -> None:
        kept = captured_out[-OUTPUT_KEPT:]
        self._outbox.beat(**_plain(info=info, captured_out=kept, beat_time=beat_time, result=result))
        self._delivery.wake()

    def log_metrics(self, metrics_by_name: Metrics, info: Any) -> None:
        if metrics_by_name:
            self._put("metrics", metrics=metrics_by_name)

    def artifact_event(self, name: str, filename: str, metadata: Any = None, content_type: Any = None) -> None:
        self._put("artifact", name=name, file=self._outbox.copy(filename))

    def resource_event(self, filename: str) -> None:
        self._put("resource", name=filename, md5=get_digest(filename))

    def completed_event(self, stop_time: datetime, result: Any) -> None:
        self._put("completed", time=stop_time, status="COMPLETED", result=result)

    def interrupted_event(self, interrupt_time: datetime, status: str) -> None:
        self._put("interrupted", time=interrupt_time, status=status)

    def failed_event(self, fail_time: datetime, fail_trace: list[str]) -> None:
        self._put("failed", time=fail_time, status="FAILED", fail_trace=fail_trace)

    def _put(self, kind: str, **values: Any) -> None:
        self._outbox.put(kind, **_plain(**values))
        self._delivery.wake()

    def join(self) -> None:
        """Deliver the remaining events, of earlier runs too. Called when the run has ended."""
        if self._delivery.is_alive() and not self._delivery.finish(FINISH_SECONDS):
            log.warning(
                "%s does not have %d events: they wait in %s for the next run, or for run_experiment.py --deliver %s",
                self._mongo.name,
                self._outbox.waiting,
                self._outbox.path,
                self._parent.parent,
            )
            self._outbox.close()
            return
        self._outbox.close()
        deliver_left_behind(self._parent, self._mongo)


def deliver_left_behind(parent: Path, mongo: Mongo) -> int:
    """Deliver the events of earlier runs, while the database can be reached; returns how many still wait."""
    waiting, reachable = 0, True
    for outbox in left_behind(parent):
        before = outbox.waiting
        try:
            if reachable:
                outbox.send(mongo.receiver(outbox.key))
        except Unreachable as error:
            log.warning("%s is unreachable (%s)", mongo.name, error)
            reachable = False
        except Exception:  # a damaged one must not block the others
            log.exception("%s cannot be delivered", outbox.path)
        if before and not outbox.waiting:
            log.info("%s received %d events of an earlier run", mongo.name, before)
        waiting += outbox.waiting
        outbox.close()
    return waiting


@dataclass(frozen=True)
class Labels:
    """How services sort runs: a group, and tags."""

    group: str | None = None
    tags: tuple[str, ...] = ()


class WandbObserver(RunObserver):
    """Weights & Biases. WANDB_MODE=offline writes to a folder that `wandb sync` sends later."""

    def __init__(self, project: str, directory: str, labels: Labels = Labels()) -> None:
        super().__init__()
        _require("wandb", "--wandb")
        self._project, self._directory, self._labels = project, directory, labels

    def started_event(self, ex_info, command, host_info, start_time, config, meta_info, _id):  # type: ignore[no-untyped-def]
        import wandb

        self._run = wandb.init(
            project=self._project, name=f"{ex_info['name']}-{_id}", dir=self._directory, config=flatten(config),
            group=self._labels.group, tags=self._labels.tags,
        )

    def log_metrics(self, metrics_by_name: Metrics, info: Any) -> None:
        for step, values in _by_step(metrics_by_name):
            self._run.log({**values, "step": step})

    def artifact_event(self, name: str, filename: str, metadata: Any = None, content_type: Any = None) -> None:
        import wandb

        if name.endswith(".txt"):
            text = Path(filename).read_text(encoding="utf-8", errors="replace")
            self._run.log({f"samples/{name}": wandb.Html(f"<pre>{html.escape(text, quote=False)}</pre>")})
        elif name.endswith(".png"):
            self._run.log({f"plots/{name}": wandb.Image(filename)})

    def completed_event(self, stop_time: datetime, result: Any) -> None:
        self._run.finish(exit_code=0)

    def interrupted_event(self, interrupt_time: datetime, status: str) -> None:
        self._run.finish(exit_code=130)

    def failed_event(self, fail_time: datetime, fail_trace: list[str]) -> None:
        self._run.summary["failure"] = "".join(fail_trace)
        self._run.finish(exit_code=1)


# Environment variables for MLflow, where the user has not set them: they allow a folder as the store, and limit the
# time to wait for an unreachable server to seconds instead of four minutes.
MLFLOW = {
    "MLFLOW_ALLOW_FILE_STORE": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
}


class MlflowObserver(RunObserver):
    """MLflow: a tracking URI, which may be a folder, a database or a server."""

    def __init__(self, uri: str, labels: Labels = Labels()) -> None:
        super().__init__()
        _require("mlflow", "--mlflow")
        self._labels = labels
        os.environ |= {name: value for name, value in MLFLOW.items() if name not in os.environ}
        self._uri = uri

    def started_event(self, ex_info, command, host_info, start_time, config, meta_info, _id):  # type: ignore[no-untyped-def]
        from mlflow.entities import Param
        from mlflow.tracking import MlflowClient

        self._client = MlflowClient(tracking_uri=self._uri)
        name = ex_info["name"]
        known = self._client.get_experiment_by_name(name)
        experiment = known.experiment_id if known else self._client.create_experiment(name)
        self._run_id = self._client.create_run(experiment, run_name=f"{name}-{_id}").info.run_id
        group = {"group": self._labels.group} if self._labels.group else {}
        for key, value in {**group, **dict.fromkeys(self._labels.tags, "true")}.items():
            self._client.set_tag(self._run_id, key, value)
        params = [Param(key, str(value)[:500]) for key, value in flatten(config).items()]
        for start in range(0, len(params), 100):  # MLflow's limit for one call
            self._client.log_batch(self._run_id, params=params[start : start + 100])

    def log_metrics(self, metrics_by_name: Metrics, info: Any) -> None:
        from mlflow.entities import Metric

        points = [
            Metric(name, float(value), milliseconds(time), step)
            for name, columns in metrics_by_name.items()
            for step, value, time in zip(columns["steps"], columns["values"], columns["timestamps"], strict=True)
        ]
        for start in range(0, len(points), 1000):
            self._client.log_batch(self._run_id, metrics=points[start : start + 1000])

    def artifact_event(self, name: str, filename: str, metadata: Any = None, content_type: Any = None) -> None:
        self._client.log_artifact(self._run_id, filename)

    def completed_event(self, stop_time: datetime, result: Any) -> None:
        self._client.set_terminated(self._run_id, "FINISHED")

    def interrupted_event(self, interrupt_time: datetime, status: str) -> None:
        self._client.set_terminated(self._run_id, "KILLED")

    def failed_event(self, fail_time: datetime, fail_trace: list[str]) -> None:
        self._client.set_tag(self._run_id, "failure", "".join(fail_trace)[-5000:])
        self._client.set_terminated(self._run_id, "FAILED")


class CometObserver(RunObserver):
    """Comet. Without COMET_API_KEY it writes an archive that `comet upload` sends later."""

    def __init__(self, project: str, directory: str, labels: Labels = Labels()) -> None:
        super().__init__()
        _require("comet_ml", "--comet")
        self._project, self._directory, self._labels = project, directory, labels

    def started_event(self, ex_info, command, host_info, start_time, config, meta_info, _id):  # type: ignore[no-untyped-def]
        os.environ.setdefault("COMET_ERROR_TRACKING_ENABLE", "0")  # it would report its own errors, offline too
        import comet_ml

        settings = comet_ml.ExperimentConfig(
            name=f"{ex_info['name']}-{_id}", tags=list(self._labels.tags), offline_directory=self._directory,
            log_code=False, log_git_metadata=False, log_graph=False, auto_output_logging=False,
        )  # fmt: skip
        online = "COMET_API_KEY" in os.environ
        self._run = comet_ml.start(project_name=self._project, online=online, experiment_config=settings)
        if self._labels.group is not None:
            self._run.log_other("group", self._labels.group)
        self._run.log_parameters(flatten(config))

    def log_metrics(self, metrics_by_name: Metrics, info: Any) -> None:
        for step, values in _by_step(metrics_by_name):
            self._run.log_metrics(values, step=step)

    def artifact_event(self, name: str, filename: str, metadata: Any = None, content_type: Any = None) -> None:
        self._run.log_asset(filename, file_name=name)

    def completed_event(self, stop_time: datetime, result: Any) -> None:
        self._end("completed")

    def interrupted_event(self, interrupt_time: datetime, status: str) -> None:
        self._end("interrupted")

    def failed_event(self, fail_time: datetime, fail_trace: list[str]) -> None:
        self._run.log_other("failure", "".join(fail_trace)[-5000:])
        self._end("failed")

    def _end(self, status: str) -> None:
        self._run.log_other("status", status)
        self._run.end()


def _require(package: str, flag: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise InputError(f"{flag}: {package} is not installed; pip install {package}")


def milliseconds(time: datetime) -> int:
    """Milliseconds since 1970 of a time in Sacred's form: UTC, without a time zone."""
    return int(time.replace(tzinfo=timezone.utc).timestamp() * 1000)


def _by_step(metrics: Metrics) -> list[tuple[int, dict[str, Any]]]:
    """The measurements of each step, in ascending order."""
    steps: dict[int, dict[str, Any]] = {}
    for name, columns in metrics.items():
        for step, value in zip(columns["steps"], columns["values"], strict=True):
            steps.setdefault(step, {})[name] = value
    return sorted(steps.items())


def _plain(**values: Any) -> dict[str, Any]:
    """Sacred's values as JSON: times in ISO form, other types as text."""

    def simple(value: Any) -> Any:
        return value.isoformat() if isinstance(value, datetime) else str(value)

    plain: dict[str, Any] = json.loads(json.dumps(values, default=simple))
    return plain
