"""What fails while a run is recorded is a warning, and costs no more than it must."""

from __future__ import annotations

import sqlite3
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

from gpt_mesh.errors import InputError
from gpt_mesh.experiments.guarded import Guarded, Metrics
from gpt_mesh.experiments.observers import LocalObserver, milliseconds
from gpt_mesh.experiments.outbox import Outbox

POINTS: Metrics = {"loss": {"steps": [1], "values": [2.0], "timestamps": ["now"]}}


class Failing:
    """An observer that fails at what it is told to."""

    priority = 0

    def __init__(self, *fails: str) -> None:
        self.fails, self.heard = {*fails}, []  # type: ignore[var-annotated]

    def __getattr__(self, method: str) -> Any:
        def hear(**event: Any) -> None:
            if method in self.fails:
                raise ConnectionError("no network")
            self.heard.append((method, event))

        return hear

    def metrics(self) -> list[Any]:
        return [event["metrics_by_name"]["loss"]["steps"] for method, event in self.heard if method == "log_metrics"]


def test_an_observer_that_does_not_start_is_left_out() -> None:
    failing = Failing("started_event")
    guarded = Guarded(failing, "--wandb")
    guarded.started_event(_id=1)
    guarded.log_metrics(POINTS, {})
    guarded.completed_event(stop_time=None, result=None)
    assert failing.heard == []


def test_the_record_that_numbers_runs_must_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="--sacred_dir x: cannot be written to"):
        Guarded(Failing("started_event"), "--sacred_dir x", ours=True).started_event(_id=None)


def test_a_file_that_cannot_be_kept_costs_that_file_only(tmp_path: Path) -> None:
    for ours in (True, False):
        failing = Failing("artifact_event", "resource_event")
        guarded = Guarded(failing, "it", ours=ours)
        guarded.started_event(_id=1)
        guarded.artifact_event("sample.txt", filename=str(tmp_path / "deleted"))
        guarded.resource_event(str(tmp_path / "deleted"))
        guarded.log_metrics(POINTS, {})
        assert failing.metrics() == [[1]]


def test_metrics_that_our_disk_could_not_take_go_with_the_next() -> None:
    for ours, wanted in ((True, [[1, 1]]), (False, [])):
        failing = Failing("log_metrics")
        guarded = Guarded(failing, "it", ours=ours)
        guarded.started_event(_id=1)
        guarded.log_metrics(POINTS, {})
        failing.fails.clear()
        guarded.log_metrics(POINTS, {})
        assert failing.metrics() == wanted


def test_a_deleted_sample_does_not_end_the_local_record(tmp_path: Path) -> None:
    local = Guarded(LocalObserver(str(tmp_path)), "--sacred_dir", ours=True)
    start = {"ex_info": {"base_dir": "/", "sources": []}, "command": "", "host_info": {}, "config": {}, "meta_info": {}}
    local.started_event(**start, start_time=datetime(2026, 1, 2), _id=None)
    local.artifact_event("sample.txt", filename=str(tmp_path / "deleted"))
    local.completed_event(stop_time=datetime(2026, 1, 2), result=None)
    assert '"COMPLETED"' in (tmp_path / "1" / "run.json").read_text()


def test_an_event_that_the_disk_cannot_take_leaves_no_trace(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "box.sqlite")
    outbox.put("started")
    (pages,) = outbox._one("PRAGMA page_count")
    outbox._one(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(sqlite3.OperationalError, match="full"):
        outbox.put("metrics", values="x" * 100_000)
    outbox._one("PRAGMA max_page_count = 1000000")
    outbox.put("completed")
    found = outbox._database.execute("SELECT n, kind FROM events ORDER BY n").fetchall()
    assert found == [(1, "started"), (2, "completed")]


def test_times_are_utc_wherever_the_machine_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "America/New_York")
    time.tzset()
    try:
        moment = datetime(2026, 7, 1, 12, 30, tzinfo=timezone.utc)
        assert milliseconds(moment.replace(tzinfo=None)) == moment.timestamp() * 1000
    finally:
        monkeypatch.undo()
        time.tzset()
