"""What a layout costs in a training step: the operations that each device does, and the bytes that it sends.

Both follow from the model's large matrix products by their named dimensions. A device does a product's operations
divided by the parts of every dimension that is split. Where a product sums over a split dimension, its result is a sum
over devices: an all-reduce. The gradients of a product are products of the same dimensions that sum over others.

Small things are left out: norms and softmax over a split dimension send a number or two a position, not a vector.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from gpt_mesh.meshes.compat import mtf

from gpt_mesh.config import Config
from gpt_mesh.meshes.devices import MeshPlan
from gpt_mesh.models.attention.linear import CHUNK
from gpt_mesh.models.dims import Dims, whole
from gpt_mesh.models.moe import MIN_CAPACITY
from gpt_mesh.models.shapes import weight_shapes
from gpt_mesh.steps.microbatches import microbatch_size

# A nominal accelerator: what it computes and sends in a second, and what it takes to begin to send.
FLOPS, BYTES, LATENCY = 100e12, 100e9, 20e-6

Tensor = tuple[mtf.Dimension, ...]


@dataclass(frozen=True)
class Cost:
    """Of one training step, on one device.

    Attributes:
        flops: floating-point operations.
        sent: bytes.
        messages: collective operations.
        even: what `flops` would be if the work was divided evenly between the devices.
    """

    flops: float
    sent: float
    messages: float
    even: float

    @property
    def repeated(self) -> float:
        """How many devices do the same work, on average: 1 where all of it is divided."""
        return self.flops / self.even

    @property
    def seconds(self) -> float:
        """On the nominal accelerator, which does not send while it computes: to compare layouts by, and no more."""
        return self.flops / FLOPS + self.sent / BYTES + self.messages * LATENCY


@dataclass(frozen=True)
class _Product:
    """An einsum of `x` and `y`.

    Attributes:
        times: so many of them share one x, whose gradients are added before they are reduced.
        y_is_weight: then its gradient is among those of all weights.
    """

    x: Tensor
    y: Tensor
    result: Tensor
    times: int = 1
    y_is_weight: bool = True

    def flops(self, plan: MeshPlan, forward: float) -> tuple[float, float]:
        """On one device, and without a mesh."""
        dims = {*self.x, *self.y, *self.result}
        work = 2.0 * self.times * (forward + 2.0)
        return work * _slice(dims, plan), work * math.prod(dim.size for dim in dims)

    def collectives(self, plan: MeshPlan, forward: float) -> list[tuple[float, float]]:
        """How often each occurs, forward and backward, and the elements that it sends."""
        result = _all_reduce({*self.x, *self.y}, self.result, plan)
        dx = _all_reduce({*self.result, *self.y}, self.x, plan)
        dy = 0.0 if self.y_is_weight else _all_reduce({*self.result, *self.x}, self.y, plan)
        return [(self.times * forward, result), (1.0, dx), (self.times, dy)]


@dataclass(frozen=True)
class _Lookup(_Product):
    """Rows of a table: an all-reduce where the table is split, and no work to speak of."""

    def flops(self, plan: MeshPlan, forward: float) -> tuple[float, float]:
        return 0.0, 0.0

    def collectives(self, plan: MeshPlan, forward: float) -> list[tuple[float, float]]:
        return [(forward, _all_reduce({*self.y}, self.result, plan))]


@dataclass(frozen=True)
class _Move:
    """A tensor that is laid out anew, and its gradient that is laid out as it was."""

    old: Tensor
    new: Tensor

    def flops(self, plan: MeshPlan, forward: float) -> tuple[float, float]:
        return 0.0, 0.0

    def collectives(self, plan: MeshPlan, forward: float) -> list[tuple[float, float]]:
        return [(forward, _moved(self.old, self.new, plan)), (1.0, _moved(self.new, self.old, plan))]


Operation = _Product | _Move


def step_cost(config: Config, plan: MeshPlan) -> Cost:
    """What a training step costs on this mesh, on which nothing but the plan's shape and rules is looked at."""
    settings, rules = config.training, plan.rules
    together = "experts" in rules and rules["experts"] == rules.get("batch")
    model = _model_of(config, together)
    narrow = 2 if settings.precision == "bfloat16" else 4
    again = 2.0 if settings.recompute_grad else 1.0
    flops = everything = sent = messages = 0.0
    for operation, count, in_block in model.operations:
        forward = again if in_block else 1.0
        mine, all_of_it = operation.flops(plan, forward)
        flops, everything = flops + count * mine, everything + count * all_of_it
        for times, elements in operation.collectives(plan, forward):
            sent += narrow * count * times * elements
            messages += count * times * bool(elements)
    messages *= _microbatches(config, plan)
    summed_over = _axes((model.dims.batch, model.dims.sequence), plan)
    # Sums of microbatches' gradients are kept in float32.
    wide = narrow if settings.tokens_per_mb_per_replica is None else 4
    for weight, count in model.weights.items():
        elements = _ring(2.0, _slice(weight, plan), summed_over - _axes(weight, plan), plan)
        sent, messages = sent + wide * count * elements, messages + count * bool(elements)
    return Cost(flops, sent, messages, everything / math.prod(plan.shape.values()))


