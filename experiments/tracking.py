"""A run as a Sacred experiment: what it was started with, what it reports, and how it ended."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from gpt_mesh.config import Config
from gpt_mesh.experiments.plots import draw_curves
from gpt_mesh.experiments.sacred_import import import_sacred, installed
from gpt_mesh.experiments.signals import Signals
from gpt_mesh.experiments.stream import COUNTS
from gpt_mesh.experiments.supervisor import Ending, Plan, Supervisor
from gpt_mesh.storage import files as storage
from gpt_mesh.storage.json_lines import JsonLines, Row
from gpt_mesh.storage.progress import Console, log

sacred = import_sacred()

from sacred.utils import SacredInterrupt  # noqa: E402

dependencies: Any = sacred.dependencies  # carries no types

ROOT = Path(__file__).resolve().parents[1]


class Interrupted(SacredInterrupt):
    """A signal ended the run."""

    STATUS = "INTERRUPTED"


class RunFailed(Exception):
    """The run ended with this traceback or error."""


class Reports:
    """Reports the events of a run to Sacred."""

    def __init__(self, run: Any) -> None:
        self.run = run

    def row(self, row: Row) -> None:
        group = row.get("task", "training")
        for name, value in row.items():
            if name not in COUNTS and isinstance(value, (int, float)) and math.isfinite(value):
                self.run.log_scalar(f"{group}.{name}", value, row["step"])

    def file(self, path: str) -> None:
        """Add a file as an artifact; a file in a bucket is copied first."""
        if not storage.is_url(path):
            self.run.add_artifact(path)
            return
        with _without(path), tempfile.TemporaryDirectory() as folder:
            copy = os.path.join(folder, os.path.basename(path))
            with storage.open_binary(path) as source, open(copy, "wb") as target:
                target.write(source.read())
            self.run.add_artifact(copy)

    def restarted(self, count: int, reason: str) -> None:
        self.run.info.setdefault("restarts", []).append(reason)

    def draw(self, directory: str) -> None:
        """Add the run's curves as an artifact: every step in its directory, also those before it was resumed."""
        with _without("run_curves.png"), tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "run_curves.png")
            files = (os.path.join(directory, name) for name in ("metrics.jsonl", "eval.jsonl"))
            if draw_curves([row for file in files for row in JsonLines(file).rows()], path):
                self.run.add_artifact(path)


@contextlib.contextmanager
def _without(file: str) -> Iterator[None]:
    """Log a warning if a file cannot be recorded; the run continues."""
    try:
        yield
    except Exception as error:  # of any storage, or of Matplotlib
        log.warning("%s is not kept: %s", file, storage.reason(error))


def track(
    name: str,
    config: Config,
    command: str,
    plan: Plan,
    signals: Signals,
    observers: Sequence[Any],
    beat_seconds: float,
    model_file: str,
) -> Ending:
    """Run it with tracking; returns how it ended.

    Args:
        name: of the experiment.
        command: the command line, kept with the run.
        signals: held for as long as the record is in the making, so that it says how the run ended.
        beat_seconds: seconds between heartbeats to observers.
        model_file: the config, kept as a resource.
    """
    experiment = sacred.Experiment(name, base_dir=str(ROOT), save_git_info=False)
    experiment.logger = _quiet()
    experiment.sources = _sources()
    experiment.dependencies = {dependencies.PackageDependency(*package) for package in installed().items()}
    experiment.observers.extend(observers)
    experiment.add_config(config.to_json())
    sacred.SETTINGS.DEFAULT_BEAT_INTERVAL = beat_seconds
    sacred.SETTINGS.CAPTURE_MODE = "sys"
    sacred.SETTINGS.CONFIG.READ_ONLY_CONFIG = False
    endings: list[Ending] = []

    @experiment.main
    def run(_run: Any) -> str:
        _run._stop_heartbeat = partial(_end_heartbeat, _run)
        _run.info.update(command=command, model_path=os.path.abspath(plan.directory))
        if storage.is_url(plan.directory):
            _run.info["model_path"] = plan.directory
        _run.add_resource(model_file)
        reports = Reports(_run)
        ending = Supervisor(plan, reports, signals).run()
        endings.append(ending)
        reports.draw(plan.directory)
        _run.info["exit_status"] = ending.code
        if ending.status == "interrupted":
            raise Interrupted
        if ending.status == "failed":
            raise RunFailed(ending.reason)
        return ending.status

    with contextlib.suppress(Interrupted, RunFailed):
        experiment.run()
    return endings[0]


def _end_heartbeat(run: Any) -> None:
    """Replaces Sacred's, which waits only two seconds for the last heartbeat, which has the last metrics."""
    run._stop_heartbeat_event.set()
    run._heartbeat.join()


def _sources() -> set[Any]:
    """The project's own files with their digests; one of them carries the state of the repository."""
    entry = ROOT / "run_experiment.py"
    rooms = [path.parent for path in ROOT.glob("*/__init__.py")]
    files = [str(path) for folder in (ROOT, *rooms) for path in folder.glob("*.py")]
    states = {str(entry): _repository(entry)}
    digest, nothing = dependencies.get_digest, (None, None, None)
    return {dependencies.Source(file, digest(file), *states.get(file, nothing)) for file in files}


def _repository(path: Path) -> tuple[str | None, str | None, bool | None]:
    """URL, commit, and whether files differ from it; nothing for a copy without git."""
    try:
        url, commit, dirty = dependencies.get_commit_if_possible(str(path), True)
    except Exception as error:  # GitPython's own kinds, for which it has no common one
        log.warning("the state of the repository is not known: %s", str(error).partition("\n")[0])
        return None, None, None
    return url and re.sub(r"//[^@/]+@", "//", url), commit, dirty  # without a token


def _quiet() -> logging.Logger:
    """Sacred's warnings on the console, except that a run has ended, which is logged elsewhere."""
    logger = logging.getLogger("gpt.sacred")
    if not logger.handlers:
        console = Console(logging.WARNING)
        console.addFilter(lambda record: re.match(r"(Aborted|Failed) after ", record.getMessage()) is None)
        logger.addHandler(console)  # on the handler: a logger's filter does not apply to records of child loggers
        logger.propagate = False
    return logger
