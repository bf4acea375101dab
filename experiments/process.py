"""Processes that are run, watched and ended: one life of main.py, and commands of the user's."""

from __future__ import annotations

import codecs
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

LAUNCHER = Path(__file__).with_name("child.py")
TAIL = 64 * 1024  # characters of standard error that are kept to explain an end
OUTPUT_SECONDS = 5.0  # for the last of the output, which a process in a session of its own may hold open
TRACEBACK = "Traceback (most recent call last):"
# What storage/progress.py's `alive` prints, from a thread that goes on where the one that works hangs. It tells when
# the work began that it is about.
ALIVE = re.compile(r": (?:(\d+):)?(\d+):(\d\d) so far$")


class Group:
    """A process in a session, and so a process group, of its own: a terminal's Ctrl-C reaches it only by `send`."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        """`process`: started with `start_new_session`."""
        self._process = process

    @property
    def status(self) -> int | None:
        """The exit status, negative for the signal that ended it; None while it runs."""
        return self._process.poll()

    def send(self, number: int) -> None:
        """Give it this signal, if it runs."""
        with suppress(ProcessLookupError):
            self._process.send_signal(number)
            self._process.send_signal(signal.SIGCONT)  # a stopped process answers nothing

    def kill(self) -> None:
        """End it, and what it started and left behind, at once."""
        with suppress(ProcessLookupError, PermissionError):  # macOS answers with the latter for a group of the dead
            os.killpg(self._process.pid, signal.SIGKILL)

    def wait(self, seconds: float | None = None) -> bool:
        """Whether it ended within that time."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)
        return self._process.poll() is not None


class Command(Group):
    """A shell command of the user's; signals go to all that it started."""

    def __init__(self, command: str, environment: Mapping[str, str]) -> None:
        super().__init__(
            subprocess.Popen(
                command, shell=True, env=dict(environment), stdin=subprocess.DEVNULL, start_new_session=True
            )
        )

    def send(self, number: int) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)
            os.killpg(self._process.pid, signal.SIGCONT)


class Child(Group):
    """main.py with these flags. Its output is passed on, and looked through for signs of life.

    Attributes:
        last_output: when anything came, in `time.monotonic()`; None until then.
        last_sign: when it last said something that shows that the work goes on.
    """

    def __init__(self, flags: Sequence[str]) -> None:
        command = [sys.executable, "-u", str(LAUNCHER), str(os.getpid()), *flags]
        super().__init__(
            subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True, bufsize=0
            )
        )
        self.last_output: float | None = None
        self.last_sign = float("-inf")
        self._tail = ""
        assert self._process.stdout is not None and self._process.stderr is not None
        self._threads = [
            threading.Thread(target=self._pass_on, args=pair, daemon=True)
            for pair in ((self._process.stdout, "stdout"), (self._process.stderr, "stderr"))
        ]
        for thread in self._threads:
            thread.start()

    def end(self, grace: float) -> None:
        """Ask it to save and end, if it runs; kill it if it does not, and in any case what it leaves behind."""
        if self.status is None:
            self.send(signal.SIGTERM)
            self.wait(grace)
        self.kill()
        self._process.wait()
        for thread in self._threads:
            thread.join(OUTPUT_SECONDS)

    def explanation(self) -> str:
        """Why it ended, from its standard error: a traceback, or its last line."""
        start = self._tail.rfind("\n" + TRACEBACK) + 1
        if start or self._tail.startswith(TRACEBACK):
            return self._tail[start:].strip()
        lines = [line for line in self._tail.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("error: ")]
        return (errors or lines or [""])[-1]

    def _pass_on(self, source: IO[bytes], target: str) -> None:
        decode, begun = codecs.getincrementaldecoder("utf-8")("replace").decode, ""
        while data := source.read(65536):
            text = decode(data)
            *lines, begun = re.split(r"[\r\n]", begun + text)
            self._look_at([line for line in lines if line.strip()])
            if target == "stderr":
                self._tail = (self._tail + text)[-TAIL:]
            stream = getattr(sys, target)  # looked up each time: Sacred puts its own in place
            with suppress(OSError, ValueError):
                stream.write(text)
                stream.flush()

    def _look_at(self, lines: Sequence[str]) -> None:
        now = time.monotonic()
        self.last_output = now
        for line in lines:
            found = ALIVE.search(line)
            hours, minutes, seconds = (int(part or 0) for part in found.groups()) if found else (0, 0, 0)
            self.last_sign = max(self.last_sign, now - 3600 * hours - 60 * minutes - seconds)
