"""A model as a tree of its weights: names, shapes, parameters, and the share of the forward pass's FLOPs."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

from gpt_mesh.meshes.compat import mtf

import tensorflow as tf

from gpt_mesh.config import ModelConfig
from gpt_mesh.models import gpt
from gpt_mesh.models.context import Context
from gpt_mesh.models.dims import Dims
from gpt_mesh.models.shapes import unallocated
from gpt_mesh.planning.graph import is_weight, matmul_flops

_LAYER = re.compile(r"h\d+$")


@dataclass
class Node:
    """A part of a model, or one weight.

    Attributes:
        shape: of a weight, as text; empty for a part.
        parameters, flops: of it and everything below; FLOPs are of a forward pass over one context.
        parts: by name, in the order of the pass.
    """

    shape: str = ""
    parameters: int = 0
    flops: float = 0.0
    parts: dict[str, Node] = field(default_factory=dict)

    def same(self, other: Node) -> bool:
        """Whether two parts hold the same weights and do the same work."""
        alike = (self.shape, self.parameters, self.flops, [*self.parts]) == (
            other.shape, other.parameters, other.flops, [*other.parts],
        )  # fmt: skip
        return alike and all(part.same(other.parts[name]) for name, part in self.parts.items())


def tree(model: ModelConfig) -> Node:
    """The parts of a model. A matmul counts for its weight; one without a weight, such as the logits of attention, for
    the part whose weight came last before it.
    """
    with unallocated():
        mesh = mtf.Mesh(mtf.Graph(), "mesh")
        dims = Dims.of(model, 1, model.n_ctx)
        ctx = Context(mesh=mesh, dims=dims, model=model, dtype=tf.float32, axes={}, init_seed=0)
        gpt.outputs(ctx, mtf.zeros(mesh, [dims.batch, dims.sequence], tf.int32))
    flops: defaultdict[str, float] = defaultdict(float)
    part = ""
    for operation in mesh.graph.operations:
        weights = [_variable(x).name for x in operation.inputs if is_weight(x)]
        if weights:
            part = weights[0].rpartition("/")[0]
        if work := matmul_flops(operation) + getattr(operation, "flops", 0.0):
            flops[weights[0] if weights else part] += work
    shapes = {weight.name: weight.shape for weight in mesh.graph.trainable_variables}
    return _as_tree(shapes, flops)


def _variable(x: mtf.Tensor) -> mtf.Variable:
    """The variable that a weight is, before it was cast or reshaped."""
    while not isinstance(x.operation, mtf.Variable):
        x = x.operation.inputs[0]
    return x.operation


def _as_tree(shapes: Mapping[str, mtf.Shape], flops: Mapping[str, float]) -> Node:
    root = Node()
    for name in dict.fromkeys([*shapes, *flops]):
        size, work = shapes[name].size if name in shapes else 0, flops.get(name, 0.0)
        node = root
        for step in ["", *filter(None, name.removeprefix("gpt2").split("/"))]:
            node = node.parts.setdefault(step, Node()) if step else node
            node.parameters, node.flops = node.parameters + size, node.flops + work
        if name in shapes:
            node.shape = ", ".join(f"{dim.name} {dim.size}" for dim in shapes[name].dims)
    return root


def summary(model: ModelConfig) -> list[str]:
    """The tree as a table for a terminal. Consecutive layers that are alike stand in one row."""
    root = tree(model)
    rows = [("", "parameters", "", "FLOPs", "shape")]
    _add(rows, "model", root, root, "", "")
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return [
        f"{row[0]:<{widths[0]}}  {row[1]:>{widths[1]}}  {row[2]:>{widths[2]}}  {row[3]:>{widths[3]}}  {row[4]}".rstrip()
        for row in rows
    ]


def _add(rows: list[tuple[str, str, str, str, str]], name: str, node: Node, root: Node, lead: str, below: str) -> None:
    share = node.parameters / max(root.parameters, 1)
    work = f"{node.flops / max(root.flops, 1.0):.1%}"
    rows.append((lead + name, f"{node.parameters:,}", f"{share:.1%}", work, node.shape))
    groups: list[tuple[list[str], Node]] = []
    for each, part in node.parts.items():
        if groups and _LAYER.match(each) and _LAYER.match(groups[-1][0][0]) and part.same(groups[-1][1]):
            groups[-1][0].append(each)
        else:
            groups.append(([each], part))
    for number, (names, part) in enumerate(groups):
        last = number == len(groups) - 1
        title = names[0] if len(names) == 1 else f"{names[0]} … {names[-1]} (each of {len(names)})"
        _add(rows, title, part, root, below + ("└ " if last else "├ "), below + ("  " if last else "│ "))
