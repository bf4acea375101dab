"""Finding a Cloud TPU by its name, and the mesh over its cores."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass, replace
from typing import Any

from gpt_mesh.meshes.compat import mtf, tpu_estimator

import tensorflow as tf

from gpt_mesh.config import Config
from gpt_mesh.errors import InputError
from gpt_mesh.meshes.devices import MeshPlan
from gpt_mesh.meshes.layouts import plan_mesh
from gpt_mesh.meshes.limits import Limits
from gpt_mesh.tpu.simd import CpuMesh, SimdMesh

REHEARSAL = "cpu"  # the name that runs TPUEstimator without a TPU
ANSWER_SECONDS = 20.0
_COLAB_ADDRESS = "COLAB_TPU_ADDR"
_SPARE = "spare"  # a mesh dimension that splits nothing


@dataclass(frozen=True)
class Tpu:
    """A TPU that answers.

    Attributes:
        name: as given to --tpu.
        cores: how many it has; for the rehearsal, how many CPU devices stand for them.
        resolver: where it is; None for the rehearsal.
    """

    name: str
    cores: int
    resolver: Any

    @property
    def is_rehearsal(self) -> bool:
        return self.resolver is None

    def devices(self) -> list[str]:
        """A name for each core, for messages and for the checks of a layout."""
        kind = "CPU" if self.is_rehearsal else "TPU"
        return [f"/device:{kind}:{i}" for i in range(self.cores)]

    def plan(
        self, config: Config, limits: Limits, *, training: bool = False, fit: bool = False
    ) -> MeshPlan:
        """The config's mesh over the cores; fitted to them, if it is made for another number.

        Args:
            limits: what the model allows a layout (`planning.graph.limits_of`).
            training: all cores have to be of use, and the mesh has to be made for them unless `fit`.

        Raises:
            InputError: another number of cores, or a layout that cannot work.
        """
        mesh, cores = config.mesh, self.cores
        if training and not fit and mesh.size != cores:
            suggestion = f'set "mesh_shape": "all:{cores}", "layout": "batch:all"'
            if config.training.train_batch_size % cores:
                suggestion += f" and train_batch_size to a multiple of {cores}"
            raise InputError(
                f'{config.source}: "mesh_shape": "{mesh.mesh_shape}" is for {_count(mesh.size)}, but TPU {self.name} '
                f"has {cores}; {suggestion}, add --fit_mesh, or name another TPU"
            )
        plan = plan_mesh(config, limits, self.devices(), fit=fit or not training, chosen=True, training=training)
        if len(plan.devices) == cores:
            return plan
        # A TPU is used as a whole: cores that the layout has no use for do the same as others.
        return replace(plan, shape={**plan.shape, _SPARE: cores // len(plan.devices)}, devices=tuple(self.devices()))

    def mesh(self, plan: MeshPlan, context: Any, *, batch: int, positions: int | None) -> CpuMesh | SimdMesh:
        """The mesh to lower a graph for batches of that size on.

        Args:
            plan: the layout.
            context: TPUEstimator's, which knows the cores; None for the rehearsal.
            positions: of each sequence; None: decoding, where a pass has one position and prompts have any length.
        """
        sizes = {"batch": batch, "sequence": positions or 1, "memory_length": positions or 1}
        whole = [name for name in sizes if sizes[name] % plan.splits.get(name, 1)]
        shape = mtf.Shape([mtf.Dimension(name, size) for name, size in plan.shape.items()])
        layout = mtf.LayoutRules([rule for rule in plan.rules.items() if rule[0] not in whole])
        if context is None:
            return CpuMesh(shape, layout)
        hosts = [context.tpu_host_placement_function(host_id=i) for i in range(context.num_hosts)]
        return SimdMesh(shape, layout, context.device_assignment, hosts)


def find(name: str, config: Config) -> Tpu:
    """The TPU of that name.

    Args:
        name: of a Cloud TPU in this machine's project and zone; `grpc://address:port`; `colab`; `local`, for a TPU of
            this machine; or `cpu`, which rehearses on virtual CPU devices, as many as the config's mesh has.

    Raises:
        InputError: no TPUEstimator in this TensorFlow; no such TPU, or it does not answer.
    """
    tpu_estimator()
    if name == REHEARSAL:
        return Tpu(name, config.mesh.size, None)
    resolver = _resolver(name)
    return Tpu(name, _count_cores(name, resolver), resolver)


def _resolver(name: str) -> Any:
    """
    Raises:
        InputError: there is no such TPU, or this machine may not look for it.
    """
    address = name
    if name == "colab":
        # Colab's newer TPU machines have the TPU in them; the older ones tell where it is.
        address = f"grpc://{os.environ[_COLAB_ADDRESS]}" if _COLAB_ADDRESS in os.environ else "local"
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(ANSWER_SECONDS)  # the machine that names are asked of may not exist
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver(address)
        resolver.master()
    except Exception as error:  # of any kind: HTTP, sockets, Google's libraries, TensorFlow
        raise InputError(
            f"--tpu {name}: not found ({_line(error)}); give the name of a TPU of this machine's project and zone "
            "(gcloud compute tpus list), grpc://ADDRESS:8470, colab, or local for a TPU in this machine"
        ) from None
    finally:
        socket.setdefaulttimeout(before)
    return resolver


def _count_cores(name: str, resolver: Any) -> int:
    """
    Raises:
        InputError: it does not answer, or is no TPU.
    """
    master = resolver.master()
    if master:
        host, _, port = master.removeprefix("grpc://").rpartition(":")
        try:
            socket.create_connection((host, int(port)), ANSWER_SECONDS).close()
        except (OSError, ValueError) as error:
            raise InputError(
                f"--tpu {name}: {master} does not answer ({_line(error)}); is the TPU running, and in this machine's "
                "network?"
            ) from None
    specification = resolver.cluster_spec()
    settings = tf.compat.v1.ConfigProto(operation_timeout_in_ms=int(1000 * ANSWER_SECONDS))
    if specification:
        settings.cluster_def.CopyFrom(specification.as_cluster_def())
    try:
        with tf.Graph().as_default(), tf.compat.v1.Session(master, config=settings) as session:
            cores = sum(device.device_type == "TPU" for device in session.list_devices())
    except tf.errors.OpError as error:
        raise InputError(f"--tpu {name}: {master or 'this machine'} does not answer ({_line(error)})") from None
    if not cores:
        where = f"{master} has no TPU" if master else "this machine has no TPU that TensorFlow can use"
        raise InputError(
            f"--tpu {name}: {where}; name a TPU, or leave --tpu out to train on the GPU or CPU (--tpu {REHEARSAL} "
            "rehearses TPUEstimator on the CPU)"
        )
    return cores


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _count(cores: int) -> str:
    return f"{cores} core{'s' * (cores != 1)}"
