"""How a run handles SIGINT and SIGTERM.

During a training step and the checkpoint after it, a signal is a request, honoured when the step is done and saved
(`Interrupts.deferred`). Everything else that a run does (reading data, building the graph, evaluation, sampling) can be
repeated, so there a signal raises KeyboardInterrupt immediately.

Python runs signal handlers between its own instructions, but one call into TensorFlow, which may compile, can take
minutes. Therefore the command line also watches for signals in a separate thread (`watch`).
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
    """Whether the run has been asked to end."""

    def __init__(self) -> None:
        self.requested = False
        self._signalled = False

    def request(self) -> None:
        """Ask the run to end, without a signal and from any thread. Honoured after the current step."""
        self.requested = True

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """In this context, the first signal only sets `requested`; a second one raises KeyboardInterrupt.

        Outside the main thread, where Python cannot handle signals, nothing changes.
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
    """In this context, a SIGTERM that would end the process, whose threads may be writing a checkpoint, raises
    KeyboardInterrupt instead. Outside the main thread nothing changes.
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
    """In this context, SIGTERM acts like SIGINT: the first signal prints a line to standard error, and the second ends
    the process immediately, whatever it is doing. For the main thread of a process that only runs this run.
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
        os.write(2, f"{name}: ending as soon as nothing is lost; a second signal ends immediately\n".encode())