def _microbatches(config: Config, plan: MeshPlan) -> int:
    sequences = config.training.train_batch_size // plan.splits.get("batch", 1)
    return sequences // microbatch_size(config, sequences)


def _axes(dims: Iterable[mtf.Dimension], plan: MeshPlan) -> set[str]:
    """Mesh dimensions along which any of these is split."""
    return {plan.rules[dim.name] for dim in dims if dim.name in plan.rules}


def _slice(dims: Iterable[mtf.Dimension], plan: MeshPlan) -> float:
    """Elements of one device's part of a tensor."""
    dims = list(dims)
    return math.prod(dim.size for dim in dims) / math.prod(plan.shape[axis] for axis in _axes(dims, plan))


def _ring(rounds: float, elements: float, axes: Iterable[str], plan: MeshPlan) -> float:
    """Elements that a device sends when `elements` go round the devices along these mesh dimensions: once to gather,
    twice to reduce (Patarasuk & Yuan, 2009).
    """
    devices = math.prod(plan.shape[axis] for axis in axes)
    return rounds * elements * (devices - 1) / devices


def _all_reduce(inputs: set[mtf.Dimension], result: Tensor, plan: MeshPlan) -> float:
    """Elements sent to complete `result`, which is summed over the other dimensions of the inputs."""
    summed = _axes(inputs - set(result), plan) - _axes(result, plan)
    return _ring(2.0, _slice(result, plan), summed, plan)


def _moved(old: Tensor, new: Tensor, plan: MeshPlan) -> float:
    """Elements sent to lay a tensor out anew: exchanged where it is split along another dimension, gathered where it is
    split no longer. Cutting it further sends nothing, and comes first.
    """
    before, after = ({plan.rules[dim.name]: dim.name for dim in dims if dim.name in plan.rules} for dims in (old, new))
    cut, gathered = after.keys() - before.keys(), before.keys() - after.keys()
    exchanged = {axis for axis in before.keys() & after.keys() if before[axis] != after[axis]}
    held = _slice(old, plan) / math.prod(plan.shape[axis] for axis in cut)
    together = held * math.prod(plan.shape[axis] for axis in gathered)
    return _ring(1.0, held, exchanged, plan) + _ring(1.0, together, gathered, plan)


@dataclass(frozen=True)
class _Model:
    """What a step does: operations, how often each occurs, and whether it is inside a block; and the weights."""

    dims: Dims
    operations: list[tuple[Operation, int, bool]]
    weights: Counter[Tensor]


@functools.lru_cache(maxsize=8)
def _model_of(config: Config, together: bool) -> _Model:
    """`together`: whether the layout splits batch and experts along one mesh dimension."""
    model = config.model
    dims = Dims.of(model, config.training.train_batch_size, model.n_ctx)
    blocks: Counter[Operation] = Counter()
    for number, kind in enumerate(model.attention_types):
        blocks.update(_attention(dims, kind))
        mixture = number in model.moe_layers
        for _ in range(model.macaron + (not mixture)):
            blocks.update(_feed_forward(dims, model.mlp_glu))
        if mixture:
            blocks.update(_mixture(config, dims, together))
    stream, logits = (dims.batch, dims.sequence, dims.embd), (dims.batch, dims.sequence, dims.vocab)
    ends: list[Operation] = [
        _Lookup((), (dims.vocab, dims.embd), stream),
        _Product(stream, (dims.embd, dims.vocab), logits),
    ]
    if config.optimizer.entmax_loss:
        ends.append(_Move(logits, (dims.batch, dims.sequence, dims.whole_vocab)))
    operations = [(operation, count, True) for operation, count in blocks.items()]
    weights = Counter(tuple(shape.dims) for shape in weight_shapes(model).values())
    return _Model(dims, operations + [(operation, 1, False) for operation in ends], weights)


