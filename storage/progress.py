"""How far a run has come, on standard error: a bar on a terminal, plain lines in a log."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from tqdm import tqdm

LINE_SECONDS = 20.0  # a log shows a sign of life at least this often

log = logging.getLogger("gpt")
T = TypeVar("T")


class _Console(logging.Handler):
    """Writes to standard error around a progress bar, without breaking it."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stderr)
        sys.stderr.flush()


def set_up_logging() -> None:
    """Send the program's own messages to standard error. Called by the command line; a library user configures logging.
    """
    if not log.handlers:
        log.addHandler(_Console())
        log.setLevel(logging.INFO)
        log.propagate = False


class Progress:
    """Counts up to `total`: a bar with rate and time left on a terminal; in a log, a line when there was none for a
    while.
    """

    def __init__(self, total: int, initial: int, what: str, unit: str) -> None:
        self._total, self._done, self._what, self._unit = total, initial, what, unit
        self._bar = tqdm(
            total=total,
            initial=initial,
            desc=what,
            unit=f" {unit}",
            dynamic_ncols=True,
            disable=not sys.stderr.isatty(),
            file=sys.stderr,
        )
        self.restart()

    def restart(self) -> None:
        """Count rate and silence from now on: something else was logged, or what came before was no step."""
        self._since, self._done_then = time.monotonic(), self._done

    def show(self, **figures: str) -> None:
        """The latest figures, beside the bar."""
        self._bar.set_postfix(figures, refresh=False)

    def update(self) -> None:
        """One more."""
        self._done += 1
        self._bar.update()
        if self._bar.disable and time.monotonic() - self._since >= LINE_SECONDS:
            self._log_line()

    def _log_line(self) -> None:
        rate = (self._done - self._done_then) / (time.monotonic() - self._since)
        left = tqdm.format_interval((self._total - self._done) / rate)
        speed = f"{rate:.2f} {self._unit}/s" if rate >= 1 else f"{1 / rate:.1f} s a {self._unit.removesuffix('s')}"
        log.info("%s: %d of %d %s, %s, %s left", self._what, self._done, self._total, self._unit, speed, left)
        self.restart()

    def close(self) -> None:
        self._bar.close()


def track(items: Iterable[T], total: int, what: str, unit: str) -> Iterator[T]:
    """The items, with a bar that goes away at the end; in a log, a line now and then."""
    start = last = time.monotonic()
    with tqdm(
        items, total=total, desc=what, unit=f" {unit}", leave=False, dynamic_ncols=True, disable=not sys.stderr.isatty()
    ) as bar:
        for count, item in enumerate(bar, 1):
            yield item
            now = time.monotonic()
            if bar.disable and now - last >= LINE_SECONDS:
                last, rate = now, count / (now - start)
                log.info(
                    "%s: %d of %d %s, %s left", what, count, total, unit, tqdm.format_interval((total - count) / rate)
                )


@contextmanager
def alive(what: str) -> Iterator[None]:
    """Logs a line now and then while the block runs: for one long call, which cannot report by itself."""
    start, over = time.monotonic(), threading.Event()

    def tell() -> None:
        while not over.wait(LINE_SECONDS):
            log.info("%s: %s so far", what, tqdm.format_interval(time.monotonic() - start))

    thread = threading.Thread(target=tell, name="alive", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
