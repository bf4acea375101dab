"""Describes a training step from the mesh graph that the model's code builds, without lowering it.

The graph is built in sections: the two ends of the model (embeddings, last norm, loss), and one layer of each kind,
counted as often as it occurs. `mtf.gradients` adds each section's backward pass. A walk over the operations then
finds the matmuls, the sums over dimensions that a layout may split, the tensors that change their layout, and the
tensors that the backward pass reads. Fused functions declare what their operations do not show
(`models.kernels.kernel`).

The model's code depends on which dimensions a layout splits. Its queries of the layout are recorded, and the graph is
built again for a layout that answers them differently.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from gpt_mesh.meshes.compat import mtf

import tensorflow as tf

from gpt_mesh import model_fns
from gpt_mesh.config import TENSOR_DIMENSIONS, Config
from gpt_mesh.meshes.devices import OPTIMIZER_PART, MeshPlan, have_tensor_cores
from gpt_mesh.meshes.limits import Limits
from gpt_mesh.models import gpt, kernels
from gpt_mesh.models.attention.cache import FullPass
from gpt_mesh.models.context import Context
from gpt_mesh.models.dims import Dims, whole
from gpt_mesh.models.shapes import unallocated, weight_shapes
from gpt_mesh.objectives.registry import objective_of

Names = frozenset[str]  # of dimensions that a layout may split, or that are split with others
SPLITTABLE = (*TENSOR_DIMENSIONS, OPTIMIZER_PART)


@dataclass(frozen=True)
class AllReduce:
    """A tensor with dimensions `result` is summed over the devices that split the dimensions `summed`."""

    result: Names
    summed: Names


@dataclass(frozen=True)
class Relayout:
    """A tensor with dimensions `old` is laid out again with dimensions `new`."""

    old: Names
    new: Names


Collective = AllReduce | Relayout


@dataclass
class Pass:
    """One pass through a section, forward or backward.

    Attributes:
        work: floating-point operations of matmuls, by the dimensions that divide them.
        traffic: bytes and number of whole tensors, by collective.
    """

    work: defaultdict[Names, float] = field(default_factory=lambda: defaultdict(float))
    traffic: defaultdict[Collective, list[int]] = field(default_factory=lambda: defaultdict(lambda: [0, 0]))


@dataclass(frozen=True)
class Section:
    """A part of a training step, for the whole batch.

    Attributes:
        count: how often it occurs.
        stream: bytes of its input, the residual stream, by its dimensions.
        kept: bytes of the tensors that the backward pass reads, including the stream, by their dimensions.
        largest: elements of the largest of these tensors, by their dimensions.
        workspaces: temporary bytes of fused functions, as functions of a device's tokens and of whether the device is
            a CPU.
        weight_sums: the dimensions over which each weight's gradient is summed, by the weight's dimensions.
        model_flops: FLOPs of matmuls with weights and of fused functions, forward and backward.
        shapes: shapes of all tensors.
        refused: dimensions that an operation requires to be whole.
    """

    count: int
    forward: Pass
    backward: Pass
    stream: Counter[Names]
    kept: Counter[Names]
    largest: Mapping[Names, int]
    workspaces: list[Callable[[float, bool], float]]
    weight_sums: Mapping[tuple[mtf.Dimension, ...], Names]
    model_flops: float
    shapes: list[mtf.Shape]
    refused: Names


@dataclass(frozen=True)
class Description:
    """A training step: its two ends, and one section for each kind of layer between them."""

    ends: Section
    layers: list[Section]

    @property
    def sections(self) -> list[Section]:
        """The ends and the layers."""
        return [self.ends, *self.layers]

    @functools.cached_property
    def weight_sums(self) -> dict[tuple[mtf.Dimension, ...], Names]:
        """The dimensions over which gradients are summed, by the dimensions of the weights."""
        return {dims: names for section in self.sections for dims, names in section.weight_sums.items()}


def describe(config: Config, plan: MeshPlan) -> Description:
    """Describe a training step on a mesh. Only its shape, its rules and the kind of device matter."""
    axes = list(plan.shape)
    split = {name: axes.index(axis) for name, axis in plan.rules.items() if plan.shape[axis] > 1}
    return _variants(config, _kind_of(plan)).for_layout(split)


def _kind_of(plan: MeshPlan) -> str:
    """The kind of device, as far as the model's code depends on it."""
    if plan.compiled and have_tensor_cores(plan.devices):
        return "tensor cores"
    return "CPU" if len(plan.devices) == 1 and "CPU" in plan.devices[0] else "other"


