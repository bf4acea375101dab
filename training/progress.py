"""How far a run has come: a bar on a terminal, plain lines in a log."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

LINE_SECONDS = 10.0

log = logging.getLogger("gpt")
T = TypeVar("T")


class _Console(logging.Handler):
    """Writes to standard error around a progress bar, without breaking it."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stderr)


def set_up_logging() -> None:
    """Send the program's own messages to standard error. Called by the command line; a library user configures logging.
    """
    if not log.handlers:
        log.addHandler(_Console())
        log.setLevel(logging.INFO)
        log.propagate = False


class Progress:
    """A bar with rate and time left on a terminal; nothing elsewhere, where the caller logs lines."""

    def __init__(self, total: int, initial: int, what: str, unit: str) -> None:
        self._bar = tqdm(
            total=total,
            initial=initial,
            desc=what,
            unit=f" {unit}",
            dynamic_ncols=True,
            disable=not sys.stderr.isatty(),
            file=sys.stderr,
        )

    def update(self, **figures: str) -> None:
        """One more, with the latest figures beside the bar."""
        if figures:
            self._bar.set_postfix(figures, refresh=False)
        self._bar.update()

    def close(self) -> None:
        self._bar.close()


def track(items: Iterable[T], total: int, what: str, unit: str) -> Iterator[T]:
    """The items, with a bar that goes away at the end; in a log, a line every ten seconds."""
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
