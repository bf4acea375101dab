"""What SIGINT and SIGTERM do to a run.

Training steps and the checkpoint after them are one piece of work: a signal during it is a request, honoured when the
step is done and saved (`Interrupts.deferred`). Everything else that a run does (reading data, building the graph,
evaluating, sampling) can be done again, so there a signal raises KeyboardInterrupt at once.

Python runs its signal handlers between two of its own instructions, and one call into TensorFlow can take minutes: it
may compile. The command line therefore watches for signals from a thread of its own too (`watch`).
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupts:
    """Whether a signal has asked the run to end."""

    def __init__(self) -> None:
        self.requested = False
        self._signalled = False

    def request(self) -> None:
        """Ask for it without a signal, from any thread: honoured when the work in hand is done."""
        self.requested = True

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Within it, the first signal only sets `requested`; a second one raises KeyboardInterrupt.

        In a thread other than the main one, where Python handles no signals, they stay the caller's.
        """

        def request(number: int, frame: FrameType | None) -> None:
            if self._signalled:
                raise KeyboardInterrupt
            self.requested = self._signalled = True

        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, request) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


@contextmanager
def termination_raises() -> Iterator[None]:
    """Within it SIGTERM raises KeyboardInterrupt where it would have ended the process, whose threads may be writing a
    checkpoint. In a thread other than the main one nothing changes.
    """
    ends = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    if ends:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        if ends:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextmanager
def watch() -> Iterator[None]:
    """Within it SIGTERM does what SIGINT does, the first of either is answered with a line on standard error, and the
    second ends the process at once, whatever it is doing. For the main thread of a process that is the run's own.
    """
    before = {number: signal.signal(number, signal.default_int_handler) for number in SIGNALS}
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    former = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    thread = threading.Thread(target=_answer, args=(reader,), name="signals", daemon=True)
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(former)
        os.close(writer)  # which ends the thread
        thread.join()
        os.close(reader)
        for number, handler in before.items():
            signal.signal(number, handler)


def _answer(reader: int) -> None:
    answered = False
    while received := os.read(reader, 1):
        if received[0] not in SIGNALS:
            continue
        if answered:
            os._exit(128 + received[0])  # the shell's status for a process that this signal ended
        answered = True
        name = signal.Signals(received[0]).name
        os.write(2, f"{name}: ending as soon as nothing is lost by it; once more ends at once\n".encode())
