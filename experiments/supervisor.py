"""Supervises a run: starts main.py, follows its output, and restarts it when it stalls or dies."""

from __future__ import annotations

import os
import signal
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from gpt_mesh.experiments.process import TRACEBACK, Child, Command
from gpt_mesh.experiments.signals import Signals
from gpt_mesh.experiments.stream import FileStream, RowStream, newest_checkpoint
from gpt_mesh.storage import files as storage
from gpt_mesh.storage.heartbeat import Watch
from gpt_mesh.storage.json_lines import Row
from gpt_mesh.storage.progress import log

POLL_SECONDS = 0.5
URL_POLL_SECONDS = 10.0  # each poll of a bucket is a request
START_SECONDS = 300.0  # until the first heartbeat: the disk may be slow, and the machine busy
FIRST_ROW_SECONDS = 3600.0  # until the first row, while there are heartbeats: a large model takes long to compile
GRACE_SECONDS = 30.0  # time for a stalled run to save


class Listener(Protocol):
    """Receives the events of a run."""

    def row(self, row: Row) -> None:
        """A row of metrics.jsonl, or of eval.jsonl if it has a `task`."""

    def file(self, path: str) -> None:
        """A file of samples or an image that the run wrote."""

    def restarted(self, count: int, reason: str) -> None:
        """The run is about to be restarted."""


@dataclass(frozen=True)
class Plan:
    """What to run, and when to restart it.

    Attributes:
        flags: of main.py, as the user gave them.
        new, yes: whether `--new` and `--yes` are among them.
        directory: the run's model_path.
        train_steps: where training is complete; None if it is not training.
        heartbeat_timeout: seconds without progress after which a run has stalled.
        max_restarts: after which the run has failed.
        before_restart: a shell command, such as one that recreates the TPU.
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
class _Start:
    """One start of main.py.

    Attributes:
        logged: whether it has logged a step.
        stalled: the seconds without progress that it was allowed, if it exceeded them.
    """

    child: Child
    watch: Watch
    logged: bool = False
    stalled: float | None = None


class Supervisor:
    """A run, with its restarts. Signals are passed to the child, which handles them."""

    def __init__(self, plan: Plan, listener: Listener, signals: Signals) -> None:
        self.plan, self.listener, self.signals = plan, listener, signals
        self.restarts = 0
        directory, training = plan.directory, plan.train_steps is not None
        after = -1 if plan.new else newest_checkpoint(directory)
        paths = [os.path.join(directory, name) for name in ("metrics.jsonl", "eval.jsonl")]
        self._streams = [RowStream(path, after if training else None) for path in paths]
        self._files = [
            FileStream(os.path.join(directory, "predictions"), lambda name: name.endswith(".txt")),
            FileStream(directory, lambda name: name.endswith((".png", ".svg"))),
        ]
        self._first_state = self._checkpoint_state()
        self._poll = URL_POLL_SECONDS if storage.is_url(directory) else POLL_SECONDS

    def run(self) -> Ending:
        while not self.signals.received:
            with tempfile.TemporaryDirectory(prefix="gpt-mesh-") as folder:
                heartbeat = os.path.join(folder, "heartbeat")
                start = _Start(Child(self._flags(), heartbeat), Watch(heartbeat))
                try:
                    with self.signals.passed_to(start.child):
                        self._follow(start)
                finally:
                    start.child.end(GRACE_SECONDS)
            ending = self._judge(start)
            if ending is not None:
                return ending
        return Ending("interrupted", 128 + self.signals.received[0])

    def _flags(self) -> list[str]:
        """`--new` is passed until the run has a checkpoint of its own, which it would delete."""
        state = self._checkpoint_state()
        if self.restarts and state is not None and state != self._first_state:
            return [flag for flag in self.plan.flags if flag != "--new"]
        if self.restarts and self.plan.new and not self.plan.yes:
            return [*self.plan.flags, "--yes"]  # the user agreed at the first start
        return list(self.plan.flags)

    def _checkpoint_state(self) -> object:
        try:
            return storage.stat(os.path.join(self.plan.directory, "checkpoint"))
        except storage.errors():
            return None

    def _follow(self, start: _Start) -> None:
        """Follow the child until it ends, or end it if it stalls."""
        while not start.child.wait(self._poll):
            self._look(start)
            start.stalled = self._exceeded(start, self.plan.heartbeat_timeout)
            if start.stalled is not None:
                log.warning("no progress for %g s (--heartbeat_timeout): ending this run", start.stalled)
                start.child.end(min(GRACE_SECONDS, self.plan.heartbeat_timeout))
                break
        self._look(start)

    @staticmethod
    def _exceeded(start: _Start, timeout: float) -> float | None:
        """The seconds that the child was allowed to pass without progress, if it exceeded them.

        A child that hangs still beats; one that is stopped does not. Before the first row only beats are required, for
        an hour, since compiling may take long.
        """
        start.watch.look()
        now = time.monotonic()
        work = timeout if start.logged else max(timeout, FIRST_ROW_SECONDS)
        if now - start.watch.worked_at > work:
            return work
        beat = timeout if start.watch.begun else max(timeout, START_SECONDS)
        return beat if now - start.watch.beat_at > beat else None

    def _look(self, start: _Start) -> None:
        for stream in self._streams:
            for row in stream.new():
                self.listener.row(row)
        start.logged = start.logged or self._streams[0].grew
        for files in self._files:
            for path in files.new():
                self.listener.file(path)

    def _judge(self, start: _Start) -> Ending | None:
        """How the run ended; None if it is restarted."""
        status = start.child.status
        assert status is not None
        if self.signals.received:
            done = status == 0 and self._complete()
            return Ending("completed" if done else "interrupted", status if status >= 0 else 128 - status)
        if start.stalled is not None:
            return self._again(f"stalled: no progress for {start.stalled:g} s", 1)
        if status == 0:
            return Ending("completed" if self._complete() else "interrupted", 0)
        if status in (130, 143):  # someone else sent Ctrl-C or SIGTERM
            return Ending("interrupted", status)
        if status < 0:
            return self._again(f"ended by {signal.Signals(-status).name}", 128 - status)
        why = start.child.explanation()
        hopeless = not start.logged and self.plan.before_restart is None
        if TRACEBACK not in why or hopeless:  # invalid input, or the same failure would repeat
            return Ending("failed", status, why)
        return self._again(why, status)

    def _complete(self) -> bool:
        return self.plan.train_steps is None or newest_checkpoint(self.plan.directory) >= self.plan.train_steps

    def _again(self, reason: str, code: int) -> Ending | None:
        if self.restarts >= self.plan.max_restarts:
            return Ending("failed", code, f"{reason}\n(after {self.restarts} restarts, as --max_restarts allows)")
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
        """Run the user's command; returns an error message if it failed."""
        log.info("before the restart: %s", command)
        hook = Command(command, {**os.environ, "RESTART": str(self.restarts)})
        with self.signals.passed_to(hook):
            hook.wait()
        return f"--before_restart {command}: ended with status {hook.status}" if hook.status else None
