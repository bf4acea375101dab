"""What a layout costs in a training step: the operations that each device does, and the bytes that it sends.

Both are derived from the description of the mesh graph (`graph.py`). A matmul's operations are divided by the number of
parts of every dimension that is split. A sum over a split dimension needs an all-reduce; a tensor whose layout changes
needs an all-to-all or an all-gather.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from gpt_mesh.config import Config
from gpt_mesh.meshes.devices import MeshPlan
from gpt_mesh.objectives.registry import objective_of
from gpt_mesh.planning.graph import (
    AllReduce,
    Collective,
    Description,
    Names,
    describe,
    divided,
    names_of,
    split_axes,
    weights_of,
)
from gpt_mesh.steps.microbatches import microbatch_size

# A nominal accelerator: FLOP/s, bytes sent per second, and latency of a message in seconds.
FLOPS, BYTES, LATENCY = 100e12, 100e9, 20e-6


@dataclass(frozen=True)
class Cost:
    """The cost of one training step on one device.

    Attributes:
        flops: floating-point operations of matmuls.
        sent: bytes sent.
        messages: number of collective operations.
        even: `flops` if all work were divided evenly between the devices.
    """

    flops: float
    sent: float
    messages: float
    even: float

    @property
    def repeated(self) -> float:
        """How many devices do the same work, on average: 1 if all work is divided."""
        return self.flops / self.even

    @property
    def seconds(self) -> float:
        """Seconds on the nominal accelerator, without overlapping communication: only for comparisons."""
        return self.flops / FLOPS + self.sent / BYTES + self.messages * LATENCY


def step_cost(config: Config, plan: MeshPlan) -> Cost:
    """The cost of a training step on a mesh. Only its shape, its rules and the kind of device matter."""
    description = describe(config, plan)
    flops = everything = sent = messages = 0.0
    for section in description.sections:
        again = 2 if config.training.recompute_grad and section is not description.ends else 1
        for each, times in ((section.forward, again * section.count), (section.backward, section.count)):
            for names, work in each.work.items():
                flops += times * work / divided(names, plan)
                everything += times * work
            for collective, (size, count) in each.traffic.items():
                if share := _sent(collective, plan):
                    sent += times * size * share
                    messages += times * count
    messages *= _microbatches(config, plan)
    for_weights, sums = _weight_sums(config, description, plan)
    return Cost(flops, sent + for_weights, messages + sums, everything / math.prod(plan.shape.values()))


def _weight_sums(config: Config, description: Description, plan: MeshPlan) -> tuple[float, int]:
    """Bytes and messages of all-reducing the weights' gradients, once per step."""
    size = 2 if config.training.precision == "bfloat16" else 4
    if config.training.tokens_per_mb_per_replica is not None:
        size = 4  # sums over microbatches are in float32
    sent, messages = 0.0, 0
    for dims, count in weights_of(config).items():
        names = names_of(dims)
        if share := _sent(AllReduce(names, description.weight_sums[dims]), plan):
            sent += count * size * math.prod(dim.size for dim in dims) * share
            messages += count
    return sent, messages


def _microbatches(config: Config, plan: MeshPlan) -> int:
    sequences = config.training.train_batch_size // plan.splits.get("batch", 1)
    return sequences // microbatch_size(config, sequences, objective_of(config).texts)


def _sent(collective: Collective, plan: MeshPlan) -> float:
    """The fraction of a whole tensor that each device sends."""
    if isinstance(collective, AllReduce):
        axes = split_axes(collective.summed, plan) - split_axes(collective.result, plan)
        return _around(2.0, axes, plan) / divided(collective.result, plan) if axes else 0.0
    return _moved(collective.old, collective.new, plan)


def _around(rounds: float, axes: Iterable[str], plan: MeshPlan) -> float:
    """The fraction that a device sends in a ring over these mesh dimensions: one round to gather, two to reduce
    (Patarasuk & Yuan, 2009).
    """
    devices = math.prod(plan.shape[axis] for axis in axes)
    return rounds * (devices - 1) / devices


def _moved(old: Names, new: Names, plan: MeshPlan) -> float:
    """The fraction sent for a change of layout: an all-to-all if another dimension is split, an all-gather if none is.
    Splitting further sends nothing, and happens first.
    """
    before, after = ({plan.rules[name]: name for name in names if name in plan.rules} for names in (old, new))
    cut, gathered = after.keys() - before.keys(), before.keys() - after.keys()
    exchanged = {axis for axis in before.keys() & after.keys() if before[axis] != after[axis]}
    if not exchanged and not gathered:
        return 0.0
    held = 1 / math.prod(plan.shape[axis] for axis in before.keys() | cut)
    together = held * math.prod(plan.shape[axis] for axis in gathered)
    return _around(1.0, exchanged, plan) * held + _around(1.0, gathered, plan) * together
