"""Connections whose clients do not ask, do not read, or are too many, to a server without a model."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from gpt_mesh.serving.address import listen
from gpt_mesh.serving.connections import Connection, ConnectionLimits

GET = b"GET /%s HTTP/1.1\r\nHost: localhost\r\n\r\n"
SECONDS = 0.6  # given to headers and to unread answers


async def short(request: Request) -> Response:
    return PlainTextResponse("short")


async def long(request: Request) -> Response:
    return PlainTextResponse("x" * 50_000_000)


@pytest.fixture
def limits() -> ConnectionLimits:
    return ConnectionLimits(each=3, total=4, header_seconds=SECONDS, write_seconds=SECONDS)


@pytest.fixture
def port(limits: ConnectionLimits) -> Iterator[int]:
    protocol: Any = partial(Connection, limits)
    app = Starlette(routes=[Route("/short", short), Route("/long", long)])
    with listen("0.0.0.0:0") as bound:
        server = uvicorn.Server(uvicorn.Config(app, http=protocol, loop="asyncio", ws="none", log_config=None))
        thread = threading.Thread(target=server.run, args=([bound],))
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield int(bound.getsockname()[1])
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()
    assert not limits.open


def connect(port: int, address: str = "127.0.0.1") -> socket.socket:
    return socket.create_connection((address, port), timeout=20, source_address=(address, 0))


def closed(connection: socket.socket) -> bool:
    """Whether the server closes it; waits for that."""
    with contextlib.suppress(ConnectionError):
        while connection.recv(65536):
            pass
    return True


def is_answered(connection: socket.socket) -> bool:
    connection.sendall(GET % b"short")
    answer = b""
    while not answer.endswith(b"short") and (part := connection.recv(65536)):
        answer += part
    return answer.startswith(b"HTTP/1.1 200")


def test_headers_that_do_not_end_close_the_connection(port: int) -> None:
    for beginning in (b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: localhost\r\n"):
        with connect(port) as connection:
            begin = time.monotonic()
            connection.sendall(beginning)
            assert closed(connection) and SECONDS * 0.8 < time.monotonic() - begin < 15


def test_a_header_now_and_then_does_not_keep_it_open(port: int) -> None:
    """Neither in the first request of a connection nor in a later one."""
    for earlier in (False, True):
        with connect(port) as connection:
            assert not earlier or is_answered(connection)
            begin = time.monotonic()
            with contextlib.suppress(ConnectionError):
                connection.sendall(b"GET / HTTP/1.1\r\n")
                while time.monotonic() - begin < 15:
                    connection.sendall(b"X: y\r\n")
                    time.sleep(0.05)
            assert time.monotonic() - begin < 10


def test_a_connection_that_asks_again_stays_open(port: int) -> None:
    with connect(port) as connection:
        for _ in range(4):
            assert is_answered(connection)
            time.sleep(SECONDS / 2)


def test_an_answer_that_is_not_read_closes_the_connection(port: int, limits: ConnectionLimits) -> None:
    with connect(port) as connection:
        connection.sendall(GET % b"long")
        until = time.monotonic() + 15
        while limits.open.total():
            assert time.monotonic() < until
            time.sleep(0.02)


def test_an_answer_that_is_read_slowly_arrives(port: int) -> None:
    with connect(port) as connection:
        connection.sendall(GET % b"long")
        begin, length = time.monotonic(), 0
        while length < 50_000_000:
            length += len(part := connection.recv(2_000_000))
            assert part
            time.sleep(0.02)
        assert time.monotonic() - begin > SECONDS / 2


def test_a_client_and_all_clients_have_so_many_connections(port: int) -> None:
    with contextlib.ExitStack() as stack:
        mine = [stack.enter_context(connect(port)) for _ in range(3)]
        assert all(is_answered(connection) for connection in mine)
        with connect(port) as one_more:
            assert one_more.recv(65536).startswith(b"HTTP/1.1 503") and closed(one_more)
        other = stack.enter_context(connect(port, "127.0.0.2"))
        assert is_answered(other)
        with connect(port, "127.0.0.3") as one_more:
            assert one_more.recv(65536).startswith(b"HTTP/1.1 503")
        mine.pop().close()
        until = time.monotonic() + 15
        while True:
            with connect(port, "127.0.0.3") as again, contextlib.suppress(ConnectionError):
                if is_answered(again):
                    break
            assert time.monotonic() < until
