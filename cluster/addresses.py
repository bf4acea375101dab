"""The hosts of a run: `--cluster` and `--worker`, or `TF_CONFIG`. Does not import TensorFlow."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gpt_mesh.errors import InputError

# A name or an IPv4 address, or an IPv6 address in brackets; then the port.
_ADDRESS = re.compile(r"(\[[0-9A-Fa-f:.]+(?:%\w+)?\]|[A-Za-z0-9._-]+):([0-9]{1,5})")
WAIT_SECONDS = 300.0
_CHIEF_JOBS = ("chief", "master")


@dataclass(frozen=True)
class Cluster:
    """The hosts of a run, and the index of this one.

    Attributes:
        addresses: "host:port" of each host, in the same order on all hosts; the first is the chief's.
        index: index of this process's address.
        wait: seconds that the chief waits for the workers.
    """

    addresses: tuple[str, ...]
    index: int = 0
    wait: float = WAIT_SECONDS

    @property
    def is_chief(self) -> bool:
        """Whether this host runs the program, on the devices of all hosts."""
        return self.index == 0

    @property
    def port(self) -> int:
        """The port on which this host listens."""
        return host_and_port(self.addresses[self.index])[1]


def host_and_port(address: str) -> tuple[str, int]:
    """Split an address: "[::1]:2222" becomes ("::1", 2222)."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def find_cluster(flag: str | None, worker: int | None, environment: Mapping[str, str]) -> Cluster | None:
    """The cluster that `--cluster` and `--worker` name, or `TF_CONFIG` in the environment; None on a single host.

    Raises:
        InputError: both are given, or one is malformed.
    """
    described = _of_tf_config(environment.get("TF_CONFIG", ""))
    if flag is None:
        return described
    if described is not None:
        raise InputError("--cluster and TF_CONFIG both name the hosts; leave out --cluster, or unset TF_CONFIG")
    addresses = _checked(flag.split(","), "--cluster")
    if len(addresses) == 1:
        raise InputError(
            f"--cluster {flag}: names one host; list the address of each, the chief's first, with commas between them, "
            "or leave --cluster out to use this host alone"
        )
    index = worker or 0
    if index >= len(addresses):
        raise InputError(
            f"--worker {index}: --cluster lists {len(addresses)} hosts, so workers are 1 to {len(addresses) - 1} "
            f"(0 is the chief, {addresses[0]})"
        )
    return Cluster(addresses, index)


def _checked(texts: list[str], where: str) -> tuple[str, ...]:
    """The addresses, validated and normalised."""
    found: list[str] = []
    for text in (text.strip() for text in texts):
        match = _ADDRESS.fullmatch(text)
        if match is None or not 0 < int(match[2]) < 65536:
            hint = "write an IPv6 address in brackets, [::1]:2222" if text.count(":") > 1 else "such as node0:2222"
            raise InputError(f"{where}: {text!r} is not host:port with a port from 1 to 65535; {hint}")
        address = f"{match[1].lower()}:{int(match[2])}"
        if address in found:
            raise InputError(f"{where}: {text} is listed twice; list each host once")
        found.append(address)
    return tuple(found)


def _of_tf_config(text: str) -> Cluster | None:
    """The cluster of TensorFlow's own JSON: {"cluster": {"chief": […], "worker": […]}, "task": {"type", "index"}}.

    The chief is the only task of the job "chief"; without that job, as in TensorFlow, it is worker 0.
    """
    if not text.strip():
        return None
    try:
        value = json.loads(text)
    except RecursionError:
        raise InputError("TF_CONFIG: brackets are nested too deeply; correct or unset it") from None
    except ValueError as error:
        raise InputError(f"TF_CONFIG: is not JSON ({error}); correct or unset it") from None
    if not isinstance(value, dict) or not isinstance(value.get("cluster", {}), dict):
        raise InputError('TF_CONFIG: write {"cluster": {"worker": ["host:port", …]}, "task": {"type": …, "index": …}}')
    jobs: dict[str, Any] = value.get("cluster", {})
    for job, tasks in jobs.items():
        if job not in (*_CHIEF_JOBS, "worker"):
            raise InputError(f'TF_CONFIG: cluster has a job "{job}"; only "chief" and "worker" are used here')
        if not isinstance(tasks, list) or not all(isinstance(task, str) for task in tasks):
            raise InputError(f'TF_CONFIG: cluster: "{job}" must be a list of addresses, ["host:port", …]')
    order = [(job, i) for job in (*_CHIEF_JOBS, "worker") for i in range(len(jobs.get(job, [])))]
    chiefs = [task for task in order if task[0] in _CHIEF_JOBS]
    if len(chiefs) > 1:
        raise InputError(f"TF_CONFIG: cluster has {len(chiefs)} chiefs; name one, and the other hosts as workers")
    if len(order) < 2:
        return None
    addresses = _checked([jobs[job][i] for job, i in order], "TF_CONFIG: cluster")
    return Cluster(addresses, order.index(_task(value, order)))


def _task(value: dict[str, Any], order: list[tuple[str, int]]) -> tuple[str, int]:
    """The job and index of this process."""
    given = value.get("task")
    task = (given.get("type"), given.get("index")) if isinstance(given, dict) else None
    # Some launchers write the index as a string.
    if task is not None and isinstance(task[1], str) and task[1].isdecimal():
        task = (task[0], int(task[1]))
    if task not in order:
        known = ", ".join(f"{job} {i}" for job, i in order)
        raise InputError(f"TF_CONFIG: task: {json.dumps(given)} is not one of the cluster's tasks ({known})")
    return task
