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

JOB = "worker"  # TensorFlow's job name of all hosts, including the chief
PROTOCOL = 1  # version of the messages between hosts
log = logging.getLogger("gpt")


def own_devices(requested: Sequence[str] | None) -> list[str]:
    """The devices of this host, such as "device:GPU:0": those requested, else every GPU, else one CPU.

    Does not start them: TensorFlow configures devices when it joins a cluster.

    Raises:
        InputError: a device name is malformed, unknown or repeated.
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
    """The name of a host's device in the cluster."""
    return f"/job:{JOB}/replica:0/task:{task}/{device}"


def cpu_count(devices: Sequence[str]) -> int:
    """The number of virtual devices into which the CPU must be split."""
    return 1 + max((int(name.rsplit(":", 1)[1]) for name in devices if "CPU" in name), default=0)


def listen(cluster: Cluster) -> socket.socket:
    """Listen on this host's port on all network interfaces, like TensorFlow's server.

    Raises:
        InputError: the port is in use, or not permitted.
    """
    address, port = cluster.addresses[cluster.index], cluster.port
    both = socket.has_dualstack_ipv6()
    try:
        return socket.create_server(
            ("", port), family=socket.AF_INET6 if both else socket.AF_INET, dualstack_ipv6=both, backlog=128
        )
    except OSError as error:
        raise InputError(
            f"{address}: port {port} of this host cannot be used ({error.strerror}); end the program that uses it (an "
            "earlier run?), or change the port on every host"
        ) from None


def reach(address: str, seconds: float) -> str | None:
    """Why an address cannot be reached; None if something listens there."""
    try:
        socket.create_connection(host_and_port(address), timeout=seconds).close()
    except OSError as error:
        return why(error)
    return None


def why(error: OSError) -> str:
    """The reason of a failed connection, in a few words."""
    if isinstance(error, TimeoutError):
        return "no answer"
    return str(error.strerror or error).lower()


def without_proxy(cluster: Cluster) -> None:
    """Keep gRPC from using the proxy in `http_proxy` for connections between hosts."""
    hosts = {host_and_port(address)[0] for address in cluster.addresses}
    os.environ.update({"no_grpc_proxy": ",".join(sorted(hosts))})


def specification(cluster: Cluster) -> tf.train.ClusterSpec:
    """The cluster as TensorFlow describes it."""
    return tf.train.ClusterSpec({JOB: list(cluster.addresses)})


def start_server(cluster: Cluster, cpus: int) -> Any:
    """Start a worker's TensorFlow server, with this number of virtual CPU devices and all GPUs.

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
    """Split the CPU of this process into virtual devices.

    Raises:
        InputError: TensorFlow has already started another number of them.
    """
    cpu = tf.config.list_physical_devices("CPU")[0]
    try:
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * count)
    except RuntimeError:
        if len(tf.config.list_logical_devices("CPU")) != count:
            raise InputError("join a cluster before TensorFlow computes anything: start a new process") from None


def connect(cluster: Cluster) -> None:
    """Connect to all hosts, so that this process can run programs on their devices.

    Raises:
        InputError: TensorFlow refuses.
    """
    without_proxy(cluster)
    try:
        tf.config.experimental_connect_to_cluster(specification(cluster), job_name=JOB, task_index=0)
    except (tf.errors.OpError, RuntimeError) as error:
        raise InputError(f"TensorFlow cannot connect the hosts: {first_line(error)}") from None


def first_line(error: Exception) -> str:
    """The first line of a TensorFlow error."""
    return str(getattr(error, "message", None) or error).splitlines()[0]
