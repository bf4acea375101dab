"""The host that runs the program: finds the workers, has their devices, and notices when one is gone.

A worker's loss shows in two places: as an error of the operation that needed it, or, where its host has fallen silent,
not at all, while that operation waits. Each worker's link tells either way. After a loss the program has
`GRACE_SECONDS` to come out of TensorFlow with an error; if it does not, the process is ended from the link's thread.
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
START_SECONDS = 120.0  # for TensorFlow's servers: GPUs take a while
NOTICE_SECONDS = 5.0  # between an operation's failure and the link's
GRACE_SECONDS = 15.0


class WorkerLost(InputError):
    """A worker is gone, and the run with it."""


class Hosts:
    """The devices of this host alone: what a run without a cluster has."""

    def __init__(self, requested: Sequence[str] | None) -> None:
        """
        Raises:
            InputError: a device is malformed, absent or named twice.
        """
        self.devices = choose_devices(requested)
        self.chosen = requested is not None
        self.per_host = ""  # how many devices each host of a cluster has, for messages
        # Called when a worker was told to end, and waits for the run to be saved.
        self.request_end: Callable[[], None] = lambda: None
        # Whether a checkpoint is being written that this process must not end before.
        self.is_saving: Callable[[], bool] = lambda: False

    def start(self) -> None:
        """Make the devices usable. Called once all else is known to work, and before TensorFlow computes anything."""

    @contextlib.contextmanager
    def guarded(self, state: Callable[[], str]) -> Iterator[None]:
        """Within it, a worker's loss is a `WorkerLost`, which says where the run stands as `state` has it."""
        yield

    def close(self, status: int = 0) -> None:
        """Release the workers. `status`: what they exit with."""


class ClusterHosts(Hosts):
    """The devices of all hosts of a cluster, this one's first."""

    def __init__(self, cluster: Cluster, requested: Sequence[str] | None) -> None:
        """Find every worker and agree with it on versions, addresses and devices; its devices stay untouched.

        Args:
            cluster: this host is its chief.
            requested: short names of devices, the same of every host; default: every GPU of each, else one CPU.

        Raises:
            InputError: a host is not there, cannot be reached from another one, or does not agree.
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
            split_cpu(cpu_count(own))  # before anything computes, as reading data may
            found = {0: own, **self._find_workers(cluster.wait)}
            self._check_ways()
        except BaseException:
            self._release()
            raise
        self._cpus = {task: cpu_count(names) for task, names in found.items()}
        self.devices = [full_name(task, name) for task in sorted(found) for name in found[task]]
        self.per_host = ", ".join(f"{cluster.addresses[task]} {len(found[task])}" for task in sorted(found))
        log.info("devices of each host: %s", self.per_host)

    # Finding the workers

    def _find_workers(self, wait: float) -> dict[int, list[str]]:
        """Devices of each worker, by its number."""
        found: dict[int, list[str]] = {}
        begin = told = time.monotonic()
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
            if time.monotonic() - begin > wait:
                first = min(reasons)
                raise InputError(
                    f"no worker at {text} in {wait:.0f} s; is `main.py --cluster … --worker {first}` running on that "
                    "host, and its port open to this one?"
                )
            if told == begin or time.monotonic() - told > 20:
                told = time.monotonic()
                log.info("waiting for %s", text)
            time.sleep(0.5)
        return found

    def _call(self, task: int) -> list[str] | str:
        """The devices of a worker, or why it is not there yet.

        Raises:
            InputError: it is there, and will not do.
        """
        address = self.cluster.addresses[task]
        try:
            connection = socket.create_connection(host_and_port(address), timeout=CALL_SECONDS)
        except OSError as error:
            return why(error)
        if connection.getsockname() == connection.getpeername():
            connection.close()  # TCP met itself: nobody listens on a port that it took for its own end
            return "connection refused"
        link = Link(connection)
        link.send(protocol=PROTOCOL, cluster=self.cluster.addresses, task=task, devices=self.requested)
        try:
            answer = link.receive(ANSWER_SECONDS)
            self._check_answer(address, answer)
            devices: list[str] = answer["devices"]
        except (LinkLost, KeyError) as lost:
            link.close()
            return f"it answers, but not as a worker that waits: {lost}"
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
                f"worker {address} runs TensorFlow {theirs}, and this host {ours}; install the same on all hosts"
            )

    def _check_ways(self) -> None:
        """Have every worker try the way to every other host: TensorFlow's runtime would wait for ever."""
        for link in self._links.values():
            link.send(try_others=True)
        for task, link in self._links.items():
            failures = self._answer(task, link, ANSWER_SECONDS).get("unreachable")
            if failures:
                other, reason = next(iter(failures.items()))
                raise InputError(
                    f"worker {self.cluster.addresses[task]} cannot reach {other} ({reason}); every host must "
                    "reach every other by its address: use names that mean the same everywhere, and open the port"
                )

    def _answer(self, task: int, link: Link, seconds: float) -> Message:
        try:
            answer = link.receive(seconds)
        except LinkLost as lost:
            raise WorkerLost(f"worker {self.cluster.addresses[task]} was lost before the run began ({lost})") from None
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
        """From now on, notice what the worker says and when it is lost."""
        address = self.cluster.addresses[task]
        link.on_lost = lambda reason: self._on_lost(address, reason)
        if link.lost is not None:
            self._reported = True
            raise WorkerLost(f"worker {address} was lost before the run began ({link.lost})")

        def read() -> None:
            with contextlib.suppress(LinkLost):
                while True:
                    message = link.receive()
                    if "leaving" in message:
                        self._on_leaving(address, message["leaving"])

        threading.Thread(target=read, name=f"worker {task}", daemon=True).start()

    def _on_leaving(self, address: str, signal_name: str) -> None:
        log.warning("worker %s was told to end (%s)", address, signal_name)
        self.request_end()

    def _on_lost(self, address: str, reason: str) -> None:
        """In the thread of the worker's link."""
        if self._loss is not None or self._closed:
            return
        self._loss = f"worker {address} was lost: {reason}"
        self._lost.set()
        time.sleep(GRACE_SECONDS)
        while self.is_saving():  # its values are all here
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
            # gRPC may notice a host that fell silent before the link does.
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
        # The connections stay: where they end, the workers see that this process has ended too.
        for link in self._links.values():
            link.send(end=status)

    def _release(self) -> None:
        """Let the workers wait for another chief."""
        self._port.close()
        for link in self._links.values():
            link.close()


@contextlib.contextmanager
def hosts_of(cluster: Cluster | None, requested: Sequence[str] | None) -> Iterator[Hosts]:
    """The hosts of a run: of the cluster, or this one alone. At the end of the block the workers are released."""
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
