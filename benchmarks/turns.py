"""Competitors of a benchmark, each in a separate process, that take turns: one block of work each, round after round.

On a machine whose speed changes from minute to minute, all competitors of a round meet the same conditions, so ratios
within a round mean more than the times. Plain Python, so that peers can use it in an environment without TensorFlow.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

HIDDEN = ("PYTHONPATH", "LD_LIBRARY_PATH")  # may be set for TensorFlow alone


@dataclass
class Competitor:
    """A process that measures itself, block by block.

    Attributes:
        name: in the table.
        command: its program and arguments; it calls `take_turns`.
        peer: whether it belongs to another environment than this one.
        facts: what it said when it was ready.
        rates: what each of its blocks gave, such as tokens a second.
        failed: why it has no rates; "" otherwise.
    """

    name: str
    command: Sequence[str]
    peer: bool = False
    facts: dict[str, Any] = field(default_factory=dict)
    rates: list[float] = field(default_factory=list)
    failed: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.rates)

    def row(self) -> dict[str, Any]:
        """What is kept of it."""
        if self.failed:
            return {"failed": self.failed}
        summary = {"median": self.median, "low": min(self.rates), "high": max(self.rates)}
        return {**summary, "rates": self.rates, **self.facts}


def take_turns(block: Callable[[], float], facts: Callable[[], Mapping[str, Any]]) -> None:
    """A competitor's side: run a block, which returns its rate, for each line that comes in.

    `facts`: what to tell of it, asked for when it is ready and again at the end (peak memory grows).
    """
    print(json.dumps({"ready": dict(facts())}), flush=True)
    for _ in sys.stdin:
        print(json.dumps({"rate": block()}), flush=True)
    print(json.dumps({"end": dict(facts())}), flush=True)


def contest(competitors: Sequence[Competitor], rounds: int, *, together: bool = True) -> None:
    """Fill in facts and rates.

    Args:
        competitors: who takes part; those that fail are marked so, and the others go on.
        rounds: blocks of each.
        together: all are alive at once and take turns; else one after the other, for devices that hold only one.
    """
    for group in [competitors] if together else [[one] for one in competitors]:
        running = [(one, _start(one)) for one in group]
        for one, process in running:
            _listen(one, process, "ready")
            print(f"  {one.name}: {one.failed or 'ready'}", file=sys.stderr, flush=True)
        for _ in range(rounds):
            for one, process in running:
                if not one.failed:
                    _ask(one, process)
        for one, process in running:
            if process.stdin is not None:
                process.stdin.close()
            if not one.failed:
                _listen(one, process, "end")
            process.wait()


def _start(one: Competitor) -> subprocess.Popen[str]:
    environment = {k: v for k, v in os.environ.items() if not (one.peer and k in HIDDEN)}
    return subprocess.Popen(one.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)


def _ask(one: Competitor, process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    try:
        process.stdin.write("go\n")
        process.stdin.flush()
    except BrokenPipeError:
        one.failed = "ended early"
        return
    _listen(one, process, "rate")


def _listen(one: Competitor, process: subprocess.Popen[str], kind: str) -> None:
    """Take in the next message, leaving out what libraries print."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(f'{{"{kind}":'):
            value = json.loads(line)[kind]
            if kind == "rate":
                one.rates.append(value)
            else:
                one.facts |= value
            return
    one.failed = f"ended with status {process.wait()}"
