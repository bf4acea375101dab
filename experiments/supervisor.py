"""Keeps a run alive: starts main.py, follows what it writes, starts it again when it stalls or dies."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from gpt_mesh.experiments.process import TRACEBACK, Child, Command
from gpt_mesh.experiments.signals import Signals
from gpt_mesh.experiments.stream import Files, Row, Rows, newest_checkpoint
from gpt_mesh.storage import files as storage
from gpt_mesh.storage.progress import log

POLL_SECONDS = 0.5
URL_POLL_SECONDS = 10.0  # each look at a bucket is a request
START_SECONDS = 300.0  # until the first line: importing TensorFlow from a slow disk, on a busy machine
FIRST_ROW_SECONDS = 3600.0  # until the first row, while there is output: a large model compiles for very long
GRACE_SECONDS = 30.0  # for a stalled run to save what it can


class Listener(Protocol):
    """Who is told what a run does."""

    def row(self, row: Row) -> None:
        """A row of metrics.jsonl, or of eval.jsonl if it has a `task`."""

    def file(self, path: str) -> None:
        """A file of samples or a picture that the run wrote."""

    def restarted(self, count: int, reason: str) -> None:
        """The run is about to be started again."""


@dataclass(frozen=True)
class Plan:
    """What to run and how long to put up with.

    Attributes:
        flags: of main.py, as the user gave them.
        new, yes: whether `--new` and `--yes` are among them.
        directory: the run's model_path.
        train_steps: where training is complete; None for what is no training.
        heartbeat_timeout: seconds without a sign of life after which a run has stalled (`Supervisor._limit_passed`).
        max_restarts: after which the run has failed.
        before_restart: a shell command, such as one that makes the TPU anew.
    """

    flags: Sequence[str]
    directory: str
    train_steps: int | None
    heartbeat_timeout: float
    max_restarts: int
    before_restart: str | None = None
    new: bool = False
    yes: bool = False


@dataclass(frozen=True)
class Ending:
    """How the run ended: "completed", "interrupted" or "failed", the status to exit with, and why it failed."""

    status: str
    code: int
    reason: str = ""


@dataclass
class _Life:
    """What was seen of one start of main.py.

    Attributes:
        last_sign: when it last wrote something.
        logged: whether it has logged a step.
        stalled: the seconds that it was given, if it let them pass.
    """

    child: Child
    last_sign: float = field(default_factory=lambda: time.monotonic())
    logged: bool = False
    stalled: float | None = None


class Supervisor:
    """One run, over as many starts as it takes. The child gets the signals that come, and decides what they mean."""

    def __init__(self, plan: Plan, listener: Listener, signals: Signals) -> None:
        self.plan, self.listener, self.signals = plan, listener, signals
        self.restarts = 0
        directory, training = plan.directory, plan.train_steps is not None
        after = -1 if plan.new else newest_checkpoint(directory)
        paths = [os.path.join(directory, name) for name in ("metrics.jsonl", "eval.jsonl")]
        self._streams = [Rows(path, after if training else None) for path in paths]
        self._files = [
            Files(os.path.join(directory, "predictions"), lambda name: name.endswith(".txt")),
            Files(directory, lambda name: name.endswith((".png", ".svg"))),
        ]
        self._first_state = self._checkpoint_state()
        self._poll = URL_POLL_SECONDS if storage.is_url(directory) else POLL_SECONDS

    def run(self) -> Ending:
        while not self.signals.received:
            life = _Life(Child(self._flags()))
            try:
                with self.signals.passed_to(life.child):
                    self._follow(life)
            finally:
                life.child.end(GRACE_SECONDS)
            ending = self._judge(life)
            if ending is not None:
                return ending
        return Ending("interrupted", 128 + self.signals.received[0])

    def _flags(self) -> list[str]:
        """`--new` holds until the run has a checkpoint of its own: from there on it would delete what was won."""
        state = self._checkpoint_state()
        if self.restarts and state is not None and state != self._first_state:
            return [flag for flag in self.plan.flags if flag != "--new"]
        if self.restarts and self.plan.new and not self.plan.yes:
            return [*self.plan.flags, "--yes"]  # it was asked at the first start
        return list(self.plan.flags)

    def _checkpoint_state(self) -> object:
        try:
            return storage.stat(os.path.join(self.plan.directory, "checkpoint"))
        except storage.errors():
            return None

    def _follow(self, life: _Life) -> None:
        """Until the child has ended, one way or the other."""
        while not life.child.wait(self._poll):
            self._look(life)
            life.stalled = self._limit_passed(life)
            if life.stalled is not None:
                log.warning("no sign of life for %g s (--heartbeat_timeout): ending this run", life.stalled)
                life.child.end(min(GRACE_SECONDS, self.plan.heartbeat_timeout))
                break
        self._look(life)

    def _limit_passed(self, life: _Life) -> float | None:
        """The seconds that the child had for a sign of life, and let pass; None while it did not.

        The lines of a phase that cannot report how far it is ("sampling: 03:20 so far") come from a thread of their
        own, hang or not. They count as signs of the moment in which the phase began; that they come is only asked for
        until the first row, which may be long in coming.
        """
        now, timeout, output = time.monotonic(), self.plan.heartbeat_timeout, life.child.last_output
        sign = max(life.last_sign, life.child.last_sign)
        until_row = timeout if life.logged else max(timeout, FIRST_ROW_SECONDS)
        if now - sign > until_row:
            return until_row
        until_output = max(timeout, START_SECONDS) if output is None else timeout
        return until_output if now - max(sign, output or 0.0) > until_output else None

    def _look(self, life: _Life) -> None:
        metrics, _ = self._streams
        for stream in self._streams:
            for row in stream.new():
                self.listener.row(row)
            if stream.grew:
                life.last_sign, life.logged = time.monotonic(), life.logged or stream is metrics
        for files in self._files:
            for path in files.new():
                self.listener.file(path)
            if files.changed:
                life.last_sign = time.monotonic()

    def _judge(self, life: _Life) -> Ending | None:
        """How the run ended; None if it goes on with another start."""
        status = life.child.status
        assert status is not None
        if self.signals.received:
            done = status == 0 and self._complete()
            return Ending("completed" if done else "interrupted", status if status >= 0 else 128 - status)
        if life.stalled is not None:
            return self._again(f"stalled: no sign of life for {life.stalled:g} s", 1)
        if status == 0:
            return Ending("completed" if self._complete() else "interrupted", 0)
        if status in (130, 143):  # somebody else's Ctrl-C or SIGTERM
            return Ending("interrupted", status)
        if status < 0:
            return self._again(f"ended by {signal.Signals(-status).name}", 128 - status)
        why = life.child.explanation()
        hopeless = not life.logged and self.plan.before_restart is None
        if TRACEBACK not in why or hopeless:  # what the user gave cannot work, or it would end there again
            return Ending("failed", status, why)
        return self._again(why, status)

    def _complete(self) -> bool:
        return self.plan.train_steps is None or newest_checkpoint(self.plan.directory) >= self.plan.train_steps

    def _again(self, reason: str, code: int) -> Ending | None:
        if self.restarts >= self.plan.max_restarts:
            return Ending("failed", code, f"{reason}\n({self.restarts} restarts were made, as --max_restarts allows)")
        self.restarts += 1
        step = newest_checkpoint(self.plan.directory)
        for stream in self._streams:
            stream.rewound(step)
        where = f"from step {step}" if step >= 0 else "from the beginning"
        last = reason.splitlines()[-1]
        log.warning("%s; restart %d of %d, %s", last, self.restarts, self.plan.max_restarts, where)
        self.listener.restarted(self.restarts, reason)
        if self.plan.before_restart is not None:
            failure = self._hook(self.plan.before_restart)
            if failure is not None and not self.signals.received:
                return Ending("failed", code, f"{reason}\n{failure}")
        return None

    def _hook(self, command: str) -> str | None:
        """Run the user's command; returns what went wrong."""
        log.info("before the restart: %s", command)
        hook = Command(command, {**os.environ, "RESTART": str(self.restarts)})
        with self.signals.passed_to(hook):
            hook.wait()
        return f"--before_restart {command}: ended with status {hook.status}" if hook.status else None
