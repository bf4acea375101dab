"""The memory that training takes on each device, from the config alone.

Weights and optimizer state are variables of the mesh graph; activations are what its backward pass reads (`graph.py`).
A device holds the size of a tensor divided by the number of parts of each split dimension.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
from collections import Counter
from collections.abc import Mapping

from gpt_mesh.meshes.compat import mtf

from gpt_mesh.config import Config
from gpt_mesh.errors import InputError
from gpt_mesh.meshes.devices import OPTIMIZER_PART, MeshPlan
from gpt_mesh.objectives.registry import objective_of
from gpt_mesh.optimizers.registry import find
from gpt_mesh.planning.graph import Description, Names, Section, describe, divided, names_of, weights_of
from gpt_mesh.planning.metrics import human_bytes
from gpt_mesh.steps.microbatches import microbatch_size
from gpt_mesh.steps.state_split import StateSplit

Dims = tuple[mtf.Dimension, ...]


def training_memory(config: Config, plan: MeshPlan | None = None) -> dict[str, int]:
    """Bytes that training takes on one device: exact for weights and optimizer state, close for gradients, rough for
    activations.

    Args:
        plan: the mesh and the layout; default: one device without fused attention.
    """
    plan = MeshPlan({}, {}, ("",)) if plan is None else plan
    settings, splits = config.training, plan.splits
    weights = _cut(_weights(config), plan)
    sequences = settings.train_batch_size // splits.get("batch", 1)
    objective = objective_of(config)
    microbatch = microbatch_size(config, sequences, objective.texts)
    narrow = 2 if settings.precision == "bfloat16" else 4
    return {
        "weights": int(4 * weights),
        **({"reference": int(4 * weights)} if objective.needs_reference else {}),
        # Gradients of microbatches are added to sums in float32.
        "gradients": int(weights * (narrow + 4 if microbatch < sequences else narrow)),
        "optimizer": int(4 * _held_state(config, plan)),
        "activations": int(_activations(config, plan, describe(config, plan), microbatch, sequences)),
    }


def check_memory(config: Config, plan: MeshPlan) -> None:
    """Refuse a model whose weights alone, or a batch whose tokens alone, are larger than the memory of a host.

    On GPUs, whose memory is not known here, at least 1 TiB of weights a host is allowed.

    Raises:
        InputError: this cannot work.
    """
    hosts = Counter(name.partition("/device:")[0] for name in plan.devices)
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    room = there if all("CPU" in name for name in plan.devices) else max(there, 1 << 40)
    weights = 4 * _cut(_weights(config), plan) * max(hosts.values())
    if weights > room:
        raise InputError(
            f"{config.source}: n_embd = {config.model.n_embd}, n_vocab = {config.model.n_vocab}, n_layer = "
            f"{config.model.n_layer}: the weights take {human_bytes(weights)}, more than the {human_bytes(room)} "
            "of memory; make the model smaller, or use more hosts"
        )
    for name in ("train_batch_size", "eval_batch_size", "predict_batch_size"):
        size = getattr(config.training, name)
        if 4 * size * config.model.n_ctx > there:
            raise InputError(f"{config.source}: {name} = {size}: its tokens do not fit into memory; make it smaller")


def _activations(config: Config, plan: MeshPlan, description: Description, microbatch: int, sequences: int) -> float:
    """What the backward pass of a microbatch reads: the activations of all layers or, with `recompute_grad`, the input
    of each layer and the activations of one; and the two ends, with the gradient of their largest tensor.
    """
    layers = [(section, _cut(section.kept, plan)) for section in description.layers]
    if config.training.recompute_grad:
        inputs = sum(section.count * _cut(section.stream, plan) for section in description.layers)
        held = inputs + max(size for _, size in layers)
    else:
        held = sum(section.count * size for section, size in layers)
    held += _cut(description.ends.kept, plan) + _largest_gradient(description.ends, plan)
    tokens = microbatch * objective_of(config).texts * config.model.n_ctx / plan.splits.get("sequence", 1)
    on_cpu = all("CPU" in name for name in plan.devices)
    workspaces = sum(workspace(tokens, on_cpu) for workspace in description.ends.workspaces)
    return held * microbatch / sequences + workspaces


def _cut(sizes: Mapping[Names, float], plan: MeshPlan) -> float:
    """The total size of one device's parts."""
    return sum(size / divided(names, plan) for names, size in sizes.items())


def _largest_gradient(section: Section, plan: MeshPlan) -> float:
    """Bytes of the gradient of the section's largest tensor, in float32."""
    return max(4 * size / divided(names, plan) for names, size in section.largest.items())


@functools.lru_cache(maxsize=8)
def _weights(config: Config) -> Counter[Names]:
    """Elements of the weights, by dimensions."""
    return _elements(weights_of(config))


@functools.lru_cache(maxsize=8)
def _whole_state(config: Config) -> Counter[Names]:
    """Elements of the optimizer state, by dimensions, if it is split like the weights."""
    return _state(config, StateSplit())


def _elements(tensors: Mapping[Dims, int]) -> Counter[Names]:
    found: Counter[Names] = Counter()
    for dims, count in tensors.items():
        found[names_of(dims)] += count * math.prod(dim.size for dim in dims)
    return found


def _state(config: Config, cut: StateSplit) -> Counter[Names]:
    """Elements of the optimizer state, by dimensions. Slots with the shape of their weight are split."""
    slot_shapes, state = find(config.optimizer.opt_name).slot_shapes, Counter[Dims]()
    for dims, count in weights_of(config).items():
        whole = mtf.Shape(list(dims))
        for slot in slot_shapes(config.optimizer, whole).values():
            state[tuple((cut.shape(slot) if slot == whole else slot).dims)] += count
    return _elements(state)


def _held_state(config: Config, plan: MeshPlan) -> float:
    """Elements of the optimizer's state on one device."""
    splits = plan.splits
    if not config.optimizer.split_optimizer_state or splits.get("batch", 1) == 1:
        return _cut(_whole_state(config), plan)
    order = list(plan.shape)
    axes = {name: order.index(axis) for name, axis in plan.rules.items() if splits[name] > 1}
    rules = {**plan.rules, OPTIMIZER_PART: plan.rules["batch"]}
    state = _state(config, StateSplit(splits["batch"], axes["batch"], axes))
    return _cut(state, dataclasses.replace(plan, rules=rules))
