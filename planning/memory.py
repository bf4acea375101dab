"""How much memory a run takes on each of its devices, from the config alone.

An estimate is a list of tensors by their named dimensions, so that it follows any layout: a device holds a tensor's
size divided by the parts of each dimension that is split.
"""

from __future__ import annotations

import functools
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from types import ModuleType

from gpt_mesh.meshes.compat import mtf

import tensorflow as tf

from gpt_mesh.config import Config
from gpt_mesh.meshes import native
from gpt_mesh.meshes.devices import OPTIMIZER_PART, MeshPlan, have_tensor_cores
from gpt_mesh.models import vocabulary_loss
from gpt_mesh.models.attention import cudnn
from gpt_mesh.models.attention import native as native_attention
from gpt_mesh.models.attention.backend import View
from gpt_mesh.models.attention.linear import CHUNK
from gpt_mesh.models.dims import Dims, whole
from gpt_mesh.models.shapes import weight_shapes
from gpt_mesh.objectives.registry import objective_of
from gpt_mesh.optimizers.registry import find
from gpt_mesh.steps.microbatches import microbatch_size
from gpt_mesh.steps.state_split import StateSplit

# Tensors by their dimensions, each with a number of bytes (or of copies) an element.
Tensors = Mapping[tuple[mtf.Dimension, ...], float]


def training_memory(config: Config, plan: MeshPlan | None = None) -> dict[str, int]:
    """Bytes that training takes on one device: exact for weights and optimizer, near for gradients, rough for
    activations.

    Args:
        plan: the mesh and the layout; default: one device, of a kind without flash attention.
    """
    return _memory_of(config).on_device(MeshPlan({}, {}, ("",)) if plan is None else plan)


@functools.lru_cache(maxsize=8)
def _memory_of(config: Config) -> _Memory:
    return _Memory(config)


class _Memory:
    """What a config holds, as tensors: made once, and then cut by any number of layouts."""

    def __init__(self, config: Config) -> None:
        shapes = list(weight_shapes(config.model).values())
        self.config = config
        self.weights = _counted(shapes)
        self.slots, self.factors = (_counted(kept) for kept in _slot_shapes(config, shapes))
        kinds = Counter(_kind(config, number) for number in range(config.model.n_layer))
        self.layers = {
            fused: [(count, _layer(config, *kind, fused=fused)) for kind, count in kinds.items()]
            for fused in (None, cudnn, native_attention)
        }
        dims = Dims.of(config.model, 1, config.model.n_ctx)
        self.stream = {(dims.sequence, dims.embd): float(_activation_bytes(config))}
        self.logits = {(dims.sequence, dims.vocab): 8.0}
        if config.optimizer.entmax_loss:  # which looks at all scores of a position together
            self.logits = {(dims.sequence, dims.whole_vocab): 8.0}

    def on_device(self, plan: MeshPlan) -> dict[str, int]:
        settings, splits = self.config.training, plan.splits
        weights = _held(self.weights, splits)
        sequences = settings.train_batch_size // splits.get("batch", 1)
        microbatch = microbatch_size(self.config, sequences)
        narrow = _activation_bytes(self.config)
        # Microbatches add theirs to float32 sums.
        gradients = weights * (narrow + 4 if microbatch < sequences else narrow)
        return {
            "weights": int(4 * weights),
            "gradients": int(gradients),
            "optimizer": int(4 * (self._slots(plan) + _held(self.factors, splits))),
            "activations": int(microbatch * self._inside(plan) + self._scores(plan, microbatch)),
        }

    def _slots(self, plan: MeshPlan) -> float:
        """Numbers in those of the optimizer's slots that are as large as their weights."""
        splits = plan.splits
        if not self.config.optimizer.split_optimizer_state or splits.get("batch", 1) == 1:
            return _held(self.slots, splits)
        order = list(plan.shape)
        axes = {name: order.index(axis) for name, axis in plan.rules.items() if splits[name] > 1}
        cut = StateSplit(splits["batch"], axes["batch"], axes)
        parts: Counter[tuple[mtf.Dimension, ...]] = Counter()
        for dims, count in self.slots.items():
            parts[tuple(cut.shape(mtf.Shape(list(dims))).dims)] += int(count)
        return _held(parts, {**splits, OPTIMIZER_PART: splits["batch"]})

    def _inside(self, plan: MeshPlan) -> float:
        """Bytes that the backward pass of a sequence reads again: all layers' insides, or, with `recompute_grad`, each
        layer's input and one layer's inside.
        """
        splits = plan.splits
        if "experts" in splits and plan.rules["experts"] == plan.rules.get("batch"):
            # Tokens change places: a device has fewer experts, but those of all the batch.
            splits["experts"] = 1
        fused = None if {"sequence", "memory_length"} & splits.keys() else _fused_attention(plan)
        layers = [(count, _held(tensors, splits)) for count, tensors in self.layers[fused]]
        if self.config.training.recompute_grad:
            return self.config.model.n_layer * _held(self.stream, splits) + max(size for _, size in layers)
        return sum(count * size for count, size in layers)

    def _scores(self, plan: MeshPlan, microbatch: int) -> float:
        """Bytes of the logits and their gradient: of all tokens in float32, or of a piece of them at a time."""
        splits = plan.splits
        everything = microbatch * _held(self.logits, splits)
        training = self.config.training
        if not training.fused_ops or self.config.optimizer.entmax_loss or {"vocab", "embd"} & splits.keys():
            return everything
        narrow = _activation_bytes(self.config)
        if _fused_attention(plan) is native_attention and narrow == 4:
            return min(everything / 2, 4.0 * vocabulary_loss.CPU_TOKENS * self.config.model.n_vocab)
        on_cpu = all("CPU" in name for name in plan.devices)
        piece = min(everything, 2 * (vocabulary_loss.CPU_BYTES if on_cpu else vocabulary_loss.GPU_BYTES))
        return piece * narrow / 4


