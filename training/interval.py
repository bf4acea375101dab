"""What is summed up between two logged steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import tensorflow as tf


@dataclass
class Interval:
    """Sums since the last logged step. Kept in checkpoints, so that a resumed run logs the same averages."""

    steps: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    newest: dict[str, float] = field(default_factory=dict)
    pending: list[dict[str, tf.Tensor]] = field(default_factory=list)

    @staticmethod
    def of(state: Mapping[str, Any]) -> Interval:
        """What `state` gave. It did not always have `sums`."""
        steps = state.get("steps", 0)
        return Interval(steps, state.get("sums", {name: state[name] for name in ("loss", "nll") if name in state}))

    def fetch(self) -> None:
        """Wait for the steps that the device was given, and add what they computed."""
        if not self.pending:
            return
        # One tensor, and so one copy from the device: each would wait for all that the device was given.
        numbers = iter(tf.stack([value for outputs in self.pending for value in outputs.values()]).numpy().tolist())
        for outputs in self.pending:
            values = {name: next(numbers) for name in outputs}
            self.add(1, values, values)
        self.pending.clear()

    def add(self, steps: int, sums: Mapping[str, float], newest: Mapping[str, float]) -> None:
        """Steps that were done: what each value sums up to, and the last step's values."""
        self.steps += steps
        self.newest = dict(newest)
        for name in filter(is_averaged, sums):
            self.sums[name] = self.sums.get(name, 0.0) + sums[name]

    def values(self) -> dict[str, float]:
        """Means of the losses and of the experts' loads; of everything else, the last step's."""
        return self.newest | {name: total / self.steps for name, total in self.sums.items()}

    def state(self) -> dict[str, Any]:
        """What `of` takes; later steps leave it as it is."""
        return {"steps": self.steps, "sums": dict(self.sums)}


def is_averaged(name: str) -> bool:
    """Whether a mean over the interval is logged, and not the last step's value."""
    return name in ("loss", "nll", "balance_loss") or name.startswith("load/")
