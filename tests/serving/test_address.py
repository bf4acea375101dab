"""What --serve may be given, and who can reach the server there."""

from __future__ import annotations

import socket

import pytest

from gpt_mesh.errors import InputError
from gpt_mesh.serving.address import is_loopback, listen, url


@pytest.mark.parametrize("address", ["0", "127.0.0.1:0", ":0", "localhost:0"])
def test_without_a_host_only_this_machine_is_served(address: str) -> None:
    with listen(address) as bound:
        assert is_loopback(bound)
        assert url(bound).startswith(("http://127.0.0.1:", "http://[::1]:"))


def test_an_address_for_everyone_is_known_as_such() -> None:
    with listen("0.0.0.0:0") as bound:
        assert not is_loopback(bound)


def test_an_address_is_taken_as_soon_as_it_is_named() -> None:
    """Not minutes later, when what is to be served has been compiled."""
    with listen("127.0.0.1:0") as bound:
        address = url(bound).removeprefix("http://")
        with pytest.raises(InputError, match="Address already in use"):
            listen(address)


def test_a_socket_that_cannot_be_used_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[socket.socket] = []

    class Kept(socket.socket):
        def __init__(self, *arguments: int) -> None:
            super().__init__(*arguments)
            made.append(self)

    with listen("127.0.0.1:0") as bound:
        monkeypatch.setattr(socket, "socket", Kept)
        with pytest.raises(InputError):
            listen(url(bound).removeprefix("http://"))
    assert [one.fileno() for one in made] == [-1]
