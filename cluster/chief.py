"""The host that runs the program: it finds the workers, uses their devices, and detects when one is lost.

If a worker is lost, an operation that needs it fails or, if its host is unreachable, waits without an error. The
link to each worker detects both. After a loss the program has `GRACE_SECONDS` to leave TensorFlow with an error;
otherwise the link's thread ends the process.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import gpt_mesh.meshes.compat  # noqa: F401  (before TensorFlow, which it keeps quiet)

import tensorflow as tf

from gpt_mesh.cluster.addresses import Cluster, host_and_port
from gpt_mesh.cluster.host import PROTOCOL, connect, cpu_count, full_name, listen, log, own_devices, split_cpu, why
from gpt_mesh.cluster.link import SILENCE_SECONDS, Link, LinkLost, Message
from gpt_mesh.errors import InputError
from gpt_mesh.meshes.devices import choose_devices

CALL_SECONDS = 5.0
ANSWER_SECONDS = 60.0
START_SECONDS = 120.0  # time limit for TensorFlow's servers to start; GPUs are slow
NOTICE_SECONDS = 5.0  # maximum time between the failure of an operation and that of the link
GRACE_SECONDS = 15.0


class WorkerLost(InputError):
    """A worker was lost, which ends the run."""


class Hosts:
    """The devices of a run without a cluster: those of this host."""

    def __init__(self, requested: Sequence[str] | None) -> None:
        """
        Raises:
            InputError: a device name is malformed, unknown or repeated.
        """
        self.devices = choose_devices(requested)
        self.chosen = requested is not None
        self.per_host = ""  # number of devices of each host, for messages
        # Called when a worker gets a signal to end, and waits for the run to be saved.
        self.request_end: Callable[[], None] = lambda: None
        # Whether a checkpoint is being written, which must be complete before this process ends.
        self.is_saving: Callable[[], bool] = lambda: False

    def start(self) -> None:
        """Start the devices. Called after everything else is checked, and before TensorFlow computes anything."""

    @contextlib.contextmanager
    def guarded(self, state: Callable[[], str]) -> Iterator[None]:
        """In this context, the loss of a worker raises `WorkerLost`, whose message includes `state()`."""
        yield

    def close(self, status: int = 0) -> None:
        """Release the workers. `status`: their exit status."""


class ClusterHosts(Hosts):
    """The devices of all hosts of a cluster, those of this host first."""

    def __init__(self, cluster: Cluster, requested: Sequence[str] | None) -> None:
        """Find all workers and check their versions, addresses and devices. Devices are not started yet.

        Args:
            cluster: the cluster, whose chief is this host.
            requested: short names of devices, the same on every host; default: every GPU of each host, else one CPU.

        Raises:
            InputError: a host is missing, is not reachable from another host, or differs in versions or addresses.
        """
        assert cluster.is_chief
        self.cluster, self.requested, self.chosen = cluster, requested, True
        self.request_end, self.is_saving = lambda: None, lambda: False
        self._links: dict[int, Link] = {}
        self._loss: str | None = None
        self._lost, self._started, self._reported, self._closed = threading.Event(), False, False, False
        self._state: Callable[[], str] = lambda: "start the same commands again"
        self._port = listen(cluster)
        atexit.register(self.close)
        try:
            own = own_devices(requested)
            split_cpu(cpu_count(own))  # before anything is computed, which reading data may do
            found = {0: own, **self._find_workers(cluster.wait)}
            self._check_routes()
        except BaseException:
            self._release()
            raise
        self._cpus = {task: cpu_count(names) for task, names in found.items()}
        self.devices = [full_name(task, name) for task in sorted(found) for name in found[task]]
        self.per_host = ", ".join(f"{cluster.addresses[task]} {len(found[task])}" for task in sorted(found))
        log.info("devices of each host: %s", self.per_host)

    # Finding the workers

    def _find_workers(self, wait: float) -> dict[int, list[str]]:
        """The devices of each worker, by its index."""
        found: dict[int, list[str]] = {}
        start = logged = time.monotonic()
        while missing := [task for task in range(1, len(self.cluster.addresses)) if task not in found]:
            reasons = {}
            for task in missing:
                outcome = self._call(task)
                if isinstance(outcome, str):
                    reasons[task] = outcome
                else:
                    found[task] = outcome
            if not reasons:
                break
            text = ", ".join(f"{self.cluster.addresses[task]} ({reason})" for task, reason in reasons.items())
            if time.monotonic() - start > wait:
                first = min(reasons)
                raise InputError(
                    f"no worker at {text} in {wait:.0f} s; is `main.py --cluster … --worker {first}` running on that "
                    "host, and its port open to this one?"
                )
            if logged == start or time.monotonic() - logged > 20:
                logged = time.monotonic()
                log.info("waiting for %s", text)
            time.sleep(0.5)
        return found

    def _call(self, task: int) -> list[str] | str:
        """The devices of a worker, or why it cannot be reached yet.

        Raises:
            InputError: it cannot be used.
        """
        address = self.cluster.addresses[task]
        try:
            connection = socket.create_connection(host_and_port(address), timeout=CALL_SECONDS)
        except OSError as error:
            return why(error)
        if connection.getsockname() == connection.getpeername():
            connection.close()  # TCP connected to itself: nobody listens, and the local port is the same
            return "connection refused"
        link = Link(connection)
        link.send(protocol=PROTOCOL, cluster=self.cluster.addresses, task=task, devices=self.requested)
        try:
            answer = link.receive(ANSWER_SECONDS)
            self._check_answer(address, answer)
            devices: list[str] = answer["devices"]
        except (LinkLost, KeyError) as lost:
            link.close()
            return f"it answers, but not like a waiting worker: {lost}"
        except BaseException:
            link.close()
            raise
        self._links[task] = link
        return devices

    def _check_answer(self, address: str, answer: Message) -> None:
        if "error" in answer:
            raise InputError(f"worker {address}: {answer['error']}")
        theirs, ours = str(answer.get("tensorflow")), str(tf.__version__)
        if theirs.split(".")[:2] != ours.split(".")[:2]:
            raise InputError(
                f"worker {address} runs TensorFlow {theirs}, but this host {ours}; install the same on all hosts"
            )

    def _check_routes(self) -> None:
        """Have workers test their connections to all hosts: TensorFlow would wait forever."""
        for link in self._links.values():
            link.send(try_others=True)
        for task, link in self._links.items():
            failures = self._answer(task, link, ANSWER_SECONDS).get("unreachable")
            if failures:
                other, reason = next(iter(failures.items()))
                raise InputError(
                    f"worker {self.cluster.addresses[task]} cannot reach {other} ({reason}); every host must "
                    "reach every other by its address: use names that resolve the same on all hosts, and open the port"
                )

    def _answer(self, task: int, link: Link, seconds: float) -> Message:
        try:
            answer = link.receive(seconds)
        except LinkLost as lost:
            raise WorkerLost(f"worker {self.cluster.addresses[task]} was lost at the start ({lost})") from None
        if "error" in answer:
            raise InputError(f"worker {self.cluster.addresses[task]}: {answer['error']}")
        return answer

    # Using them

    def start(self) -> None:
        """
        Raises:
            InputError: TensorFlow's server does not start on some host.
        """
        for task, link in self._links.items():
            link.send(start=self._cpus[task])
        for task, link in self._links.items():
            self._answer(task, link, START_SECONDS)
        for task, link in self._links.items():
            self._attend(task, link)
        self._started = True
        self._port.close()
        connect(self.cluster)

    def _attend(self, task: int, link: Link) -> None:
        """From now on, handle messages of the worker, and its loss."""
        address = self.cluster.addresses[task]
        link.on_lost = lambda reason: self._on_lost(address, reason)
        if link.lost is not None:
            self._reported = True
            raise WorkerLost(f"worker {address} was lost before the run started ({link.lost})")

        def read() -> None:
            with contextlib.suppress(LinkLost):
                while True:
                    message = link.receive()
                    if "leaving" in message:
                        self._on_leaving(address, message["leaving"])

        threading.Thread(target=read, name=f"worker {task}", daemon=True).start()

    def _on_leaving(self, address: str, signal_name: str) -> None:
        log.warning("worker %s got a signal to end (%s)", address, signal_name)
        self.request_end()

    def _on_lost(self, address: str, reason: str) -> None:
        """Called in the thread of the worker's link."""
        if self._loss is not None or self._closed:
            return
        self._loss = f"worker {address} was lost: {reason}"
        self._lost.set()
        time.sleep(GRACE_SECONDS)
        while self.is_saving():  # all of its values are on this host
            time.sleep(1.0)
        if not self._reported and not self._closed:
            print(f"error: {self._message()}", file=sys.stderr, flush=True)
            os._exit(1)

    def _message(self) -> str:
        return f"{self._loss}; {self._state()}"

    @contextlib.contextmanager
    def guarded(self, state: Callable[[], str]) -> Iterator[None]:
        self._state = state
        try:
            yield
        except InputError:
            raise
        except Exception as error:
            # gRPC may detect an unreachable host before the link does.
            silent = isinstance(error, (tf.errors.UnavailableError, tf.errors.DeadlineExceededError))
            if not self._lost.wait(NOTICE_SECONDS + (SILENCE_SECONDS if silent else 0)):
                raise
            self._reported = True
            raise WorkerLost(self._message()) from error

    def close(self, status: int = 0) -> None:
        atexit.unregister(self.close)
        if self._closed:
            return
        self._closed = True
        if not self._started:
            self._release()
            return
        # The connections stay open: when they close, the workers know that this process has ended.
        for link in self._links.values():
            link.send(end=status)

    def _release(self) -> None:
        """Close the connections, so that the workers wait for another chief."""
        self._port.close()
        for link in self._links.values():
            link.close()


@contextlib.contextmanager
def hosts_of(cluster: Cluster | None, requested: Sequence[str] | None) -> Iterator[Hosts]:
    """The hosts of a run: those of the cluster, or only this one. Workers are released at the end of the block."""
    hosts = Hosts(requested) if cluster is None else ClusterHosts(cluster, requested)
    status = 1
    try:
        yield hosts
        status = 0
    except KeyboardInterrupt:
        status = 0
        raise
    finally:
        hosts.close(status)
