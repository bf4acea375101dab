"""Tells another process that this one is alive and makes progress.

The working process calls `worked` whenever a piece of work is done. Once `start` has been called, a thread writes
two counters to a file every second: its own beats and the pieces of work. A watcher reads the file and notes, by its
own clock, when each counter last changed. A stopped process changes neither; a hung one only beats.
"""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field

from gpt_mesh.storage import files

SECONDS = 1.0

_work = 0


def worked() -> None:
    """A piece of work is done: a step, a batch, a file. Cheap enough for inner loops, and for any thread."""
    global _work
    _work += 1


def start(path: str) -> None:
    """Write the counters to `path` (a local file) until the process ends."""
    threading.Thread(target=_beat, args=(path,), name="heartbeat", daemon=True).start()


def _beat(path: str) -> None:
    beats = 0
    while True:
        beats += 1
        with suppress(OSError):  # the work itself reports a full disk
            files.write_text(path, f"{beats} {_work}\n")
        time.sleep(SECONDS)


@dataclass
class Watch:
    """Looks at another process's heartbeat.

    Attributes:
        path: of its file.
        beat_at, worked_at: when the counters last changed, in `time.monotonic()`; at first when watching began.
        begun: whether there has been any beat.
    """

    path: str
    beat_at: float = field(default_factory=lambda: time.monotonic())
    worked_at: float = field(default_factory=lambda: time.monotonic())
    begun: bool = False
    _beats: int = 0
    _work: int = 0

    def look(self) -> None:
        """Read the file, and note what has changed."""
        try:
            with open(self.path, encoding="ascii") as file:
                beats, work = map(int, file.read().split())
        except (OSError, ValueError):
            return
        now = time.monotonic()
        if beats != self._beats:
            self._beats, self.beat_at, self.begun = beats, now, True
        if work != self._work:
            self._work, self.worked_at = work, now
