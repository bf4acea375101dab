"""A search for the learning rate: training steps whose rate grows from each to the next (arXiv:1506.01186).

Nothing is written. The loss falls fastest at a rate that is safe to train with, and rises where training diverges.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from gpt_mesh.config import Config, replace
from gpt_mesh.errors import InputError
from gpt_mesh.library.rehearsal import rehearsal_engine
from gpt_mesh.storage.progress import Progress

LOWEST, HIGHEST = 1e-6, 1.0
_SMOOTHING = 0.9  # weight of the past in the mean of the loss
_DIVERGED = 1.5  # times the smallest loss: the search ends
_SCHEDULE_STEPS = 10**9  # of the warm-up that gives every rate


@dataclass(frozen=True)
class Point:
    """A step: its learning rate, its loss, and the mean of the loss so far, weighted towards the last steps."""

    lr: float
    loss: float
    smoothed: float


def find_lr(
    config: Config, steps: int = 100, devices: Sequence[str] | None = None, *, fit_mesh: bool = False
) -> list[Point]:
    """Train fresh weights for some steps, with rates from `LOWEST` to `HIGHEST`, or until the loss rises.

    Raises:
        InputError: the config cannot work, or its optimizer depends on the number of steps.
    """
    if config.optimizer.opt_name != "adam":
        raise InputError(f"{config.source}: opt_name = {config.optimizer.opt_name}: the search is for adam alone")
    # The graph takes its rate from the step: in a warm-up, rate = step / warmup_steps x lr.
    rising = replace(config, lr=HIGHEST, lr_decay="none", warmup_steps=_SCHEDULE_STEPS)
    size, found, mean, best = config.training.train_batch_size, list[Point](), 0.0, math.inf
    with (
        rehearsal_engine(rising, devices, fit_mesh=fit_mesh) as (engine, data),
        Progress(steps, "searching", "steps") as progress,
    ):
        for number in range(steps):
            lr = LOWEST * (HIGHEST / LOWEST) ** (number / max(1, steps - 1))
            engine.global_step.assign(round(lr / HIGHEST * _SCHEDULE_STEPS))
            outputs = engine.train_step(data.batch(number * size, size))
            loss = float(outputs["loss"])
            mean = _SMOOTHING * mean + (1 - _SMOOTHING) * loss
            smoothed = mean / (1 - _SMOOTHING ** (number + 1))
            if not math.isfinite(loss) or smoothed > _DIVERGED * best:
                break
            best = min(best, smoothed)
            found.append(Point(float(outputs["lr"]), loss, smoothed))
            progress.update()
    return found


def suggestion(points: Sequence[Point]) -> float | None:
    """A tenth of the rate at which the smoothed loss is smallest; None if it did not fall."""
    if len(points) < 2:
        return None
    best = min(points, key=lambda point: point.smoothed)
    return None if best.smoothed >= points[0].smoothed else best.lr / 10


def table(points: Sequence[Point], rows: int = 25) -> list[str]:
    """Rates and losses as rows, at most that many."""
    every = max(1, -(-len(points) // rows))
    return ["      lr      loss  smoothed", *(
        f"{point.lr:8.1e}  {point.loss:8.4f}  {point.smoothed:8.4f}" for point in points[::every]
    )]  # fmt: skip
