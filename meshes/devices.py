"""Which devices a run uses, and the mesh over them."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from gpt_mesh.meshes.compat import mtf

import tensorflow as tf

from gpt_mesh.errors import InputError
from gpt_mesh.meshes import compat
from gpt_mesh.meshes.placement import PlacementMesh
from gpt_mesh.meshes.spmd import Program, SpmdMesh
from gpt_mesh.meshes.variables import VariableStore

OPTIMIZER_PART = "optimizer_part"  # the dimension of optimizer state that is split like the batch


@dataclass(frozen=True)
class MeshPlan:
    """A mesh over devices.

    Attributes:
        shape: the mesh dimensions and their sizes; empty for one device.
        rules: the mesh dimension that splits each tensor dimension.
        devices: the name of the device at each mesh position, such as "/device:GPU:0".
        notice: a message for the user about how the mesh was chosen, or "".
    """

    shape: Mapping[str, int]
    rules: Mapping[str, str]
    devices: tuple[str, ...]
    notice: str = ""

    @property
    def master_device(self) -> str:
        """The device of whole variables: the device itself if there is only one, else the CPU of the (chief's) host."""
        if len(self.devices) == 1:
            return self.devices[0]
        # "" on one host; "/job:worker/replica:0/task:0" of a cluster, whose first devices are the chief's.
        return self.devices[0].partition("/device:")[0] + "/device:CPU:0"

    @property
    def spmd(self) -> bool:
        """Whether each device runs its own program: several devices, all on this host."""
        return len(self.devices) > 1 and all(name.startswith("/device:") for name in self.devices)

    @property
    def compiled(self) -> bool:
        """Whether XLA compiles: for one device, and for several GPUs of this host. (Not for several CPU devices, for
        which TensorFlow's XLA has no collectives.)
        """
        return len(self.devices) == 1 or (self.spmd and all("GPU" in name for name in self.devices))

    @property
    def splits(self) -> dict[str, int]:
        """The number of parts of each tensor dimension in the layout."""
        return {dimension: self.shape[mesh_dimension] for dimension, mesh_dimension in self.rules.items()}

    def implementation(
        self, store: VariableStore, program: Program | None = None, *, unsplit: Collection[str] = ()
    ) -> PlacementMesh | SpmdMesh:
        """The mesh to lower graphs on. The tensor dimensions named in `unsplit` stay whole.

        `program`: for `spmd`, the program that each device runs.
        """
        shape = mtf.Shape([mtf.Dimension(name, size) for name, size in self.shape.items()])
        layout = mtf.LayoutRules(layout_rules(self.rules, unsplit))
        if program is not None:
            return SpmdMesh(shape, layout, program)
        # One device needs no name: a compiled program is placed as a whole.
        return PlacementMesh(shape, layout, [""] if len(self.devices) == 1 else list(self.devices), store)


def have_tensor_cores(devices: Sequence[str]) -> bool:
    """Whether all are NVIDIA GPUs whose tensor cores support bfloat16 (compute capability 8.0 and later)."""
    gpus = tf.config.list_physical_devices("GPU")
    if not compat.XLA_HAS_CUDNN_ATTENTION or not gpus or not all("GPU" in name for name in devices):
        return False
    details = map(tf.config.experimental.get_device_details, gpus)
    return all(gpu.get("compute_capability", (0, 0)) >= (8, 0) for gpu in details)


def layout_rules(rules: Mapping[str, str], unsplit: Collection[str] = ()) -> list[tuple[str, str]]:
    """The layout rules of a mesh: the config's, without `unsplit`, plus optimizer state split like the batch."""
    found = [rule for rule in rules.items() if rule[0] not in unsplit]
    return [*found, (OPTIMIZER_PART, rules["batch"])] if "batch" in rules else found


def visible_devices() -> list[str]:
    """Names of this machine's devices, in the form of `--gpu_ids`: "device:CPU:0", "device:GPU:0", …"""
    return [_short(device.name) for device in tf.config.list_logical_devices() if device.device_type in ("CPU", "GPU")]


def choose_devices(requested: Sequence[str] | None) -> list[str]:
    """Full names ("/device:GPU:0") of the requested devices; by default of every GPU, else of the CPU.

    A CPU can act as several devices: requesting "device:CPU:0 device:CPU:1" splits it into two virtual devices.

    Raises:
        InputError: a device name is malformed, unknown or repeated.
    """
    if not requested:
        visible = visible_devices()
        gpus = [name for name in visible if "GPU" in name]
        return [f"/{name}" for name in gpus or visible[:1]]
    names = split_cpu_for(requested)
    visible = visible_devices()
    for name in names:
        if name not in visible:
            raise InputError(f"--gpu_ids {name}: no such device; visible here: {', '.join(visible)}")
    return [f"/{name}" for name in names]


def split_cpu_for(requested: Sequence[str]) -> list[str]:
    """Names ("device:CPU:1") of the requested devices. If several are the CPU, it is split, which TensorFlow only
    allows before it has computed anything.

    Raises:
        InputError: a device name is malformed or repeated.
    """
    names = [parse_device(text) for text in requested]
    if len(set(names)) < len(names):
        raise InputError(f"--gpu_ids {' '.join(requested)}: a device is named twice; name each device once")
    _split_cpu(1 + max((int(name.rsplit(":", 1)[1]) for name in names if "CPU" in name), default=0))
    return names


def parse_device(text: str) -> str:
    """Normalise a device name given in a flag to the form "device:GPU:0".

    Raises:
        InputError: it is not a device name.
    """
    match = re.fullmatch(r"/?(?:device:)?(CPU|GPU):(\d+)", text, re.IGNORECASE)
    if match is None:
        raise InputError(f"--gpu_ids {text}: not a device name; write device:GPU:0, device:GPU:1, … or device:CPU:0")
    return f"device:{match[1].upper()}:{int(match[2])}"


def _short(name: str) -> str:
    return name[name.index("device:") :]


def _split_cpu(count: int) -> None:
    """Split the CPU into at least `count` virtual devices, if TensorFlow has not started yet."""
    cpu = tf.config.list_physical_devices("CPU")[0]
    configured = tf.config.get_logical_device_configuration(cpu)
    if count <= len(configured or [None]):
        return
    try:
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * count)
    except RuntimeError:
        return  # already started with fewer devices: the caller reports the missing one
