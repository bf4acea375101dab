"""Curves of runs as a picture."""

from __future__ import annotations

import os
from collections.abc import Sequence

from gpt_mesh.errors import InputError
from gpt_mesh.storage import files
from gpt_mesh.storage.json_lines import JsonLines

ENDINGS = (".svg", ".png", ".pdf")
# A panel of the picture: its title, then (file of a run's directory, metric, style) of each line in it.
_PANELS: tuple[tuple[str, tuple[tuple[str, str, str], ...]], ...] = (
    ("loss (line: training; dots: held out)", (("metrics.jsonl", "loss", "-"), ("eval.jsonl", "nll", "o"))),
    ("learning rate", (("metrics.jsonl", "lr", "-"),)),
    ("gradient norm", (("metrics.jsonl", "grad_norm", "-"),)),
)


def plot(path: str, runs: Sequence[str]) -> None:
    """Draw loss, learning rate and gradient norm of runs, against steps.

    Args:
        path: of the picture; its ending is one of `ENDINGS`.
        runs: their directories.

    Raises:
        InputError: the ending is unknown, a run has no metrics, or the picture cannot be written.
    """
    if not path.endswith(ENDINGS):
        raise InputError(f"--plot {path}: must end in {', '.join(ENDINGS)}")
    import matplotlib
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 9), layout="constrained")
    panels = figure.subplots(len(_PANELS), sharex=True)
    for number, run in enumerate(runs):
        if not files.exists(os.path.join(run, "metrics.jsonl")):
            raise InputError(f"{run}: no metrics.jsonl there; name the directory of a run that has logged a step")
        colour = f"C{number % 10}"
        for panel, (title, lines) in zip(panels, _PANELS, strict=True):
            panel.set_title(title, fontsize=9, loc="left")
            panel.grid(alpha=0.3)
            for name, metric, style in lines:
                rows = JsonLines(os.path.join(run, name)).rows() if files.exists(os.path.join(run, name)) else []
                points = [(row["step"], row[metric]) for row in rows if row.get(metric) is not None]
                label = os.path.basename(os.path.normpath(run)) if style == "-" else None
                panel.plot(*zip(*points, strict=True) if points else ((), ()), style, color=colour, ms=4, label=label)
    panels[-1].set_xlabel("step")
    panels[0].legend(fontsize=8)
    with matplotlib.rc_context({"svg.hashsalt": "gpt_mesh"}):  # the same metrics give the same file
        try:
            figure.savefig(path, metadata={"Date": None} if path.endswith(".svg") else None)
        except OSError as error:
            raise InputError(f"--plot {path}: cannot be written: {error.strerror}") from None