def _fused_attention(plan: MeshPlan) -> ModuleType | None:
    """Whose attention may keep no scores on these devices: see models/attention/softmax.py."""
    if plan.compiled and have_tensor_cores(plan.devices):
        return cudnn
    on_cpu = plan.compiled and all("CPU" in name for name in plan.devices)
    return native_attention if on_cpu and native.known() else None


def _activation_bytes(config: Config) -> int:
    return 2 if config.training.precision == "bfloat16" else 4


def _held(tensors: Tensors, splits: Mapping[str, int]) -> float:
    """One device's part of tensors, in what they are counted in."""
    return sum(
        per_element * math.prod(dim.size // splits[dim.name] if dim.name in splits else dim.size for dim in dims)
        for dims, per_element in tensors.items()
    )


def _counted(shapes: Iterable[mtf.Shape]) -> Tensors:
    return Counter(tuple(shape.dims) for shape in shapes)


def _slot_shapes(config: Config, shapes: list[mtf.Shape]) -> tuple[list[mtf.Shape], list[mtf.Shape]]:
    """What the optimizer keeps for weights of these shapes: slots of the same shapes, and others."""
    slot_shapes = find(config.optimizer.opt_name).slot_shapes
    pairs = [(slot == shape, slot) for shape in shapes for slot in slot_shapes(config.optimizer, shape).values()]
    return [slot for same, slot in pairs if same], [slot for same, slot in pairs if not same]


def _kind(config: Config, number: int) -> tuple[str, bool]:
    """What tells one block's size from another's: its attention, and whether it is a mixture of experts."""
    return config.model.attention_types[number], number in config.model.moe_layers


def _layer(config: Config, attention: str, mixture: bool, fused: ModuleType | None) -> Tensors:
    """Bytes inside one block, of one sequence: four times the width of the stream beside attention and four in it,
    eight in the feed-forward, and the weights of attention and their gradients in float32; or, where `fused` attention
    keeps none, its result once more and the weights' denominators.
    """
    model, size = config.model, _activation_bytes(config)
    dims = Dims.of(model, 1, model.n_ctx)
    found: defaultdict[tuple[mtf.Dimension, ...], float] = defaultdict(float)
    found[dims.sequence, dims.embd] += 4 * size
    queries, keys = (dims.sequence, dims.heads_and_features), (dims.memory_length, dims.heads_and_features)
    if attention == "linear":  # which gathers positions before it sums over them
        queries = keys = (dims.whole_sequence, dims.heads_and_features)
        chunk = mtf.Dimension("chunk", min(CHUNK, model.n_ctx))
        found[dims.heads, dims.whole_sequence, chunk] += 8
        found[dims.heads, dims.whole_sequence] += 8 * model.head_size**2 / CHUNK
    elif attention != "none" and fused and _takes_fused(config, attention, fused):
        found[dims.heads, dims.sequence] += 4
    elif attention != "none":
        found[dims.heads, dims.sequence, dims.memory_length] += 8
    if attention != "none":
        found[queries] += 2 * size
        found[keys] += 2 * size
    _add_feed_forwards(found, config, dims, mixture)
    return found


def _takes_fused(config: Config, attention: str, fused: ModuleType) -> bool:
    """Whether this kind of attention does this layer, on devices that have it: see models/attention/softmax.py."""
    model = config.model
    if model.num_mem_kv or model.attn_dropout or not config.training.fused_ops:
        return False
    dtype = tf.bfloat16 if config.training.precision == "bfloat16" else tf.float32
    if fused is native_attention:
        return dtype == tf.float32
    window = model.local_attention_radius if attention == "local" else None
    return cudnn.fits(model.n_ctx, model.head_size, dtype, View(objective_of(config).causal, window))


def _add_feed_forwards(
    found: defaultdict[tuple[mtf.Dimension, ...], float], config: Config, dims: Dims, mixture: bool
) -> None:
    """Bytes in the feed-forward parts of a block: the inside before and after its activation; of a mixture, of each
    place that a token may have at an expert, and which place it has, forward and backward in float32.
    """
    model, moe, size = config.model, config.model.moe_params, _activation_bytes(config)
    dense = (dims.sequence, dims.intermediate_expanded)
    found[dense] += (3 if model.mlp_glu else 2) * size * (model.macaron + (not mixture))
    if not mixture:
        return
    places = min(moe.moe_capacity_factor_train, moe.moe_num_experts) / moe.moe_num_experts
    by_expert = (dims.experts, whole(dims.sequence))
    found[(*by_expert, dims.expert_hidden)] += 2 * size * places
    found[(*by_expert, dims.embd)] += 2 * size * places
    found[by_expert] += 16 * places * min(moe.moe_group_size, model.n_ctx)
