"""A host that lends its devices: waits for the chief, serves it, and ends with it."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any, NoReturn, TypeGuard

import gpt_mesh.meshes.compat  # noqa: F401  (before TensorFlow, which it keeps quiet)

import tensorflow as tf

from gpt_mesh.cluster.addresses import Cluster
from gpt_mesh.cluster.host import PROTOCOL, listen, log, own_devices, reach, start_server
from gpt_mesh.cluster.link import Link, LinkLost, Message
from gpt_mesh.errors import InputError

HELLO_SECONDS = 10.0  # a caller that does not introduce itself within this time is not the chief
MAX_CALLERS = 32  # that are served side by side
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
    """The chief's connection, once it has asked for this host's server, and how many CPU devices that has to have.

    Others may connect too, such as a probe of the port: each caller introduces itself in a thread of its own, so that
    none keeps the chief waiting.
    """
    chiefs: queue.SimpleQueue[tuple[Link, Message] | None] = queue.SimpleQueue()
    receiving = threading.Thread(target=_receive_callers, args=(cluster, listener, chiefs), name="callers", daemon=True)
    receiving.start()
    try:
        while (caller := chiefs.get()) is not None:
            link, hello = caller
            try:
                cpus = _negotiate(cluster, link, hello)
                if cpus is not None:
                    return link, cpus
            except LinkLost as lost:
                log.info("the chief left before it used this host (%s): waiting for it again", lost)
            link.close()
    finally:
        # Closing alone would not wake the thread in `accept`, which keeps the port in use.
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        receiving.join()
    raise OSError("the port was closed")


def _receive_callers(
    cluster: Cluster, listener: socket.socket, chiefs: queue.SimpleQueue[tuple[Link, Message] | None]
) -> None:
    """Hand on those whose introduction is this worker's chief's, until the listener is shut down; then None."""
    places = threading.Semaphore(MAX_CALLERS)

    def receive(connection: socket.socket) -> None:
        link = Link(connection)
        try:
            hello = link.receive(HELLO_SECONDS)
            if (problem := _objection(cluster, hello)) is None:
                chiefs.put((link, hello))
                return
            link.send(error=problem)
            log.info("refused a caller: %s", problem)
        except LinkLost as lost:
            log.info("refused a caller: %s", lost)
        finally:
            places.release()
        link.close()

    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            chiefs.put(None)
            return
        if places.acquire(blocking=False):
            threading.Thread(target=receive, args=(connection,), name="caller", daemon=True).start()
        else:
            connection.close()


def _negotiate(cluster: Cluster, link: Link, message: Message) -> int | None:
    """Answer the chief's questions until it asks for the server; None if it asks for devices that are not here."""
    try:
        devices = own_devices(message.get("devices"))
    except InputError as error:
        link.send(error=str(error))
        return None
    link.send(tensorflow=tf.__version__, devices=devices)
    while type((message := link.receive()).get("start")) is not int:
        others = [address for address in cluster.addresses if address != cluster.addresses[cluster.index]]
        failures = {address: reach(address, REACH_SECONDS) for address in others}
        link.send(unreachable={address: reason for address, reason in failures.items() if reason is not None})
    start: int = message["start"]
    return start


def _objection(cluster: Cluster, hello: Message) -> str | None:
    """Why the sender of this greeting is not this worker's chief."""
    if hello.get("protocol") != PROTOCOL:
        return "it runs another version of this program; use the same one on all hosts"
    theirs, devices = hello.get("cluster"), hello.get("devices")
    if not _is_texts(theirs) or not (devices is None or _is_texts(devices)):
        return "it does not introduce itself as a chief does"
    if tuple(theirs) != cluster.addresses:
        return (
            f"its list of hosts is {','.join(cluster.addresses)}, and the chief's {','.join(theirs)}; give all hosts "
            "the same addresses in the same order"
        )
    if hello.get("task") != cluster.index:
        return f"it is worker {cluster.index}, and not {hello.get('task')}; give each host the number of its address"
    return None


def _is_texts(value: Any) -> TypeGuard[list[str]]:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


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
    status = message["end"] if type(message["end"]) is int else 1
    log.info("the chief is done" if status == 0 else "the chief ended with an error")
    return status


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
