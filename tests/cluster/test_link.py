"""A connection that notices when the other end is gone."""

from __future__ import annotations

import queue
import socket
import time
from collections.abc import Iterator

import pytest

from gpt_mesh.cluster.link import Link, LinkLost


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    first, second = socket.socketpair()
    with first, second:
        yield first, second


def test_messages_in_order_and_no_beats(ends: tuple[socket.socket, socket.socket]) -> None:
    here, there = (Link(end, beat=0.02) for end in ends)
    for i in range(3):
        here.send(number=i, text="ä\n")
        time.sleep(0.05)
    assert [there.receive(5) for _ in range(3)] == [{"number": i, "text": "ä\n"} for i in range(3)]
    with pytest.raises(LinkLost, match="no answer in 0 s"):
        there.receive(0.1)
    assert here.lost is None and there.lost is None
    here.close()
    there.close()


def test_a_message_may_come_in_pieces(ends: tuple[socket.socket, socket.socket]) -> None:
    link = Link(ends[0], beat=0.02)
    for piece in (b'{"a"', b': 1}\n\n'[:-1], b'{}\n{"b": 2}\n'):
        ends[1].sendall(piece)
        time.sleep(0.03)
    assert [link.receive(5), link.receive(5)] == [{"a": 1}, {"b": 2}]
    link.close()


def test_beats_keep_a_quiet_link_alive(ends: tuple[socket.socket, socket.socket]) -> None:
    here, there = (Link(end, beat=0.05, silence=0.5) for end in ends)
    time.sleep(1.5)
    assert here.lost is None and there.lost is None
    here.close()
    there.close()


def test_silence_is_a_loss(ends: tuple[socket.socket, socket.socket]) -> None:
    told: queue.SimpleQueue[str] = queue.SimpleQueue()
    begin = time.monotonic()
    link = Link(ends[0], beat=0.05, silence=0.3, on_lost=told.put)  # and nobody at the other end
    assert told.get(timeout=5) == "no sign of life for 0 s"
    assert 0.25 < time.monotonic() - begin < 3
    for _ in range(2):  # however often it is asked
        with pytest.raises(LinkLost, match="no sign of life"):
            link.receive(5)


def test_an_end_is_a_loss_at_once(ends: tuple[socket.socket, socket.socket]) -> None:
    told: queue.SimpleQueue[str] = queue.SimpleQueue()
    link = Link(ends[0], on_lost=told.put)
    ends[1].sendall(b'{"last": true}\n')
    ends[1].close()
    assert told.get(timeout=2) == link.lost == "the connection was closed"
    assert link.receive(5) == {"last": True}
    with pytest.raises(LinkLost):
        link.receive(5)


def test_closing_it_is_no_loss(ends: tuple[socket.socket, socket.socket]) -> None:
    told: queue.SimpleQueue[str] = queue.SimpleQueue()
    link = Link(ends[0], beat=0.05, on_lost=told.put)
    link.close()
    with pytest.raises(LinkLost):
        link.receive(5)
    assert told.empty()


@pytest.mark.parametrize("data", [b"GET / HTTP/1.1\r\n\r\n", b"[1]\n", b"\xff\n", b"x" * 2_000_000])
def test_what_other_programs_say(ends: tuple[socket.socket, socket.socket], data: bytes) -> None:
    link = Link(ends[0], beat=0.05)
    ends[1].settimeout(0.5)
    try:
        ends[1].sendall(data)
    except OSError:
        assert len(data) > 1_000_000  # the link does not read all of it
    with pytest.raises(LinkLost, match=r"not of this program|connection"):
        link.receive(5)
    link.close()
