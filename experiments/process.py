"""Child processes: one start of main.py, and the user's shell commands."""

from __future__ import annotations

import codecs
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

LAUNCHER = Path(__file__).with_name("child.py")
TAIL = 64 * 1024  # characters of standard error that are kept to explain why a process ended
OUTPUT_SECONDS = 5.0  # to wait for the last output: a grandchild in its own session may hold the pipe open
TRACEBACK = "Traceback (most recent call last):"


class ProcessGroup:
    """A process in its own session and process group: a terminal's Ctrl-C reaches it only through `send`."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        """`process`: started with `start_new_session`."""
        self._process = process

    @property
    def status(self) -> int | None:
        """The exit status, negative for the signal that ended it; None while it runs."""
        return self._process.poll()

    def send(self, number: int) -> None:
        """Send it this signal, if it runs."""
        with suppress(ProcessLookupError):
            self._process.send_signal(number)
            self._process.send_signal(signal.SIGCONT)  # a stopped process answers nothing

    def kill(self) -> None:
        """Kill its whole process group."""
        with suppress(ProcessLookupError, PermissionError):  # macOS raises the latter for a group of zombies
            os.killpg(self._process.pid, signal.SIGKILL)

    def wait(self, seconds: float | None = None) -> bool:
        """Wait, forever by default; returns whether it has ended."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)
        return self._process.poll() is not None


class Command(ProcessGroup):
    """A shell command of the user. Signals go to its whole process group."""

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


class Child(ProcessGroup):
    """main.py with these flags. Its output is forwarded."""

    def __init__(self, flags: Sequence[str], heartbeat: str) -> None:
        """`heartbeat`: the file for `storage.heartbeat`."""
        command = [sys.executable, "-u", str(LAUNCHER), str(os.getpid()), heartbeat, *flags]
        super().__init__(
            subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True, bufsize=0
            )
        )
        self._tail = ""
        assert self._process.stdout is not None and self._process.stderr is not None
        self._threads = [
            threading.Thread(target=self._forward, args=pair, daemon=True)
            for pair in ((self._process.stdout, "stdout"), (self._process.stderr, "stderr"))
        ]
        for thread in self._threads:
            thread.start()

    def end(self, grace: float) -> None:
        """Ask it to save and end, if it runs, and wait `grace` seconds; then kill its process group."""
        if self.status is None:
            self.send(signal.SIGTERM)
            self.wait(grace)
        self.kill()
        self._process.wait()
        for thread in self._threads:
            thread.join(OUTPUT_SECONDS)

    def explanation(self) -> str:
        """Why it ended, from its standard error: a traceback, an error line, or the last line."""
        start = self._tail.rfind("\n" + TRACEBACK) + 1
        if start or self._tail.startswith(TRACEBACK):
            return self._tail[start:].strip()
        lines = [line for line in self._tail.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("error: ")]
        return (errors or lines or [""])[-1]

    def _forward(self, source: IO[bytes], target: str) -> None:
        decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        while data := source.read(65536):
            text = decode(data)
            if target == "stderr":
                self._tail = (self._tail + text)[-TAIL:]
            stream = getattr(sys, target)  # looked up each time: Sacred replaces it
            with suppress(OSError, ValueError):
                stream.write(text)
                stream.flush()