def divided(names: Iterable[str], plan: MeshPlan) -> int:
    """The number of parts into which a layout splits a tensor with these dimensions."""
    return math.prod(plan.shape[axis] for axis in split_axes(names, plan))


def split_axes(names: Iterable[str], plan: MeshPlan) -> set[str]:
    """Mesh dimensions along which a layout splits any of these dimensions."""
    return {plan.rules[name] for name in names if name in plan.rules}


class Variants:
    """The graphs of a config for one kind of device, one for each set of answers to its queries of a layout."""

    def __init__(self, config: Config, kind: str) -> None:
        self._config, self._kind = config, kind
        self._found: list[tuple[_ObservedLayout, Description]] = []
        self._known: dict[tuple[tuple[str, int], ...], Description] = {}

    def for_layout(self, split: Mapping[str, int]) -> Description:
        """For a layout that splits these dimensions, each along the mesh axis of that number."""
        order: dict[int, int] = {}
        numbered = {
            name: order.setdefault(split[name], len(order)) for name in TENSOR_DIMENSIONS if name in split
        }  # mesh axes by first use, because the numbers themselves do not matter
        key = tuple(numbered.items())
        if key not in self._known:
            self._known[key] = self._build(numbered)
        return self._known[key]

    def _build(self, axes: Mapping[str, int]) -> Description:
        for layout, description in self._found:
            if layout.answers_as(axes):
                return description
        layout = _ObservedLayout(axes)
        description = _describe(self._config, layout, self._kind)
        self._found.append((layout, description))
        return description


@functools.lru_cache(maxsize=8)
def _variants(config: Config, kind: str) -> Variants:
    return Variants(config, kind)


class _ObservedLayout(Mapping[str, int]):
    """The mesh axes of split dimensions; records all queries."""

    def __init__(self, axes: Mapping[str, int]) -> None:
        self._axes = axes
        self._asked: dict[str, int | None] = {}
        self._tested: dict[str, bool] = {}

    def __getitem__(self, name: str) -> int:
        self._asked[name] = self._axes.get(name)
        return self._axes[name]

    def __contains__(self, name: object) -> bool:
        self._tested[str(name)] = name in self._axes
        return name in self._axes

    def __iter__(self) -> Iterator[str]:
        raise NotImplementedError("the model's code queries dimensions by name")

    def __len__(self) -> int:
        raise NotImplementedError("the model's code queries dimensions by name")

    def answers_as(self, axes: Mapping[str, int]) -> bool:
        """Whether other axes would have given the same answers."""
        same = all(axes.get(name) == axis for name, axis in self._asked.items())
        return same and all((name in axes) == found for name, found in self._tested.items())


def _describe(config: Config, layout: Mapping[str, int], kind: str) -> Description:
    counts = Counter[tuple[str, bool]]()
    first: dict[tuple[str, bool], int] = {}
    for number, attention in enumerate(config.model.attention_types):
        layer = attention, number in config.model.moe_layers
        counts[layer] += 1
        first.setdefault(layer, number)
    layers = [_layer(config, layout, kind, first[layer], count) for layer, count in counts.items()]
    return Description(_ends(config, layout, kind), layers)


def _context(config: Config, layout: Mapping[str, int], kind: str, texts: int = 1) -> Context:
    """A new mesh graph for training. `texts`: of an example."""
    dims = Dims.of(config.model, config.training.train_batch_size * texts, config.model.n_ctx)
    mesh = mtf.Mesh(mtf.Graph(), "mesh")
    on_cpu = config.training.fused_ops and kind == "CPU"
    ctx = model_fns.context_on(config, mesh, dims, layout, tensor_cores=kind == "tensor cores", cpu_kernels=on_cpu)
    return dataclasses.replace(ctx, seed=mtf.zeros(mesh, mtf.Shape([]), tf.int32))


