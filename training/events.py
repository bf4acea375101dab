"""Events that training reports to the program that called it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Event:
    """Something that a run has logged.

    Attributes:
        kind: "metrics", every `log_interval` steps: a row of `metrics.jsonl`; "evaluation": a row of `eval.jsonl`;
            "samples": `text` and `path`.
        step: training steps done.
        values: by name.
    """

    kind: Literal["metrics", "evaluation", "samples"]
    step: int
    values: Mapping[str, Any]


# Called with each event. If it returns True, the run ends after the current step, with a checkpoint.
EventHandler = Callable[[Event], object]
