"""One host of a cluster: its devices, its port, and the servers of TensorFlow's runtime."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Sequence
from typing import Any

import gpt_mesh.meshes.compat  # noqa: F401  (before TensorFlow, which it keeps quiet)

import tensorflow as tf

from gpt_mesh.cluster.addresses import Cluster, host_and_port
from gpt_mesh.errors import InputError
from gpt_mesh.meshes.devices import parse_device

JOB = "worker"  # what TensorFlow calls all hosts, the chief too
PROTOCOL = 1  # of the messages between hosts
log = logging.getLogger("gpt")


def own_devices(requested: Sequence[str] | None) -> list[str]:
    """The devices of this host, "device:GPU:0" and so on: those requested, else every GPU, else one CPU.

    Starts no device: TensorFlow fixes them when it joins a cluster.

    Raises:
        InputError: one is malformed, absent or named twice.
    """
    gpus = [f"device:GPU:{i}" for i in range(len(tf.config.list_physical_devices("GPU")))]
    if not requested:
        return gpus or ["device:CPU:0"]
    names = [parse_device(text) for text in requested]
    if len(set(names)) < len(names):
        raise InputError(f"--gpu_ids {' '.join(requested)}: a device is named twice; name each device once")
    for name in names:
        if "GPU" in name and name not in gpus:
            raise InputError(f"--gpu_ids {name}: no such device; visible: {', '.join(['device:CPU:0', *gpus])}")
    return names


def full_name(task: int, device: str) -> str:
    """The name of a host's device in the whole cluster."""
    return f"/job:{JOB}/replica:0/task:{task}/{device}"


def cpu_count(devices: Sequence[str]) -> int:
    """How many virtual devices the CPU has to be split into."""
    return 1 + max((int(name.rsplit(":", 1)[1]) for name in devices if "CPU" in name), default=0)


def listen(cluster: Cluster) -> socket.socket:
    """A socket on this host's port, on every network interface, as TensorFlow's own server will be.

    Raises:
        InputError: the port is taken, or may not be used.
    """
    address, port = cluster.addresses[cluster.index], cluster.port
    both = socket.has_dualstack_ipv6()
    try:
        return socket.create_server(
            ("", port), family=socket.AF_INET6 if both else socket.AF_INET, dualstack_ipv6=both, backlog=128
        )
    except OSError as error:
        raise InputError(
            f"{address}: port {port} of this host cannot be used ({error.strerror}); end the program that has it (an "
            "earlier run?), or change the port on every host"
        ) from None


def reach(address: str, seconds: float) -> str | None:
    """None if something listens there; else why it cannot be reached."""
    try:
        socket.create_connection(host_and_port(address), timeout=seconds).close()
    except OSError as error:
        return why(error)
    return None


def why(error: OSError) -> str:
    """What a failed connection says, in a few words."""
    if isinstance(error, TimeoutError):
        return "no answer"
    return str(error.strerror or error).lower()


def without_proxy(cluster: Cluster) -> None:
    """Keep gRPC from sending what is for another host through the proxy that `http_proxy` names."""
    hosts = {host_and_port(address)[0] for address in cluster.addresses}
    os.environ.update({"no_grpc_proxy": ",".join(sorted(hosts))})


def specification(cluster: Cluster) -> tf.train.ClusterSpec:
    """The cluster in TensorFlow's terms."""
    return tf.train.ClusterSpec({JOB: list(cluster.addresses)})


def start_server(cluster: Cluster, cpus: int) -> Any:
    """TensorFlow's server of a worker, with so many virtual CPU devices and all GPUs.

    Raises:
        InputError: it cannot start.
    """
    without_proxy(cluster)
    settings = tf.compat.v1.ConfigProto(device_count={"CPU": cpus})
    try:
        return tf.distribute.Server(specification(cluster), job_name=JOB, task_index=cluster.index, config=settings)
    except (tf.errors.OpError, RuntimeError) as error:
        raise InputError(f"TensorFlow's server does not start: {first_line(error)}") from None


def split_cpu(count: int) -> None:
    """Make the CPU of this process so many devices.

    Raises:
        InputError: TensorFlow has started them already.
    """
    cpu = tf.config.list_physical_devices("CPU")[0]
    try:
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * count)
    except RuntimeError:
        if len(tf.config.list_logical_devices("CPU")) != count:
            raise InputError("a cluster is joined before TensorFlow computes anything: start a new process") from None


def connect(cluster: Cluster) -> None:
    """Make this process the one that runs programs on the devices of all hosts.

    Raises:
        InputError: TensorFlow refuses.
    """
    without_proxy(cluster)
    try:
        tf.config.experimental_connect_to_cluster(specification(cluster), job_name=JOB, task_index=0)
    except (tf.errors.OpError, RuntimeError) as error:
        raise InputError(f"TensorFlow cannot connect the hosts: {first_line(error)}") from None


def first_line(error: Exception) -> str:
    """What an error of TensorFlow says, without the rest."""
    return str(getattr(error, "message", None) or error).splitlines()[0]