def _layer(config: Config, layout: Mapping[str, int], kind: str, number: int, count: int) -> Section:
    """One layer, which occurs `count` times."""
    with unallocated():
        ctx = _context(config, layout, kind, objective_of(config).texts)
        x = mtf.zeros(ctx.mesh, mtf.Shape([ctx.dims.batch, ctx.dims.sequence, ctx.dims.embd]), ctx.dtype)
        found = gpt.Block(ctx, number, FullPass())(x)
        # A mixture's third output, the logged load, has no gradient.
        outputs = [found[0], found[1]] if isinstance(found, tuple) else [found]
        return _section(ctx, count, x, outputs)


def _ends(config: Config, layout: Mapping[str, int], kind: str) -> Section:
    """What comes before and after the layers: a model without layers."""
    with unallocated():
        ctx = _context(config, layout, kind)
        ctx = dataclasses.replace(ctx, model=ctx.model.model_copy(update={"n_layer": 0}))
        objective = objective_of(config)
        shape = objective.batch_shape(ctx.dims.batch.size, ctx.dims.sequence.size + 1)
        features = {
            name: mtf.zeros(ctx.mesh, model_fns.feature_shape(ctx.dims, x), x.dtype)
            for name, x in objective.features(tf.compat.v1.placeholder(tf.int32, shape), 0).items()
        }
        loss = objective.loss(ctx, features, objective.total(ctx, features)).loss
        return _section(ctx, 1, None, [loss])


def _section(ctx: Context, count: int, x: mtf.Tensor | None, outputs: Sequence[mtf.Tensor]) -> Section:
    """The section of a graph that computes `outputs` from `x`, and their gradients."""
    graph = ctx.mesh.graph
    forward, weights = list(graph.operations), list(graph.trainable_variables)
    inputs = [] if x is None else [x]
    upstream = [mtf.zeros(y.mesh, y.shape, y.dtype) for y in outputs]
    start = len(graph.operations)
    gradients = mtf.gradients(outputs, [*inputs, *(weight.value for weight in weights)], upstream, forward)
    backward = graph.operations[start:]
    walk = _Walk(ctx.axes)
    passes = walk.over(forward), walk.over(backward)
    for dx in gradients[: len(inputs)]:
        walk.complete(dx)
    found = zip(weights, gradients[len(inputs) :], strict=True)
    matmuls = sum(matmul_flops(op) for op in forward if any(is_weight(y) for y in op.inputs))
    operations = [*forward, *backward]
    kept = _Kept(x, forward, backward)
    inside = [each[0] for op in forward for each in getattr(op, "kept", ()) if isinstance(each, tuple)]
    return Section(
        count=count,
        forward=passes[0],
        backward=passes[1],
        stream=Counter({names_of(y.shape.dims): size_of(y) for y in inputs}),
        kept=kept.sizes,
        largest=kept.largest,
        workspaces=[op.workspace for op in forward if hasattr(op, "workspace")],
        weight_sums={tuple(w.shape.dims): walk.waiting.get(dw, frozenset()) for w, dw in found},
        model_flops=3.0 * matmuls + sum(getattr(op, "flops", 0.0) for op in operations),
        shapes=[y.shape for op in operations for y in op.outputs] + inside,
        refused=frozenset(name for op in operations for name in _unsplittable(op)),
    )


def names_of(dims: Iterable[mtf.Dimension]) -> Names:
    """Those dimensions of a tensor that a layout may split."""
    return frozenset(dim.name for dim in dims if dim.name in SPLITTABLE)


def size_of(x: mtf.Tensor) -> int:
    """Bytes of a whole tensor."""
    return x.shape.size * x.dtype.size


def matmul_flops(op: mtf.Operation) -> float:
    """Floating-point operations of an einsum that is a matmul: each factor has a dimension of the result that the other
    lacks, and another dimension is summed over. 0 for elementwise multiplication.
    """
    if not isinstance(op, mtf.EinsumOperation) or len(op.inputs) != 2:
        return 0.0
    left, right, result = (set(x.shape.dims) for x in (*op.inputs, op.outputs[0]))
    if not (left | right) - result or not (left - right) & result or not (right - left) & result:
        return 0.0
    return 2.0 * math.prod(dim.size for dim in left | right)


