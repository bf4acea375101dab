"""How far a script has come, on a terminal or in a log."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from tqdm import tqdm

_LINE_SECONDS = 10.0


class Progress:
    """Progress over bytes, with rate and time left, on standard error: a bar on a terminal, else a line now and then.

    >>> with Progress(total_bytes, "encoding") as progress:
    ...     progress.update(more_bytes)
    """

    def __init__(self, total: int, what: str) -> None:
        self.total, self.what, self.done = total, what, 0
        self._start = self._last = time.monotonic()
        self._bar = None
        if sys.stderr.isatty():
            self._bar = tqdm(total=total, desc=what, unit="B", unit_scale=True, dynamic_ncols=True)

    def update(self, size: int) -> None:
        self.done += size
        if self._bar is not None:
            self._bar.update(size)
        elif time.monotonic() - self._last >= _LINE_SECONDS:
            self._last = time.monotonic()
            print(self._line(), file=sys.stderr, flush=True)

    def _line(self) -> str:
        rate = self.done / max(time.monotonic() - self._start, 1e-9)
        left = tqdm.format_interval(max(self.total - self.done, 0) / rate) if rate else "?"
        done, total, speed = (tqdm.format_sizeof(value, "B") for value in (self.done, self.total, rate))
        return f"{self.what}: {done} of {total} ({self.done / max(self.total, 1):.0%}), {speed}/s, {left} left"

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()


class Share:
    """Tells how much of `whole` each part of `parts` is: the answers add up to `whole` when the parts do to `parts`."""

    def __init__(self, whole: int, parts: int) -> None:
        self._whole, self._parts, self._done = whole, parts, 0

    def of(self, size: int) -> int:
        before, self._done = self._done, self._done + size
        return self._whole * self._done // self._parts - self._whole * before // self._parts
