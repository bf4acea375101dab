"""A connection between the chief and a worker that detects when the other side is lost.

TensorFlow's runtime does not: a worker whose chief is gone waits forever, and a chief whose worker is unreachable may
wait for TCP's timeout of about 15 minutes. So each worker has another connection to the chief, which carries JSON
messages, one per line, and heartbeats in both directions.
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
SILENCE_SECONDS = 30.0  # without a heartbeat for this time the other side counts as lost
_MAX_MESSAGE = 1 << 20  # maximum bytes of a message; longer ones are not from this program

Message = dict[str, Any]


class LinkLost(Exception):
    """The other side is lost; `str(error)` is the reason."""


class Link:
    """Messages over a connected socket. A separate thread receives them and sends heartbeats."""

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
            connection: owned by the link from now on.
            beat: seconds between heartbeats.
            silence: seconds without a heartbeat after which the other side counts as lost.
            on_lost: called once, in the link's thread, with the reason; not after `close`.
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
        """Send a message. If the other side is lost, `receive` and `on_lost` report it."""
        with self._sending, contextlib.suppress(OSError):
            self._socket.sendall(json.dumps(message).encode() + b"\n")

    def receive(self, seconds: float | None = None) -> Message:
        """The next message that is not a heartbeat.

        Raises:
            LinkLost: the other side is lost, or no message came in this time.
        """
        try:
            message = self._inbox.get(timeout=seconds)
        except queue.Empty:
            raise LinkLost(f"no answer in {seconds:.0f} s") from None
        if message is None:
            self._inbox.put(None)  # for the next call
            raise LinkLost(self.lost)
        return message

    def close(self) -> None:
        """Close the connection."""
        self._closed = True
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _attend(self) -> None:
        try:
            self._exchange()
        except LinkLost as lost:
            self.lost = str(lost)
        except ConnectionError:  # it was closed while some of our heartbeats were unread
            self.lost = "the connection was closed"
        except OSError as error:  # such as EHOSTUNREACH, or closed on this side
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
            if len(unread) > _MAX_MESSAGE:
                raise LinkLost("its messages are not of this program")

    def _take(self, line: bytes) -> None:
        try:
            message = json.loads(line)
        except (ValueError, RecursionError):
            message = None
        if not isinstance(message, dict):
            raise LinkLost("its messages are not of this program")
        if message:  # an empty one is a heartbeat
            self._inbox.put(message)
