"""TPUs that are not there: a made-up topology, from which TPUEstimator builds the whole graph that a TPU would run."""

from __future__ import annotations

from typing import Any

from gpt_mesh.meshes.compat import quiet_estimator

import numpy as np
import tensorflow as tf

from gpt_mesh.config import Config
from gpt_mesh.planning.graph import limits_of
from gpt_mesh.tpu.devices import Tpu
from gpt_mesh.tpu.engine import TpuEngine
from gpt_mesh.tpu.estimator import Host
from gpt_mesh.tpu.session import graph_mode

# Chips along x and y; a v3 chip has two cores, a host has a square of four chips. (No v3 is as small as the first.)
V3_4, V3_8, V3_32, V3_256 = (2, 1), (2, 2), (4, 4), (8, 16)


def topology(chips: tuple[int, int]) -> Any:
    """Of a v3 slice: hosts are squares of 2 x 2 chips, or what there is of them, row by row."""
    columns, rows = chips
    hosts = [(x, y) for y in range(0, rows, 2) for x in range(0, columns, 2)]
    square = [(i, j) for j in range(min(2, rows)) for i in range(min(2, columns))]
    devices = [[[x + i, y + j, 0, core] for i, j in square for core in (0, 1)] for x, y in hosts]
    return tf.tpu.experimental.Topology(
        mesh_shape=np.array([columns, rows, 1, 2], np.int32), device_coordinates=np.array(devices, np.int32)
    )


def assign(chips: tuple[int, int]) -> Any:
    """The device assignment that TPUEstimator makes for a v3 of so many chips."""
    from tensorflow.python.tpu.device_assignment import device_assignment

    made_up = topology(chips)
    return device_assignment(made_up, [1, 1, 1, 1], None, made_up.num_tasks * made_up.num_tpus_per_task)


class Resolver:
    """Knows where the hosts would be."""

    def __init__(self, hosts: int) -> None:
        self._spec = tf.train.ClusterSpec({"worker": [f"10.0.0.{i + 1}:8470" for i in range(hosts)]})

    def master(self) -> str:
        return "grpc://10.0.0.1:8470"

    def cluster_spec(self) -> tf.train.ClusterSpec:
        return self._spec


def stand_in_tpu(monkeypatch: Any, chips: tuple[int, int]) -> Tpu:
    """A v3 of so many chips, which TPUEstimator takes for real while it builds graphs."""
    made_up = topology(chips)
    cores, hosts = made_up.num_tasks * made_up.num_tpus_per_task, made_up.num_tasks
    facts = tf.tpu.experimental.TPUSystemMetadata(
        num_cores=cores, num_hosts=hosts, num_of_cores_per_host=8, topology=made_up, devices=()
    )
    from tensorflow_estimator.python.estimator.tpu import tpu_context

    monkeypatch.setattr(
        tpu_context.tpu_system_metadata_lib, "_query_tpu_system_metadata", lambda *given, **named: facts
    )
    return Tpu("stand-in", cores, Resolver(hosts))


def tpu_engine(config: Config, tpu: Tpu) -> TpuEngine:
    """An engine for the config's mesh."""
    plan = tpu.plan(config, limits_of(config), training=True)
    return TpuEngine(config, plan, tpu)


def build(host: Host, mode: str, input_fn: Any) -> tuple[tf.Graph, Any]:
    """The graph of a mode as TPUEstimator builds it, and its specification."""
    from tensorflow_estimator.python.estimator.tpu import error_handling

    with quiet_estimator(), graph_mode(), tf.Graph().as_default() as graph:
        estimator = host.estimator()
        estimator._rendezvous[mode] = error_handling.ErrorRendezvous(3)  # as its train(), evaluate() and predict() do
        estimator._create_and_assert_global_step(graph)
        features, labels, _ = estimator._get_features_and_labels_from_input_fn(input_fn, mode)
        return graph, estimator._call_model_fn(features, labels, mode, estimator.config)
