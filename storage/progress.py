"""Progress of long work on standard error: a bar on a terminal or in a notebook, plain lines in a log."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TypeVar

from tqdm import tqdm

from gpt_mesh.storage import heartbeat

LINE_SECONDS = 20.0  # a log gets a line at least this often
BYTES = "B"

log = logging.getLogger("gpt")
T = TypeVar("T")


class Console(logging.Handler):
    """Writes to whatever standard error currently is, without breaking a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stderr)
        sys.stderr.flush()


def _in_notebook() -> bool:
    """Whether standard error is a notebook's cell, which shows a bar though it is no terminal."""
    return "ipykernel" in sys.modules and type(sys.stderr).__module__.startswith("ipykernel")


def set_up_logging() -> None:
    """Send the program's own messages to standard error, once."""
    if not log.handlers:
        log.addHandler(Console())
        log.setLevel(logging.INFO)
        log.propagate = False


class Progress:
    """Counts up to `total`: a bar with rate and remaining time on a terminal; in a log, a line if there was none for
    `LINE_SECONDS`.

    >>> with Progress(size, "encoding", BYTES) as progress:
    ...     progress.update(len(block))

    Attributes:
        done: the count.
    """

    def __init__(self, total: int, what: str, unit: str, *, done: int = 0, leave: bool = True) -> None:
        """
        Args:
            what: names the work, as in "training".
            unit: a plural such as "steps", or `BYTES`.
            done: where the count starts.
            leave: whether the finished bar stays on the terminal.
        """
        self._total, self.done, self._what, self._unit = total, done, what, unit
        self._bar = tqdm(
            total=total,
            initial=done,
            desc=what,
            unit=unit if unit == BYTES else f" {unit}",
            unit_scale=unit == BYTES,
            dynamic_ncols=not _in_notebook(),
            ncols=100 if _in_notebook() else None,
            leave=leave,
            disable=not (sys.stderr.isatty() or (leave and _in_notebook())),  # a cell shows one bar at a time
            file=sys.stderr,
        )
        self.restart()

    def restart(self) -> None:
        """Measure rate and silence from now on: another line was logged, or the time until now was not spent on it."""
        heartbeat.worked()
        self._since, self._then = time.monotonic(), self.done

    def show(self, **figures: str) -> None:
        """Show the latest figures beside the bar."""
        self._bar.set_postfix(figures, refresh=False)

    def update(self, count: int = 1) -> None:
        """Add to the count."""
        heartbeat.worked()
        self.done += count
        self._bar.update(count)
        if self._bar.disable and time.monotonic() - self._since >= LINE_SECONDS:
            log.info("%s", self._line())
            self.restart()

    def _line(self) -> str:
        rate = (self.done - self._then) / max(time.monotonic() - self._since, 1e-9)
        left = tqdm.format_interval(max(self._total - self.done, 0) / rate) if rate else "?"
        if self._unit == BYTES:
            done, total, speed = (tqdm.format_sizeof(value, "B") for value in (self.done, self._total, rate))
            counts = f"{done} of {total} ({self.done / max(self._total, 1):.0%})"
            return f"{self._what}: {counts}, {speed}/s, {left} left"
        speed = f"{rate:.2f} {self._unit}/s" if rate >= 1 else f"{1 / rate:.1f} s a {self._unit.removesuffix('s')}"
        return f"{self._what}: {self.done} of {self._total} {self._unit}, {speed}, {left} left"

    def close(self) -> None:
        self._bar.close()

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def track(items: Iterable[T], total: int, what: str, unit: str) -> Iterator[T]:
    """Yield the items, with a bar that disappears at the end, or lines in a log."""
    with Progress(total, what, unit, leave=False) as progress:
        for item in items:
            yield item
            progress.update()


@contextmanager
def alive(what: str) -> Iterator[None]:
    """Log a line every `LINE_SECONDS` while the block runs: for one long call, which cannot report by itself."""
    start, over = time.monotonic(), threading.Event()

    def tell() -> None:
        while not over.wait(LINE_SECONDS):
            log.info("%s: %s so far", what, tqdm.format_interval(time.monotonic() - start))

    thread = threading.Thread(target=tell, name="alive", daemon=True)
    thread.start()
    heartbeat.worked()
    try:
        yield
    finally:
        over.set()
        thread.join()
        heartbeat.worked()


class Share:
    """Splits `whole` in proportion to parts that add up to `parts`; the shares then add up to `whole`."""

    def __init__(self, whole: int, parts: int) -> None:
        self._whole, self._parts, self._done = whole, parts, 0

    def of(self, size: int) -> int:
        before, self._done = self._done, self._done + size
        return self._whole * self._done // self._parts - self._whole * before // self._parts