def is_weight(x: mtf.Tensor) -> bool:
    """Whether a tensor is a variable, perhaps cast or reshaped."""
    while not isinstance(x.operation, mtf.Variable):
        if len(x.operation.inputs) != 1 or x.shape.size != x.operation.inputs[0].shape.size:
            return False
        x = x.operation.inputs[0]
    return True


class _Walk:
    """Follows the operations in order, as lowering does.

    Attributes:
        waiting: tensors with a pending all-reduce, and the dimensions that it sums over. mesh-tensorflow delays it
            until the tensor is used, and adds such tensors before that.
    """

    def __init__(self, layout: Mapping[str, int]) -> None:
        """`layout`: the mesh axes of split dimensions."""
        self._layout = layout
        self.waiting: dict[mtf.Tensor, Names] = {}
        self._pass = Pass()

    def over(self, operations: Iterable[mtf.Operation]) -> Pass:
        """The work and traffic of these operations."""
        self._pass = Pass()
        for op in operations:
            self._visit(op)
        return self._pass

    def complete(self, x: mtf.Tensor) -> None:
        """Do the pending all-reduce of a tensor, if there is one."""
        if summed := self.waiting.pop(x, None):
            self._record(AllReduce(names_of(x.shape.dims), summed), x)

    def _record(self, collective: Collective, x: mtf.Tensor) -> None:
        if x.shape.size > 1:  # scalars are left out
            entry = self._pass.traffic[collective]
            entry[0] += size_of(x)
            entry[1] += 1

    def _visit(self, op: mtf.Operation) -> None:
        if flops := matmul_flops(op) + getattr(op, "flops", 0.0):
            self._pass.work[frozenset().union(*(names_of(x.shape.dims) for x in op.inputs + op.outputs))] += flops
        if self._passes_on(op):
            return
        for x in op.inputs:
            self.complete(x)
        if isinstance(op, mtf.ReshapeOperation):
            old, new = names_of(op.inputs[0].shape.dims), names_of(op.outputs[0].shape.dims)
            if old != new:
                self._record(Relayout(old, new), op.outputs[0])
        for y in op.outputs:
            summed = _summed(op, y)
            if summed and isinstance(op, mtf.ReduceOperation) and op._reduction_fn_string != "SUM":
                self._record(AllReduce(names_of(y.shape.dims), summed), y)
            elif summed:
                self.waiting[y] = summed

    def _passes_on(self, op: mtf.Operation) -> bool:
        """Whether an operation passes on a pending all-reduce of its inputs."""
        y = op.outputs[0] if op.outputs else None
        waits = [self.waiting.get(x) for x in op.inputs]
        if y is None or not waits or not waits[0]:
            return False
        summed = waits[0]
        if isinstance(op, mtf.AddOperation):
            passes = op.inputs[0].shape == op.inputs[1].shape == y.shape and self._along_the_same(waits[0], waits[1])
            summed = waits[0] | (waits[1] or waits[0])
        elif isinstance(op, mtf.ReshapeOperation):
            passes = names_of(op.inputs[0].shape.dims) == names_of(y.shape.dims)
        else:
            passes = isinstance(op, kernels.LinearOperation)
        if passes:
            self.waiting[y] = summed
        return passes

    def _along_the_same(self, one: Names, other: Names | None) -> bool:
        """Whether a layout sums over both sets of dimensions along the same mesh axes."""
        if not other or one == other:
            return one == other
        axes = [{self._layout.get(name) for name in sorted(names)} - {None} for names in (one, other)]
        return axes[0] == axes[1]


def _summed(op: mtf.Operation, y: mtf.Tensor) -> Names:
    """The dimensions over which an output of an operation is summed."""
    if isinstance(op, kernels.SliceOperation):
        summed = op.summed(y)
    elif isinstance(op, (mtf.EinsumOperation, mtf.ReduceOperation)):
        summed = {name for x in op.inputs for name in x.shape.dimension_names}
    else:
        return frozenset()
    return frozenset(name for name in summed if name in TENSOR_DIMENSIONS) - names_of(y.shape.dims)


def _unsplittable(op: mtf.Operation) -> Names:
    """The dimensions that a fused function requires to be whole."""
    return frozenset(op.unsplittable_dims) if isinstance(op, kernels.Kernel) else frozenset()


