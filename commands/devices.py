"""Flags of the modes that compute on devices, and this host's part in a cluster."""

from __future__ import annotations

import argparse
import dataclasses
import os

from gpt_mesh.cluster.addresses import Cluster, find_cluster
from gpt_mesh.commands.mode import Flag, count, flag, positive
from gpt_mesh.errors import InputError

SEVERAL_HOSTS = "several hosts, and TPUs"

CLUSTER = flag(
    "--cluster", metavar="HOST:PORT,…", heading=SEVERAL_HOSTS, variable="TF_CONFIG",
    help="use the devices of several hosts: their addresses, the chief's (where the program runs) first; "
    "TF_CONFIG in the environment does the same",
)  # fmt: skip
WORKER = flag(
    "--worker", type=count, metavar="I", heading=SEVERAL_HOSTS, needs="--cluster",
    help="this host's place in --cluster: 0, the chief, or lend its devices",
)  # fmt: skip
TIMEOUT = flag(
    "--cluster_timeout", type=positive, metavar="S", heading=SEVERAL_HOSTS, needs="--cluster",
    help="seconds that the chief waits for workers; default: 300",
)  # fmt: skip
TPU = flag(
    "--tpu", metavar="NAME", heading=SEVERAL_HOSTS, without=("--gpu_ids", "--cluster"),
    help="use a Cloud TPU: its name, colab, or local; needs TensorFlow 2.15 (make tpu-env)",
)  # fmt: skip
HOSTS: tuple[Flag, ...] = (CLUSTER, WORKER, TIMEOUT)


def may_lend(arguments: argparse.Namespace) -> bool:
    """Whether this host may be a worker of a cluster, which needs no model: TF_CONFIG can say that it is one."""
    return bool(arguments.worker) or (CLUSTER in arguments.mode.flags and "TF_CONFIG" in os.environ)


def find_hosts(arguments: argparse.Namespace) -> Cluster | None:
    """The cluster that flags or TF_CONFIG name; None: this host alone.

    Raises:
        InputError: they cannot be used, or --model is missing and this host is no worker.
    """
    if CLUSTER not in arguments.mode.flags or arguments.tpu is not None:
        return None
    cluster = find_cluster(arguments.cluster, arguments.worker, os.environ)
    if arguments.model is None and (cluster is None or cluster.is_chief):
        raise InputError("--model is missing: only a worker does without it, and TF_CONFIG does not make this one")
    if cluster is not None and arguments.cluster_timeout is not None:
        cluster = dataclasses.replace(cluster, wait=float(arguments.cluster_timeout))
    return cluster


def lend(cluster: Cluster) -> int:
    """Lend this host's devices to the chief of a cluster for one run; returns the exit status."""
    from gpt_mesh.cluster import worker
    from gpt_mesh.storage.progress import set_up_logging

    set_up_logging()
    return worker.leave(worker.serve(cluster))
