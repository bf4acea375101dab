"""Who the hosts are: flags, TF_CONFIG, and what is wrong with them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gpt_mesh.cluster.addresses import Cluster, find_cluster, host_and_port
from gpt_mesh.errors import InputError

TWO = {"chief": ["node0:2222"], "worker": ["node1:2222", "node2:2223"]}


def tf_config(cluster: Any, kind: str = "worker", index: Any = 0) -> dict[str, str]:
    return {"TF_CONFIG": json.dumps({"cluster": cluster, "task": {"type": kind, "index": index}})}


def refusal(flag: str | None = None, worker: int | None = None, environment: dict[str, str] | None = None) -> str:
    with pytest.raises(InputError) as caught:
        find_cluster(flag, worker, environment or {})
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_one_host_unless_told_otherwise() -> None:
    assert find_cluster(None, None, {}) is None
    assert find_cluster(None, None, {"TF_CONFIG": "  "}) is None
    assert find_cluster(None, None, {"TF_CONFIG": "{}"}) is None
    with pytest.raises(InputError, match="TF_CONFIG: brackets are nested too deeply"):
        find_cluster(None, None, {"TF_CONFIG": "[" * 100_000})
    # As some platforms set it for a job of one machine.
    assert find_cluster(None, None, tf_config({"chief": ["localhost:2222"]}, "chief")) is None


def test_flags() -> None:
    addresses = ("node0:2222", "10.0.0.2:2222", "[fe80::1%eth0]:80")
    flag = " node0:2222, 10.0.0.2:02222,[FE80::1%eth0]:80"
    assert find_cluster(flag, None, {}) == Cluster(addresses, 0)
    assert find_cluster(flag, 0, {}) == Cluster(addresses, 0)
    assert find_cluster(flag, 2, {}) == Cluster(addresses, 2)
    assert Cluster(addresses, 0).is_chief and not Cluster(addresses, 2).is_chief
    assert Cluster(addresses, 2).port == 80
    assert [host_and_port(address) for address in addresses[1:]] == [("10.0.0.2", 2222), ("fe80::1%eth0", 80)]


@pytest.mark.parametrize(
    ("kind", "index", "place"), [("chief", 0, 0), ("worker", 0, 1), ("worker", 1, 2), ("worker", "1", 2)]
)
def test_tf_config_with_a_chief(kind: str, index: Any, place: int) -> None:
    found = find_cluster(None, None, tf_config(TWO, kind, index))
    assert found == Cluster(("node0:2222", "node1:2222", "node2:2223"), place)


def test_tf_config_of_workers_only_has_worker_0_for_its_chief() -> None:
    workers = {"worker": ["node0:2222", "node1:2222"]}
    assert find_cluster(None, None, tf_config(workers, index=0)) == Cluster(("node0:2222", "node1:2222"), 0)
    assert find_cluster(None, None, tf_config(workers, index=1)) == Cluster(("node0:2222", "node1:2222"), 1)


@pytest.mark.parametrize(
    ("flag", "expected"),
    [
        ("node0,node1:2222", "'node0' is not host:port with a port from 1 to 65535; such as node0:2222"),
        ("node0:0,node1:2222", "'node0:0' is not host:port"),
        ("node0:65536,node1:2222", "'node0:65536' is not host:port"),
        ("node0:2222,", "'' is not host:port"),
        ("grpc://node0:2222,node1:2222", "'grpc://node0:2222' is not host:port"),
        ("::1:2222,node1:2222", "'::1:2222' is not host:port with a port from 1 to 65535; write an IPv6"),
        ("node0:2222,NODE0:2222", "NODE0:2222 is listed twice"),
        ("node0:2222", "names one host"),
    ],
)
def test_bad_addresses(flag: str, expected: str) -> None:
    message = refusal(flag)
    assert message.startswith("--cluster") and expected in message


def test_a_worker_that_is_not_listed() -> None:
    assert refusal("node0:2222,node1:2222", 2) == (
        "--worker 2: --cluster lists 2 hosts, so workers are 1 to 1 (0 is the chief, node0:2222)"
    )


def test_flags_and_tf_config_together() -> None:
    message = refusal("node0:2222,node1:2222", None, tf_config(TWO, "chief"))
    assert message == "--cluster and TF_CONFIG both name the hosts; leave out --cluster, or unset TF_CONFIG"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("{", "is not JSON"),
        ("[]", "write {"),
        ('{"cluster": []}', "write {"),
        (tf_config({"ps": ["a:1"], "worker": ["b:1"]})["TF_CONFIG"], 'cluster has a job "ps"'),
        (tf_config({"worker": {"1": "a:1"}})["TF_CONFIG"], '"worker" must be a list of addresses'),
        (tf_config({"worker": ["a:1", 2]})["TF_CONFIG"], '"worker" must be a list of addresses'),
        (tf_config({"worker": ["a:1", "a:1"]})["TF_CONFIG"], "a:1 is listed twice"),
        (tf_config({"worker": ["a:1", "b"]})["TF_CONFIG"], "'b' is not host:port"),
        (tf_config({"chief": ["a:1", "b:1"], "worker": ["c:1"]})["TF_CONFIG"], "cluster has 2 chiefs"),
        (tf_config(TWO, "worker", 2)["TF_CONFIG"], "not one of the cluster's tasks (chief 0, worker 0, worker 1)"),
        (tf_config(TWO, "evaluator", 0)["TF_CONFIG"], "is not one of the cluster's tasks"),
        (json.dumps({"cluster": TWO}), "task: null is not one of the cluster's tasks"),
        (json.dumps({"cluster": TWO, "task": {"type": ["worker"], "index": 0}}), "is not one of the cluster's tasks"),
    ],
)
def test_bad_tf_config(value: str, expected: str) -> None:
    message = refusal(environment={"TF_CONFIG": value})
    assert message.startswith("TF_CONFIG: ") and expected in message
