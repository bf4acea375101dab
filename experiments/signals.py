"""Signals of a tracked run: they go to whatever runs at the time, and the record is kept in every case."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Protocol

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PATIENCE = 3  # signals: the first asks, the second asks main.py to end at once, this one does not ask


class SignalReceiver(Protocol):
    """What runs in this process's place."""

    def send(self, number: int) -> None:
        """Give it this signal."""

    def kill(self) -> None:
        """End it, and what it started, without asking."""


class Signals:
    """Within it, signals that would end this process are kept in `received` and passed on.

    While nothing runs (the record is begun or ended) they wait, and only the third one ends this process.
    """

    def __init__(self) -> None:
        self.received: list[int] = []
        self._receiver: SignalReceiver | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        # What is ignored stays so: nohup means it.
        watched = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
        self._before = {number: signal.signal(number, self._take) for number in watched}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def passed_to(self, receiver: SignalReceiver) -> Iterator[None]:
        """Within it the receiver gets them, and first those that came while it was started."""
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # or one might be given to it twice
        self._receiver = receiver
        try:
            for number in self.received:
                self._pass_on(number)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        try:
            yield
        finally:
            self._receiver = None

    def _take(self, number: int, frame: FrameType | None) -> None:
        self.received.append(signal.SIGTERM if number == signal.SIGHUP else number)
        if self._receiver is not None:
            self._pass_on(self.received[-1])
        elif len(self.received) >= PATIENCE:
            raise KeyboardInterrupt

    def _pass_on(self, number: int) -> None:
        assert self._receiver is not None
        if len(self.received) < PATIENCE:
            self._receiver.send(number)
        else:
            self._receiver.kill()
