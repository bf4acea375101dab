"""A connection between the chief and a worker that notices when the other end is gone.

TensorFlow's runtime does not: a worker whose chief is gone waits for ever, and a chief whose worker falls silent may
wait for TCP to give up, which takes about a quarter of an hour. So each worker has one more connection to the chief,
which carries JSON messages, a line each, and a sign of life in both directions.
"""

from __future__ import annotations

import contextlib
import json
import queue
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

BEAT_SECONDS = 2.0
SILENCE_SECONDS = 30.0  # without a sign of life the other end is taken for lost
_LONGEST = 1 << 20  # bytes of a message: who sends more is not one of us

Message = dict[str, Any]


class LinkLost(Exception):
    """The other end is gone; `str(error)` says how that showed."""


class Link:
    """Messages over a connected socket. A thread of its own receives them and beats."""

    def __init__(
        self,
        connection: socket.socket,
        *,
        beat: float = BEAT_SECONDS,
        silence: float = SILENCE_SECONDS,
        on_lost: Callable[[str], None] | None = None,
    ) -> None:
        """
        Args:
            connection: belongs to the link from now on.
            beat: seconds between two signs of life.
            silence: seconds without one from the other end after which it counts as lost.
            on_lost: called once, from the link's thread, with how the loss showed; not after `close`.
        """
        self.lost: str | None = None
        self.on_lost = on_lost
        self._socket, self._beat, self._silence = connection, beat, silence
        self._inbox: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        self._sending, self._closed = threading.Lock(), False
        connection.settimeout(beat / 2)
        with contextlib.suppress(OSError):  # not TCP
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=self._attend, name="cluster link", daemon=True).start()

    def send(self, **message: Any) -> None:
        """Send a message. That the other end is gone shows in `receive` and `on_lost`."""
        with self._sending, contextlib.suppress(OSError):
            self._socket.sendall(json.dumps(message).encode() + b"\n")

    def receive(self, seconds: float | None = None) -> Message:
        """The next message, beats left out.

        Raises:
            LinkLost: there will be none, or none came in that time.
        """
        try:
            message = self._inbox.get(timeout=seconds)
        except queue.Empty:
            raise LinkLost(f"no answer in {seconds:.0f} s") from None
        if message is None:
            self._inbox.put(None)  # for the next who asks
            raise LinkLost(self.lost)
        return message

    def close(self) -> None:
        """End the connection."""
        self._closed = True
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _attend(self) -> None:
        try:
            self._exchange()
        except LinkLost as lost:
            self.lost = str(lost)
        except ConnectionError:  # it ended with some of our beats unread
            self.lost = "the connection was closed"
        except OSError as error:  # such as EHOSTUNREACH, or that it was closed here
            self.lost = f"the connection failed: {error.strerror or error}"
        self._inbox.put(None)
        if self.on_lost is not None and not self._closed:
            self.on_lost(str(self.lost))

    def _exchange(self) -> None:
        unread, heard, beaten = b"", time.monotonic(), 0.0
        while True:
            if time.monotonic() - beaten >= self._beat:
                self.send()
                beaten = time.monotonic()
            try:
                data = self._socket.recv(1 << 16)
            except TimeoutError:
                if time.monotonic() - heard > self._silence:
                    raise LinkLost(f"no sign of life for {self._silence:.0f} s") from None
                continue
            if not data:
                raise LinkLost("the connection was closed")
            heard = time.monotonic()
            *lines, unread = (unread + data).split(b"\n")
            for line in lines:
                self._take(line)
            if len(unread) > _LONGEST:
                raise LinkLost("what it sends is not of this program")

    def _take(self, line: bytes) -> None:
        try:
            message = json.loads(line)
        except (ValueError, RecursionError):
            message = None
        if not isinstance(message, dict):
            raise LinkLost("what it sends is not of this program")
        if message:  # an empty one is a beat
            self._inbox.put(message)
