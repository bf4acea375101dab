"""A host that lends its devices: waits for the chief, serves it, and ends with it."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any, NoReturn

import gpt_mesh.meshes.compat  # noqa: F401  (before TensorFlow, which it keeps quiet)

import tensorflow as tf

from gpt_mesh.cluster.addresses import Cluster
from gpt_mesh.cluster.host import PROTOCOL, listen, log, own_devices, reach, start_server
from gpt_mesh.cluster.link import Link, LinkLost, Message
from gpt_mesh.errors import InputError

HELLO_SECONDS = 10.0  # a caller that says nothing for so long is not the chief
REACH_SECONDS = 5.0
PARTING_SECONDS = 10.0  # the chief takes leave of the servers first


class _Signalled(BaseException):
    """SIGINT or SIGTERM came; its number is the argument."""


def serve(cluster: Cluster) -> int:
    """Wait for the chief, lend it this host's devices for one run, and end when it does.

    Returns:
        The exit status: 0 when the chief had done its work, or a signal ended the wait for it; 1 when the chief failed
        or is gone, so that a supervisor starts this host again beside it.

    Raises:
        InputError: the port is taken, or TensorFlow's server does not start.
    """
    me, chief = cluster.addresses[cluster.index], cluster.addresses[0]
    with _signals():
        try:
            with listen(cluster) as listener:
                log.info("worker %d at %s: waiting for the chief, %s", cluster.index, me, chief)
                link, cpus = _wait(cluster, listener)
        except _Signalled as signalled:
            log.info("%s: ended while waiting for the chief", _name(signalled))
            return 0
        return _lend(cluster, link, cpus)


def _wait(cluster: Cluster, listener: socket.socket) -> tuple[Link, int]:
    """The chief's connection, once it has asked for this host's server, and how many CPU devices that has to have."""
    while True:
        connection, _ = listener.accept()
        link = Link(connection)
        with contextlib.suppress(LinkLost):  # a probe of the port, or another program's mistake
            greeting = link.receive(HELLO_SECONDS)
            try:
                cpus = _negotiate(cluster, link, greeting)
                if cpus is not None:
                    return link, cpus
            except LinkLost as lost:
                log.info("the chief left before it used this host (%s): waiting for it again", lost)
        link.close()


def _negotiate(cluster: Cluster, link: Link, message: Message) -> int | None:
    """Answer a chief's questions until it asks for the server; None if this host is not the one it looks for."""
    problem = _objection(cluster, message)
    if problem is not None:
        link.send(error=problem)
        log.info("refused a chief: %s", problem)
        return None
    try:
        devices = own_devices(message.get("devices"))
    except InputError as error:
        link.send(error=str(error))
        return None
    link.send(tensorflow=tf.__version__, devices=devices)
    while "start" not in (message := link.receive()):
        others = [address for address in cluster.addresses if address != cluster.addresses[cluster.index]]
        failures = {address: reach(address, REACH_SECONDS) for address in others}
        link.send(unreachable={address: reason for address, reason in failures.items() if reason is not None})
    return int(message["start"])


def _objection(cluster: Cluster, hello: Message) -> str | None:
    """Why the sender of this greeting is not this worker's chief."""
    if hello.get("protocol") != PROTOCOL:
        return "it runs another version of this program; use the same one on all hosts"
    theirs = tuple(hello.get("cluster", ()))
    if theirs != cluster.addresses:
        return (
            f"its list of hosts is {','.join(cluster.addresses)}, and the chief's {','.join(theirs)}; give all hosts "
            "the same addresses in the same order"
        )
    if hello.get("task") != cluster.index:
        return f"it is worker {cluster.index}, and not {hello.get('task')}; give each host the number of its address"
    return None


def _lend(cluster: Cluster, link: Link, cpus: int) -> int:
    """Serve the chief until it is done, or gone."""
    chief = cluster.addresses[0]
    try:
        server: Any = start_server(cluster, cpus)
    except InputError as error:
        link.send(error=str(error))
        raise
    link.send(started=True)
    log.info("lending this host's devices to the chief, %s", chief)
    status = _until_end(link, chief)
    del server  # it has no clean end: the process's is its own
    return status


def _until_end(link: Link, chief: str) -> int:
    signalled: _Signalled | None = None
    while True:
        try:
            message = link.receive()
            if "end" in message:
                break
        except LinkLost as lost:
            log.error("error: the chief, %s, is gone (%s)", chief, lost)
            return 1
        except _Signalled as again:
            if signalled is not None:
                return 128 + int(again.args[0])
            signalled = again
            link.send(leaving=_name(again))
            log.info("%s: asked the chief to save and end; once more ends at once, and loses that", _name(again))
    with contextlib.suppress(LinkLost, _Signalled):
        link.receive(PARTING_SECONDS)
    log.info("the chief is done" if message["end"] == 0 else "the chief ended with an error")
    return int(message["end"])


@contextlib.contextmanager
def _signals() -> Iterator[None]:
    """Within it, SIGINT and SIGTERM raise `_Signalled`."""

    def raise_it(number: int, frame: FrameType | None) -> None:
        raise _Signalled(number)

    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, raise_it) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _name(signalled: _Signalled) -> str:
    return signal.Signals(signalled.args[0]).name


def leave(status: int) -> NoReturn:
    """End this process now: TensorFlow's server keeps threads that a normal end would wait for."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(status)
