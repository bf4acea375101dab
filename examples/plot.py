"""Plots a training run: held-out bits per byte against steps, beside other methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # draws into files: needs no display
from matplotlib import pyplot as plt

Curve = Sequence[tuple[int, float]]

_GREY = "#888888"


def save_curves(path: Path, held_out: Curve, training: Curve, baselines: Mapping[str, float]) -> None:
    """Draw the curves (step, bits per byte) and a horizontal line for each baseline; write a PNG."""
    figure, axes = plt.subplots(figsize=(8, 5), dpi=100)
    axes.plot(*zip(*training, strict=True), color="tab:blue", alpha=0.35, linewidth=1, label="GPT, training text")
    axes.plot(*zip(*held_out, strict=True), color="tab:blue", marker="o", markersize=4, label="GPT, held-out text")
    last_step, last = held_out[-1]
    axes.annotate(f"{last:.3f}", (last_step, last), (7, -3), textcoords="offset points", color="tab:blue")
    for name, value in baselines.items():
        axes.axhline(value, color=_GREY, linewidth=1, linestyle="--")
        axes.annotate(
            f"{name}, {value:.3f}",
            (1, value),
            (-4, 3),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            ha="right",
            fontsize=9,
            color=_GREY,
        )
    axes.set(xlabel="training step", ylabel="bits per byte", title="Python's standard library: less is better")
    axes.set_xlim(0, 1.1 * last_step)
    axes.set_ylim(bottom=min(last, *baselines.values()) - 0.3, top=max(baselines.values()) + 1)
    axes.legend(loc="upper center", frameon=False)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.tight_layout()
    temporary = path.with_name(path.name + ".writing")
    figure.savefig(temporary, format="png")
    temporary.replace(path)
    plt.close(figure)
