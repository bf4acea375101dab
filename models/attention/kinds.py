"""The kinds of attention by their names in `attention_types`, and what the layers of a model keep for decoding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TypeVar

from gpt_mesh.config import ModelConfig
from gpt_mesh.models.attention.kind import Kind, StateTensor
from gpt_mesh.models.attention.linear import Linear
from gpt_mesh.models.attention.softmax import Softmax
from gpt_mesh.models.dims import Dims

T = TypeVar("T")

# "none": a layer without attention.
KINDS: dict[str, Kind | None] = {
    "global": Softmax(local=False),
    "local": Softmax(local=True),
    "linear": Linear(),
    "none": None,
}


def layer_kinds(model: ModelConfig) -> list[Kind]:
    """The kind of each layer that has attention, in order."""
    kinds = (KINDS[name] for name in model.attention_types)
    return [kind for kind in kinds if kind is not None]


def state_tensors(model: ModelConfig, dims: Dims) -> list[StateTensor]:
    """All tensors that decoding keeps, layer by layer."""
    return [tensor for kind in layer_kinds(model) for tensor in kind.state(dims)]


def positions_axes(model: ModelConfig) -> list[int | None]:
    """For each of `state_tensors`, the axis with one slot a position; None if it does not grow."""
    return [tensor.positions_axis for tensor in state_tensors(model, Dims.of(model, 1, 1))]


def by_layer(model: ModelConfig, tensors: Sequence[T]) -> list[tuple[T, ...]]:
    """A list with one item for each of `state_tensors`, as one tuple a layer."""
    rest: Iterator[T] = iter(tensors)
    dims = Dims.of(model, 1, 1)
    return [tuple(islice(rest, len(kind.state(dims)))) for kind in layer_kinds(model)]
