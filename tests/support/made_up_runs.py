"""Folders as three runs leave them, with curves that were made up."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

RUNS = {"base": (3e-4, 128, 1), "warm": (6e-4, 128, 2), "wide/big": (3e-4, 256, 3)}


def make_runs(root: Path) -> None:
    """One with another learning rate, one wider and in a folder deeper."""
    for name, (lr, width, seed) in RUNS.items():
        folder = root / name
        (folder / "predictions").mkdir(parents=True)
        config = {"lr": lr, "n_embd": width, "n_layer": 4, "opt_name": "adam", "seed": seed, "model_path": str(folder)}
        (folder / "config.json").write_text(json.dumps(config))
        steps = range(10, 3001, 10)
        write(folder / "metrics.jsonl", [training(step, lr, random.Random(seed * step)) for step in steps])
        rows = [validation(step, lr) for step in range(500, 3001, 500)]
        rows.append({"step": 3000, "task": "lambada", "accuracy": 0.1, "accuracy_stderr": 0.004})
        write(folder / "eval.jsonl", rows)
        for step in range(500, 3001, 500):
            text = f"==== sample 1 of step {step} ====\ndef parse(self):\n    return '</script><b>'\n"
            (folder / "predictions" / f"samples_step_{step}.txt").write_text(text)


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def nll(step: int, lr: float) -> float:
    return 1.9 + 4 * math.exp(-6 * step * lr)


def training(step: int, lr: float, rng: random.Random) -> dict[str, Any]:
    loss = nll(step, lr) + rng.gauss(0, 0.06)
    warm = min(1, step / 300) * (1 - step / 4000)
    speed = 90_000 + rng.gauss(0, 2000)
    return {"step": step, "loss": loss + 0.01, "nll": loss, "lr": lr * warm, "tokens_per_second": speed, "mfu": None}


def validation(step: int, lr: float) -> dict[str, Any]:
    value = nll(step, lr) + 0.02
    return {
        "step": step,
        "task": "validation",
        "nll": value,
        "perplexity": math.exp(value),
        "bits_per_byte": value / 2.4,
        "accuracy": 0.5 - value / 20,
        "tokens": 40_000,
        "bytes": 150_000,
    }
