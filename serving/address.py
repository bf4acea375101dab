"""Where the server listens."""

from __future__ import annotations

import ipaddress
import os
import re
import socket
from typing import Any

from gpt_mesh.errors import InputError

DEFAULT_ADDRESS = "127.0.0.1:8000"
FORM = r"(?:(?:\[([0-9a-fA-F:.%\w]+)\]|([^\[\]:]*)):)?([0-9]{1,5})"


def listen(address: str) -> socket.socket:
    """Open a listening socket at HOST:PORT, [IPv6]:PORT or PORT. It reserves the port; clients that connect early wait
    until the server runs.

    Raises:
        InputError: the address does not exist or is in use.
    """
    match = re.fullmatch(FORM, address)
    if match is None or int(match[3]) > 65535:
        raise InputError(f"--serve {address}: give HOST:PORT, such as {DEFAULT_ADDRESS}, or a port")
    host, port = match[1] or match[2] or "127.0.0.1", int(match[3])
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = _bound(socket.socket(family, kind, protocol), where)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"--serve {address}: cannot listen there ({reason}); give another address or port") from None
    return bound


def host(address: str) -> str | None:
    """The name or address of the host in an address that `listen` takes; None: there is none."""
    match = re.fullmatch(FORM, address)
    return None if match is None else match[1] or match[2] or None


def _bound(unbound: socket.socket, where: Any) -> socket.socket:
    try:
        if os.name == "posix":  # elsewhere this would let two servers have one port
            unbound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        unbound.bind(where)
        unbound.listen()  # two sockets may have one port while neither listens
    except OSError:
        unbound.close()
        raise
    return unbound


def url(bound: socket.socket) -> str:
    """The URL at which clients reach the server."""
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def is_loopback(bound: socket.socket) -> bool:
    """Whether only this machine can reach it."""
    return ipaddress.ip_address(bound.getsockname()[0].split("%")[0]).is_loopback
