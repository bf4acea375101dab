"""The chief finds its workers, and they agree, or say what is wrong. No devices are started: all of it is sockets."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import pytest

from gpt_mesh.cluster import chief, host, worker
from gpt_mesh.cluster.addresses import Cluster
from gpt_mesh.cluster.chief import ClusterHosts
from gpt_mesh.config import load_config
from gpt_mesh.engine.building import make_plan
from gpt_mesh.errors import InputError
from tests.support.clusters import addresses
from tests.support.runs import Workspace


@pytest.fixture(autouse=True)
def _whole_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The devices of this process are every test's."""
    monkeypatch.setattr(chief, "split_cpu", lambda count: None)


@pytest.fixture
def pair() -> tuple[Cluster, Cluster]:
    """The chief's and the worker's idea of a cluster of two."""
    both = tuple(addresses(2))
    return Cluster(both, 0, wait=1), Cluster(both, 1)


@contextmanager
def waiting(cluster: Cluster, at: Cluster | None = None) -> Iterator[list[Any]]:
    """A worker that waits for its chief, at its port or another's; what it was asked to start in the end."""
    found: list[Any] = []
    listener = host.listen(at or cluster)

    def wait() -> None:
        with suppress(OSError):  # when the test is over
            found.append(worker._wait(cluster, listener))

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(10)


def refusal(cluster: Cluster, requested: list[str] | None = None) -> str:
    with pytest.raises(InputError) as caught:
        ClusterHosts(cluster, requested)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_devices_of_all_hosts(pair: tuple[Cluster, Cluster]) -> None:
    with waiting(pair[1]) as started:
        hosts = ClusterHosts(pair[0], ["CPU:0", "device:cpu:2"])
        assert hosts.devices == [f"/job:worker/replica:0/task:{i}/device:CPU:{j}" for i in (0, 1) for j in (0, 2)]
        assert hosts.chosen and hosts.per_host == ", ".join(f"{address} 2" for address in pair[0].addresses)
        hosts.close()
        assert not started
        # It waits for another chief, after one that went away and after callers who are none.
        socket.create_connection(("localhost", pair[1].port)).close()
        with socket.create_connection(("localhost", pair[1].port)) as stranger:
            stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
        hosts = ClusterHosts(pair[0], None)
        assert hosts.devices == [f"/job:worker/replica:0/task:{i}/{host.own_devices(None)[0]}" for i in (0, 1)]
        hosts.close()


@pytest.mark.parametrize(
    "line",
    [
        {"protocol": host.PROTOCOL, "cluster": 5},
        {"protocol": host.PROTOCOL, "cluster": [1, 2]},
        {"protocol": host.PROTOCOL, "cluster": None, "devices": 3},
        {"protocol": [], "start": {}},
        {"protocol": host.PROTOCOL, "cluster": ["a:1"], "devices": [None]},
    ],
)
def test_a_caller_of_another_kind_is_refused_and_the_worker_goes_on_waiting(
    pair: tuple[Cluster, Cluster], line: dict[str, Any]
) -> None:
    with waiting(pair[1]):
        with socket.create_connection(("localhost", pair[1].port), timeout=10) as stranger:
            stranger.sendall(json.dumps(line).encode() + b"\n")
            answers = [json.loads(line) for line in stranger.makefile()]
            assert ["error"] in [[*answer] for answer in answers], answers
        ClusterHosts(pair[0], None).close()


