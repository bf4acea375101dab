"""Connections: how many there may be, and for how long one may keep the server waiting."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

FULL = b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n"


@dataclass
class ConnectionLimits:
    """Limits of connections, and how many are open.

    Attributes:
        each: connections of one client, which is an address.
        total: connections of all clients.
        header_seconds: in which the headers of a request must arrive, once it or the connection has begun.
        write_seconds: for which a client may leave what was sent unread.
        open: connections of each client.
    """

    each: int
    total: int
    header_seconds: float = 20.0
    write_seconds: float = 60.0
    open: Counter[str] = field(default_factory=Counter)


class Timer:
    """Calls `action` once, `seconds` after it is started, unless it is stopped. Starting it again changes nothing."""

    def __init__(self, loop: asyncio.AbstractEventLoop, seconds: float, action: Callable[[], None]) -> None:
        self._loop, self._seconds, self._action = loop, seconds, action
        self._handle: asyncio.TimerHandle | None = None

    def start(self) -> None:
        if self._handle is None:
            self._handle = self._loop.call_later(self._seconds, self._action)

    def stop(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None


class Connection(H11Protocol):
    """A connection that is closed if its client neither asks nor reads. A request's body has a limit of its own."""

    def __init__(self, limits: ConnectionLimits, **given: Any) -> None:
        """`given`: what uvicorn passes to its protocols."""
        super().__init__(**given)
        self._limits, self._address, self._unread = limits, "", 0
        self._headers = Timer(self.loop, limits.header_seconds, self._abort)
        self._writing = Timer(self.loop, limits.write_seconds, self._check_reading)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        limits, self._address = self._limits, self.client[0] if self.client else ""
        limits.open[self._address] += 1
        # pause_writing is called as soon as the client reads more slowly than the server writes.
        transport.set_write_buffer_limits(high=0)
        if limits.open[self._address] > limits.each or limits.open.total() > limits.total:
            transport.write(FULL)
            transport.close()
            return
        self._headers.start()

    def connection_lost(self, exc: Exception | None) -> None:
        self._limits.open[self._address] -= 1
        self._limits.open += Counter()  # drops clients without connections
        self._headers.stop()
        self._writing.stop()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        if self._is_idle:
            self._headers.start()
        super().data_received(data)
        if not self._is_idle:
            self._headers.stop()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread = self.transport.get_write_buffer_size()
        self._writing.start()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._writing.stop()

    @property
    def _is_idle(self) -> bool:
        """Whether no request is being answered."""
        return self.cycle is None or self.cycle.response_complete

    def _check_reading(self) -> None:
        """Go on waiting for a client that has read something since the last look."""
        unread = self.transport.get_write_buffer_size()
        if unread >= self._unread:
            self._abort()
            return
        self._unread = unread
        self._writing.stop()
        self._writing.start()

    def _abort(self) -> None:
        self.transport.abort()
