"""A host that provides its devices: it waits for the chief, serves it, and ends with it."""

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

HELLO_SECONDS = 10.0  # time limit for a caller's first message
MAX_CALLERS = 32  # handled concurrently
REACH_SECONDS = 5.0
PARTING_SECONDS = 10.0  # the chief disconnects from the servers first


class _Signalled(BaseException):
    """SIGINT or SIGTERM was received; the argument is its number."""


def serve(cluster: Cluster) -> int:
    """Wait for the chief, provide this host's devices for one run, and end when the chief does.

    Returns:
        The exit status: 0 if the chief finished, or a signal ended the wait for it; 1 if the chief failed or was lost,
        so that a supervisor restarts this host along with it.

    Raises:
        InputError: the port is in use, or TensorFlow's server does not start.
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
    """Wait until the chief requests this host's server; returns its connection and the number of CPU devices.

    Others may connect too, such as port scanners. Each caller is handled in a thread of its own, so that none delays
    the chief.
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
        # Closing alone would not wake the thread in `accept`, and the port would stay in use.
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        receiving.join()
    raise OSError("the port was closed")


def _receive_callers(
    cluster: Cluster, listener: socket.socket, chiefs: queue.SimpleQueue[tuple[Link, Message] | None]
) -> None:
    """Put callers that are this worker's chief into the queue; None when the listener is shut down."""
    slots = threading.Semaphore(MAX_CALLERS)

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
            slots.release()
        link.close()

    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            chiefs.put(None)
            return
        if slots.acquire(blocking=False):
            threading.Thread(target=receive, args=(connection,), name="caller", daemon=True).start()
        else:
            connection.close()


def _negotiate(cluster: Cluster, link: Link, message: Message) -> int | None:
    """Answer the chief until it requests the server; returns the number of CPU devices, or None if it requests
    devices that this host lacks."""
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
    """Why the sender of this message is not this worker's chief; None if it is."""
    if hello.get("protocol") != PROTOCOL:
        return "it runs another version of this program; use the same one on all hosts"
    theirs, devices = hello.get("cluster"), hello.get("devices")
    if not _is_texts(theirs) or not (devices is None or _is_texts(devices)):
        return "its first message is not that of a chief"
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
    """Serve the chief until it is finished or lost."""
    chief = cluster.addresses[0]
    try:
        server: Any = start_server(cluster, cpus)
    except InputError as error:
        link.send(error=str(error))
        raise
    link.send(started=True)
    log.info("this host's devices are used by the chief, %s", chief)
    status = _until_end(link, chief)
    del server  # it cannot be stopped cleanly: it ends with the process
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
            log.info("%s: asked the chief to save and end; a second signal ends without saving", _name(again))
    with contextlib.suppress(LinkLost, _Signalled):
        link.receive(PARTING_SECONDS)
    status = message["end"] if type(message["end"]) is int else 1
    log.info("the chief has finished" if status == 0 else "the chief ended with an error")
    return status


@contextlib.contextmanager
def _signals() -> Iterator[None]:
    """In this context, SIGINT and SIGTERM raise `_Signalled`."""

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
    """Exit immediately: a normal exit would wait for threads of TensorFlow's server."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(status)
