"""A run's curves as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gpt_mesh.storage.json_lines import Row


def draw_curves(rows: Sequence[Row], path: str) -> bool:
    """Loss and held-out nll against steps, and the learning rate, as a PNG; whether there was anything to draw."""
    series = {
        "training loss": _series(rows, None, "loss"),
        "training nll": _series(rows, None, "nll"),
        "validation nll": _series(rows, "validation", "nll"),
    }
    if not any(points for points in series.values()):
        return False
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    FigureCanvasAgg(figure)
    losses, rates = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    for name, points in series.items():
        if points:
            losses.plot(*zip(*points, strict=True), label=name, marker="o" if len(points) < 20 else None, markersize=3)
    losses.set_ylabel("nats per token")
    losses.legend(frameon=False)
    if lr := _series(rows, None, "lr"):
        rates.plot(*zip(*lr, strict=True), color="grey")
    rates.set(xlabel="step", ylabel="learning rate")
    figure.savefig(path, dpi=110)
    return True


def _series(rows: Sequence[Row], task: str | None, name: str) -> list[tuple[int, Any]]:
    return [(row["step"], row[name]) for row in rows if row.get("task") == task and row.get(name) is not None]
