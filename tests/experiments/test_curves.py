"""Runs that diverged, metrics that share a chart, and the picture of a tracked run."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from gpt_mesh.experiments import plots, tracking
from gpt_mesh.experiments.curves import diverged_at, shared_charts
from gpt_mesh.storage.json_lines import Row

NAN, INF = math.nan, math.inf


def points(*values: float) -> list[tuple[int, float]]:
    return [(10 * (i + 1), value) for i, value in enumerate(values)]


@pytest.mark.parametrize(
    ("values", "step"),
    [
        ((8, 6, 5, 4, 3), None),
        ((8, 6, 90, 5, 4), None),  # a spike
        ((8, 6, 90), None),  # perhaps a spike
        ((0.5, 0.1, 0.3, 0.4, 0.45), None),  # overfitted
        ((8, 6, 20, 30, 25), 30),
        ((8, 6, 20, NAN, INF), 30),
        ((8, 6, NAN), 30),
        ((8, NAN, 6, 5), None),
        ((NAN, NAN), 10),
        ((), None),
    ],
)
def test_a_run_diverged_if_its_end_is_beyond_recovery(values: tuple[float, ...], step: int | None) -> None:
    for name in ("training/loss", "training/nll", "validation/nll"):
        assert diverged_at({"training/lr": points(1, 5, 50, 500), name: points(*values)}) == step


def test_only_metrics_that_are_nearly_the_same_share_a_chart() -> None:
    loss, near, other = points(4, 3, NAN), points(3.97, 2.98, NAN), points(4, 2.9, 2)
    assert shared_charts([{"training/loss": loss, "training/nll": near}, {"training/lr": loss}]) == {
        "training/nll": "training/loss"
    }
    for nll in (other, near[:2]):
        both = {"training/loss": loss, "training/nll": near}
        assert shared_charts([both, {"training/loss": loss, "training/nll": nll}]) == {}
    assert shared_charts([{"training/nll": near}]) == shared_charts([{"training/loss": loss}]) == {}


def test_the_picture_of_a_resumed_run_has_all_its_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also those that an earlier process wrote."""
    rows: dict[str, list[dict[str, Any]]] = {"metrics": [{"step": step, "loss": 5 / step} for step in range(1, 11)]}
    rows["eval"] = [{"step": 5, "task": "validation", "nll": 3.0}]
    for name, written in rows.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in written))

    class Run:
        def __init__(self) -> None:
            self.kept: list[str] = []
            self.scalars: list[int] = []

        def add_artifact(self, path: str) -> None:
            assert Path(path).read_bytes().startswith(b"\x89PNG")
            self.kept.append(Path(path).name)

        def log_scalar(self, name: str, value: float, step: int) -> None:
            self.scalars.append(step)

    drawn: list[Row] = []

    def draw(rows: Sequence[Row], path: str) -> bool:
        drawn.extend(rows)
        return plots.draw_curves(rows, path)

    monkeypatch.setattr(tracking, "draw_curves", draw)
    run = Run()
    reports = tracking.Reports(run)
    for row in rows["metrics"][6:]:
        reports.row(row)
    reports.draw(str(tmp_path))
    assert run.kept == ["run_curves.png"] and run.scalars == [7, 8, 9, 10]
    assert drawn == [*rows["metrics"], *rows["eval"]]
