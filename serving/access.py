"""Who may use the server: the API key, and the names that the server answers to."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import os
import re
import socket
from collections.abc import Sequence

from gpt_mesh.errors import InputError, shown
from gpt_mesh.serving.address import is_loopback

API_KEY = "SERVE_API_KEY"  # in the environment, which other users of the machine cannot read
API_KEY_FILE = "SERVE_API_KEY_FILE"
LONGEST_KEY = 4096  # characters


def api_key() -> str | None:
    """The key that requests need, from the environment or the file named there; None: no key.

    Raises:
        InputError: both are given, or the file holds no key.
    """
    key, path = os.environ.get(API_KEY), os.environ.get(API_KEY_FILE)
    if not path:
        return key or None
    if key:
        raise InputError(f"{API_KEY} and {API_KEY_FILE} are both set; unset one of them")
    try:
        with open(path, encoding="utf-8") as file:
            found = file.read(LONGEST_KEY + 1).strip()
    except (OSError, UnicodeDecodeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise InputError(
            f"{API_KEY_FILE} = {shown(path)}: cannot be read ({reason}); name a file that holds the key"
        ) from None
    if not found or len(found) > LONGEST_KEY or not found.isprintable() or " " in found:
        raise InputError(f"{API_KEY_FILE} = {shown(path)}: must hold one key, on one line and without spaces")
    return found


def is_key(given: str, key: str) -> bool:
    """Whether a header's value is the key. The time this takes depends on neither value, nor on the key's length.

    `given`: as ASGI decodes headers, a character per byte.
    """
    digests = (hashlib.sha256(value).digest() for value in (given.encode("latin-1", "replace"), key.encode()))
    return hmac.compare_digest(*digests)


class AllowedHosts:
    """Host headers that the server answers to.

    A web page can let its own name resolve to this machine's address. The browser then takes the server for a part of
    that page, which may post requests and read answers. Only the Host header, which holds the page's name, tells.
    """

    def __init__(self, bound: socket.socket, names: Sequence[str] = ()) -> None:
        """
        Args:
            bound: where the server listens.
            names: further names, such as the one that a web server in front passes on.
        """
        self._loopback = is_loopback(bound)
        known = {"localhost", bound.getsockname()[0], *names}
        if not self._loopback:
            known |= {socket.gethostname(), socket.getfqdn()}
        self._known = {name.lower().rstrip(".") for name in known}

    def allows(self, header: str) -> bool:
        """Whether the server answers to it. Addresses need no name to resolve, so every address at which the server
        can be reached is allowed.
        """
        match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([^\[\]:/@\s]+))(?::[0-9]{1,5})?", header)
        if match is None:
            return False
        host = (match[1] or match[2]).lower().rstrip(".")
        if host in self._known or host.endswith(".localhost"):
            return True
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            return False
        return address.is_loopback or not self._loopback