def test_silent_callers_do_not_keep_the_chief_waiting(pair: tuple[Cluster, Cluster]) -> None:
    with waiting(pair[1]), ExitStack() as callers:
        for _ in range(2 * worker.MAX_CALLERS // 3):
            callers.enter_context(socket.create_connection(("localhost", pair[1].port)))
        nested = callers.enter_context(socket.create_connection(("localhost", pair[1].port)))
        nested.sendall(b"[" * 100_000 + b"\n")
        begin = time.monotonic()
        ClusterHosts(pair[0], None).close()
        assert time.monotonic() - begin < worker.HELLO_SECONDS


def test_a_loss_ends_the_process_after_the_checkpoint_that_is_being_written(
    pair: tuple[Cluster, Cluster], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ended: list[int] = []
    monkeypatch.setattr("os._exit", ended.append)
    monkeypatch.setattr(chief, "GRACE_SECONDS", 0.0)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with waiting(pair[1]):
        hosts = ClusterHosts(pair[0], None)
        answers = [True, True, False]
        hosts.is_saving = lambda: answers.pop(0)
        hosts._on_lost("other:1", "it is gone")
        assert ended == [1] and not answers
        hosts.close()
    assert "error: worker other:1 was lost: it is gone; start the same commands again\n" in capsys.readouterr().err


def test_lists_that_differ(pair: tuple[Cluster, Cluster]) -> None:
    with waiting(Cluster((pair[1].addresses[0].replace("localhost", "127.0.0.1"), pair[1].addresses[1]), 1)):
        message = refusal(pair[0])
    assert "its list of hosts is 127.0.0.1:" in message and "the same addresses in the same order" in message


def test_a_worker_at_another_ones_address() -> None:
    three = tuple(addresses(3))
    with waiting(Cluster(three, 2), at=Cluster(three, 1)):
        message = refusal(Cluster(three, 0, wait=1))
    assert message == f"worker {three[1]}: it is worker 2, and not 1; give each host the number of its address"


def test_a_device_that_a_worker_does_not_have(pair: tuple[Cluster, Cluster], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chief, "own_devices", lambda requested: ["device:GPU:7"])
    with waiting(pair[1]):
        message = refusal(pair[0], ["device:GPU:7"])
    assert message.startswith(f"worker {pair[1].addresses[1]}: --gpu_ids device:GPU:7: no such device; visible: ")


def test_nobody_is_there(pair: tuple[Cluster, Cluster]) -> None:
    assert refusal(pair[0]) == (
        f"no worker at {pair[0].addresses[1]} (connection refused) in 1 s; is `main.py --cluster … --worker 1` running "
        "on that host, and its port open to this one?"
    )


def test_another_program_has_the_workers_port(pair: tuple[Cluster, Cluster]) -> None:
    with socket.create_server(("localhost", pair[1].port)) as other:

        def answer() -> None:
            while True:
                try:
                    connection, _ = other.accept()
                except OSError:
                    return
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        threading.Thread(target=answer, daemon=True).start()
        message = refusal(pair[0])
        other.shutdown(socket.SHUT_RDWR)
    assert "(it answers, but not like a waiting worker: its messages are not of this program) in 1 s" in message


def test_the_chiefs_own_port_is_taken(pair: tuple[Cluster, Cluster]) -> None:
    with socket.create_server(("", pair[0].port)):
        message = refusal(pair[0])
    assert message.startswith(f"{pair[0].addresses[0]}: port {pair[0].port} of this host cannot be used (Address")


def fake_worker(cluster: Cluster, *answers: dict[str, Any]) -> socket.socket:
    """A worker that says this, whatever it is asked."""
    listener = host.listen(cluster)

    def serve() -> None:
        connection, _ = listener.accept()
        for answer in answers:
            connection.recv(1 << 16)
            connection.sendall(json.dumps(answer).encode() + b"\n")
        connection.recv(1 << 16)

    threading.Thread(target=serve, daemon=True).start()
    return listener


def test_another_tensorflow(pair: tuple[Cluster, Cluster]) -> None:
    with fake_worker(pair[1], {"tensorflow": "2.3.4", "devices": ["device:CPU:0"]}):
        message = refusal(pair[0])
    assert message.startswith(f"worker {pair[1].addresses[1]} runs TensorFlow 2.3.4, but this host 2.")


def test_a_mesh_of_another_size_names_the_hosts(pair: tuple[Cluster, Cluster], workspace: Workspace) -> None:
    config = load_config(str(workspace.config("too_wide", mesh_shape="x:4", layout="batch:x")))
    with waiting(pair[1]):
        hosts = ClusterHosts(pair[0], ["CPU:0"])
        with pytest.raises(InputError) as caught:
            make_plan(config, hosts, fit=False, training=True)
        hosts.close()
    message, (first, second) = str(caught.value), pair[0].addresses
    assert message.endswith(f"; devices of each host: {first} 1, {second} 1"), message
    assert "x:4" in message and "\n" not in message


def test_a_way_that_is_closed(pair: tuple[Cluster, Cluster], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "reach", lambda address, seconds: "no answer")
    with waiting(pair[1]):
        message = refusal(pair[0])
    first, second = pair[0].addresses
    assert message.startswith(f"worker {second} cannot reach {first} (no answer); every host must reach every other")
