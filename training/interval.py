"""Sums of metrics between two logged steps."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import tensorflow as tf

from gpt_mesh.objectives.objective import PARTS


@dataclass
class Interval:
    """Sums since the last logged step. Stored in checkpoints, so that a resumed run logs the same averages.

    Attributes:
        steps: how many steps were added, without those that were not finite.
        skipped: how many were not finite.
    """

    steps: int = 0
    skipped: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    newest: dict[str, float] = field(default_factory=dict)
    pending: list[dict[str, tf.Tensor]] = field(default_factory=list)

    @staticmethod
    def of(state: Mapping[str, Any]) -> Interval:
        """Restore from the result of `state`. In older checkpoints it lacks `sums`."""
        steps, skipped = state.get("steps", 0), state.get("skipped", 0)
        sums = state.get("sums", {name: state[name] for name in ("loss", "nll") if name in state})
        return Interval(steps, skipped, sums)

    def fetch(self) -> list[dict[str, float]]:
        """Wait for the pending steps and add their outputs, which are returned in order."""
        if not self.pending:
            return []
        # One tensor and thus one copy from the device: every copy waits for all work that is queued there.
        numbers = iter(tf.stack([value for outputs in self.pending for value in outputs.values()]).numpy().tolist())
        fetched = [{name: next(numbers) for name in outputs} for outputs in self.pending]
        for values in fetched:
            if is_finite(values):
                self.add(1, values, values)
            else:
                self.skipped += 1
                self.newest = self.newest or values
        self.pending.clear()
        return fetched

    def add(self, steps: int, sums: Mapping[str, float], newest: Mapping[str, float]) -> None:
        """Add completed steps: the sum of each value over them, and the values of the last step."""
        self.steps += steps
        self.newest = dict(newest)
        for name in filter(is_averaged, sums):
            self.sums[name] = self.sums.get(name, 0.0) + sums[name]

    def values(self) -> dict[str, float]:
        """The means of losses, expert loads and rewards; for everything else, the value of the last step."""
        found = self.newest | {name: total / self.steps for name, total in self.sums.items() if self.steps}
        for name in [name for name in found if name.endswith(PARTS)]:
            of, count = name.removesuffix(PARTS), found.pop(name)
            total = found.pop(of)
            if count:  # else there was no such example
                found[of] = total / count
        if {"rewards/chosen", "rewards/rejected"} <= found.keys() and "rewards/margin" not in found:
            found["rewards/margin"] = found["rewards/chosen"] - found["rewards/rejected"]
        return found

    def state(self) -> dict[str, Any]:
        """A copy of the state, for `of`."""
        skipped = {"skipped": self.skipped} if self.skipped else {}
        return {"steps": self.steps, "sums": dict(self.sums), **skipped}


def is_finite(values: Mapping[str, float]) -> bool:
    """Whether the loss and the gradients of a step are finite numbers."""
    return all(math.isfinite(values[name]) for name in ("loss", "grad_norm") if name in values)


def is_averaged(name: str) -> bool:
    """Whether the mean over the interval is logged instead of the last step's value."""
    return name in ("loss", "nll", "balance_loss", "kl") or name.startswith(("load/", "rewards/", "logps/"))