def _attention(dims: Dims, kind: str) -> list[Operation]:
    if kind == "none":
        return []
    stream = (dims.batch, dims.sequence, dims.embd)
    merged, kernel = (dims.batch, dims.sequence, dims.heads_and_features), (dims.embd, dims.heads_and_features)
    projections: list[Operation] = [_Product(stream, kernel, merged, times=3), _Product(merged, kernel, stream)]
    gathered = (dims.batch, dims.whole_sequence, dims.heads_and_features)
    if kind == "linear":
        chunk = mtf.Dimension("chunk", min(CHUNK, dims.sequence.size))
        queries = (dims.batch, dims.whole_sequence, dims.heads, dims.features_per_head)
        pairs = (dims.batch, dims.whole_sequence, dims.heads, chunk)
        # Weights of the pairs in a chunk and their sum, and the sums of keys times values and of what queries find.
        sums = (dims.batch, dims.whole_sequence, dims.heads, dims.value_features)
        inside = [_Product(queries, (dims.features_per_head, chunk), pairs)] * 2
        inside += [_Product(queries, (dims.features_per_head, dims.value_features), sums)] * 2
        return [*projections, *[_Move(merged, gathered)] * 3, *inside, _Move(gathered, merged)]
    queries = (dims.batch, dims.sequence, dims.heads, dims.features_per_head)
    keys = (dims.batch, dims.memory_length, dims.heads, dims.features_per_head)
    pairs = (dims.batch, dims.heads, dims.sequence, dims.memory_length)
    remembered = (dims.batch, dims.memory_length, dims.heads_and_features)
    return [
        *projections,
        *[_Move(merged, gathered), _Move(gathered, remembered)] * 2,  # `Context.rename_positions`
        _Product(queries, keys, pairs, y_is_weight=False),
        _Product(pairs, keys, queries, y_is_weight=False),
    ]


def _feed_forward(dims: Dims, gated: bool) -> list[Operation]:
    stream = (dims.batch, dims.sequence, dims.embd)
    inside, kernel = (dims.batch, dims.sequence, dims.intermediate_expanded), (dims.embd, dims.intermediate_expanded)
    return [_Product(stream, kernel, inside, times=2 if gated else 1), _Product(inside, kernel, stream)]


def _mixture(config: Config, dims: Dims, together: bool) -> list[Operation]:
    """Tokens go to the experts and back; an expert is two products. Where there is room for all, none goes anywhere."""
    moe, length = config.model.moe_params, dims.sequence.size
    tokens = max(n for n in range(1, min(length, moe.moe_group_size) + 1) if length % n == 0)
    room = max(MIN_CAPACITY, math.ceil(moe.moe_capacity_factor_train * tokens / moe.moe_num_experts))
    kernel = (dims.experts, dims.embd, dims.expert_hidden)
    rows = whole(dims.batch) if together else dims.batch
    stream: Tensor = (dims.batch, dims.sequence, dims.embd)
    read: Tensor = (rows, dims.sequence, dims.embd)
    hidden: Tensor = (rows, dims.sequence, dims.experts, dims.expert_hidden)
    if room >= tokens:
        inside = [_Product(read, kernel, hidden), _Product(hidden, kernel, read)]
        return [_Move(stream, read), *inside, _Move(read, stream)]
    experts = whole(dims.experts) if together else dims.experts
    group = (mtf.Dimension("groups", length // tokens), mtf.Dimension("group_tokens", tokens))
    capacity = mtf.Dimension("expert_capacity", room)
    grouped = (dims.batch, *group, dims.embd)
    slots = (dims.batch, *group, experts, capacity)
    taken = (dims.batch, group[0], experts, capacity, dims.embd)
    read = (rows, group[0], dims.experts, capacity, dims.embd)
    hidden = (rows, group[0], dims.experts, capacity, dims.expert_hidden)
    return [
        _Move(stream, grouped),
        _Product(grouped, slots, taken, y_is_weight=False),
        _Move(taken, read),
        _Product(read, kernel, hidden),
        _Product(hidden, kernel, read),
        _Move(read, taken),
        _Product(taken, slots, grouped, y_is_weight=False),
        _Move(grouped, stream),
    ]