class _Kept:
    """The tensors of the forward pass that the backward pass reads.

    Results of elementwise operations that only elementwise operations read are not kept: compilers fuse the two and
    recompute the former, if their inputs are no larger.
    """

    def __init__(
        self, x: mtf.Tensor | None, forward: Sequence[mtf.Operation], backward: Sequence[mtf.Operation]
    ) -> None:
        self._there = {y for op in forward for y in op.outputs}
        self._input = x
        self._tensors: dict[mtf.Tensor, None] = {}
        inside: list[tuple[mtf.Shape, tf.DType]] = []
        later: list[mtf.Tensor] = []
        for op in backward:
            fused = op.forward if isinstance(op, kernels.KernelGradient) else None
            by_element = not matmul_flops(op) if fused is None else _by_element(fused)
            for read in op.inputs if fused is None else fused.kept:
                if isinstance(read, tuple):
                    inside.append(read)
                elif read in self._there and self._counts(read):
                    if by_element:
                        later.append(read)
                    else:
                        self._tensors[self._view(read)] = None
        for read in later:
            sources = {source: None for source in self._sources(read) if source not in self._tensors}
            smaller = sum(map(size_of, sources)) <= size_of(read)
            self._tensors.update(sources if smaller else {read: None})
        self.sizes: Counter[Names] = Counter()
        self.largest: dict[Names, int] = {}
        for shape, dtype in [*inside, *((each.shape, each.dtype) for each in self._tensors)]:
            names = names_of(shape.dims)
            self.sizes[names] += shape.size * dtype.size
            self.largest[names] = max(self.largest.get(names, 0), shape.size)

    @staticmethod
    def _counts(x: mtf.Tensor) -> bool:
        """Whether a tensor depends on the batch. Weights are counted elsewhere; masks and positions are small."""
        names = x.shape.dimension_names
        return x.dtype.is_floating and ("batch" in names or whole(mtf.Dimension("batch", 1)).name in names)

    def _view(self, x: mtf.Tensor) -> mtf.Tensor:
        """The tensor whose memory `x` shares: reshapes and unstacking copy nothing."""
        while x != self._input:
            op = x.operation
            if isinstance(op, mtf.ReshapeOperation):
                if names_of(op.inputs[0].shape.dims) != names_of(x.shape.dims):
                    return x
            elif not isinstance(op, (mtf.UnstackOperation, mtf.StopGradient)):
                return x
            x = op.inputs[0]
        return x

    def _sources(self, x: mtf.Tensor) -> dict[mtf.Tensor, None]:
        """The tensors from which a tensor is computed element by element."""
        x = self._view(x)
        if x == self._input or x in self._tensors or not _by_element(x.operation):
            return {x: None}
        inputs = [y for y in x.operation.inputs if self._counts(y)]
        return {source: None for y in inputs for source in self._sources(y)}


def _by_element(op: mtf.Operation) -> bool:
    """Whether each element of the result depends on one element of each input."""
    if len(op.outputs) != 1 or op.unsplittable_dims:
        return False
    dims = set(op.outputs[0].shape.dims)
    return all(dims >= set(x.shape.dims) for x in op.inputs)


@functools.lru_cache(maxsize=8)
def model_flops(config: Config) -> float:
    """FLOPs of a training step's matmuls with weights and of its fused functions, forward and backward."""
    # Attention dropout adds no FLOPs, but uses another path, which also computes logits outside of the window.
    model = config.model.model_copy(update={"attn_dropout": 0.0})
    config = dataclasses.replace(config, model=model)
    return sum(section.count * section.model_flops for section in _describe(config, {}, "other").sections)


@functools.lru_cache(maxsize=8)
def weights_of(config: Config) -> Counter[tuple[mtf.Dimension, ...]]:
    """The number of weights of each shape."""
    return Counter(tuple(shape.dims) for shape in weight_shapes(config.model).values())


@functools.lru_cache(maxsize=8)
def limits_of(config: Config) -> Limits:
    """What the model, with its training batch, allows a layout to split."""
    variants = Variants(config, "other")

    def shapes(*names: str) -> list[mtf.Shape]:
        """Of the tensors of the graph for layouts that split these dimensions along one mesh dimension."""
        return [shape for section in variants.for_layout(dict.fromkeys(names, 0)).sections for shape in section.shapes]

    return Limits(shapes)
