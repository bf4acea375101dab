"""Finds runs below a folder and reads their results, from a run's directory or from Sacred's record of it."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from gpt_mesh.experiments.stream import COUNTS
from gpt_mesh.storage.json_lines import JsonLines

POINTS = 2000  # maximum points of a curve: more than a screen has pixels
SAMPLE_CHARACTERS = 20_000
SILENCE = timedelta(minutes=5)  # a running record is updated more often
HIDDEN = ("_sources", "_resources", "outbox", "dataset_configs", "data", "plugins", "predictions")


@dataclass
class RecordedRun:
    """What the page shows of one run. `series`: by metric, pairs of step and value. `samples`: step, name, text."""

    name: str
    status: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    series: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    samples: list[tuple[int, str, str]] = field(default_factory=list)


def find_runs(folder: str) -> list[RecordedRun]:
    """The runs below a folder, sorted by name. If a run's directory is found, only its status comes from Sacred's
    record."""
    own: dict[str, RecordedRun] = {}
    records: list[tuple[Path, RecordedRun, str]] = []
    for directory, files in _walk(folder):
        name = os.path.relpath(directory, folder)
        name = os.path.basename(os.path.abspath(folder)) if name == "." else name
        record = _json(directory / "run.json") if "run.json" in files else {}
        if _is_sacreds(record):
            info = _json(directory / "info.json")
            records.append((directory, _of_sacred(directory, name, record), str(info.get("model_path", ""))))
        elif {"metrics.jsonl", "eval.jsonl"} & files:
            own[os.path.realpath(directory)] = _of_directory(directory, name)
    for _, run, model_path in sorted(records, key=lambda record: _number(record[0])):
        known = own.get(os.path.realpath(model_path)) if model_path else None
        if known is None:
            own[run.name] = run
        else:
            known.status = run.status
    return sorted((run for run in own.values() if run.series or run.evaluations), key=lambda run: run.name)


def _walk(folder: str) -> Iterator[tuple[Path, set[str]]]:
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if name not in HIDDEN and not name.startswith("."))
        yield Path(parent), set(files)


def _is_sacreds(record: dict[str, Any]) -> bool:
    """Whether a run.json is a complete record of Sacred; other programs also write files of this name."""
    experiment, status = record.get("experiment"), record.get("status")
    return isinstance(experiment, dict) and isinstance(experiment.get("name"), str) and isinstance(status, str)


def _number(directory: Path) -> int:
    return int(directory.name) if directory.name.isdecimal() else 0


def _of_directory(directory: Path, name: str) -> RecordedRun:
    run = RecordedRun(name, config=_json(directory / "config.json"))
    for row in JsonLines(str(directory / "metrics.jsonl")).rows():
        _add(run, "training", row)
    for row in JsonLines(str(directory / "eval.jsonl")).rows():
        task = str(row.get("task", "validation"))
        if "stride" in row:  # a different metric, not comparable with that of disjoint windows
            task += f", stride {row.pop('stride')}"
        _add(run, task, row)
        run.evaluations.append({**row, "task": task})
    for path in sorted((directory / "predictions").glob("*.txt")):
        _add_sample(run, path)
    return _tidied(run)


def _of_sacred(directory: Path, name: str, record: dict[str, Any]) -> RecordedRun:
    run = RecordedRun(f"{record['experiment']['name']} {name}", _status(record), _json(directory / "config.json"))
    evaluations: dict[tuple[str, int], dict[str, Any]] = {}
    for metric, columns in _json(directory / "metrics.json").items():
        task, _, short = metric.partition(".")
        points = _points(columns)
        if points:
            run.series[f"{task}/{short}"] = points
        if task != "training":
            for step, value in points:
                evaluations.setdefault((task, step), {"step": step, "task": task})[short] = value
    run.evaluations = list(evaluations.values())
    for path in sorted(directory.glob("*.txt")):
        if path.name != "cout.txt":
            _add_sample(run, path)
    return _tidied(run)


def _status(record: dict[str, Any]) -> str:
    """The status in a record. A run that was killed together with its supervisor stays "running", so it is shown
    with the time of its last update.

    Sacred's times are in UTC, without a time zone.
    """
    status = str(record["status"]).lower()
    with suppress(KeyError, TypeError, ValueError):
        seen = datetime.fromisoformat(record["heartbeat"]).replace(tzinfo=timezone.utc)
        if status == "running" and datetime.now(timezone.utc) - seen > SILENCE:
            return f"running, last seen {seen.astimezone():%Y-%m-%d %H:%M}"
    return status


def _points(columns: Any) -> list[tuple[int, float]]:
    """Steps and values of one of Sacred's metrics, where both are numbers."""
    if not isinstance(columns, dict):
        return []
    steps, values = (columns.get(name) for name in ("steps", "values"))
    if not isinstance(steps, list) or not isinstance(values, list):
        return []
    pairs = zip(steps, values, strict=False)  # in a damaged record their lengths may differ
    return [(step, value) for step, value in pairs if isinstance(step, int) and isinstance(value, (int, float))]


def _add(run: RecordedRun, group: str, row: dict[str, Any]) -> None:
    for name, value in row.items():
        if name not in COUNTS and isinstance(value, (int, float)) and not isinstance(value, bool):
            run.series.setdefault(f"{group}/{name}", []).append((row["step"], value))


def _add_sample(run: RecordedRun, path: Path) -> None:
    step = re.search(r"step_(\d+)", path.name)
    if step is not None:
        text = path.read_text(encoding="utf-8", errors="replace")
        run.samples.append((int(step[1]), path.name, text[:SAMPLE_CHARACTERS]))


def _tidied(run: RecordedRun) -> RecordedRun:
    """Sort everything, keep the newest point of each step, and thin out curves to POINTS; the last point is kept."""
    run.samples.sort()
    run.evaluations.sort(key=lambda row: (str(row.get("task")), row["step"]))
    for name, points in run.series.items():
        points = sorted(dict(points).items())
        every = -(-len(points) // POINTS)
        run.series[name] = points[::-1][::every][::-1]
    return run


def _json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty if there is none."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}
