"""The mesh of devices and how tensors are split over it."""

from __future__ import annotations

import math
import re
from typing import Annotated, Any

from pydantic import BeforeValidator, WithJsonSchema

from gpt_mesh.config.fields import Group, key
from gpt_mesh.config.messages import Refused, one_of, show

# Tensor dimensions that a layout may split, by their mesh-tensorflow names.
TENSOR_DIMENSIONS = (
    "batch", "sequence", "embd", "heads", "vocab", "memory_length", "intermediate_expanded", "embed_sequence",
    "experts", "expert_hidden",
)  # fmt: skip


def _pairs(text: str, what: str) -> dict[str, str]:
    """`"a:b,c:d"` -> `{"a": "b", "c": "d"}`; `;` separates as well. Left-hand names must differ."""
    pairs: dict[str, str] = {}
    for item in filter(None, (part.strip() for part in re.split("[,;]", text))):
        match = re.fullmatch(r"(\w+)\s*:\s*(\w+)", item)
        if match is None:
            raise Refused(f"cannot read {show(item)}; write it as {what}")
        if match[1] in pairs:
            raise Refused(f"names {match[1]} twice; write each name once, as in {what}")
        pairs[match[1]] = match[2]
    return pairs


def _mesh_shape(value: Any) -> str:
    """A mesh shape that `MeshConfig.shape` can read."""
    if not isinstance(value, str):
        raise Refused('must be a string such as "x:4,y:2"')
    for name, size in _pairs(value, '"x:4,y:2"').items():
        if not re.fullmatch("[0-9]{1,9}", size) or int(size) < 1:
            raise Refused(f'the size of mesh dimension {name} must be a whole number >= 1, as in "x:4,y:2"')
    return value


def _layout(value: Any) -> str:
    """A layout that `MeshConfig.rules` can read, naming only tensor dimensions that exist."""
    if not isinstance(value, str):
        raise Refused('must be a string such as "batch:x,heads:y"')
    for name in _pairs(value, '"batch:x,heads:y"'):
        if name not in TENSOR_DIMENSIONS:
            raise one_of(name, TENSOR_DIMENSIONS, f"tensor dimension {name}")
    return value


class MeshConfig(Group):
    """The mesh of devices and how tensors are split over it."""

    mesh_shape: Annotated[str, BeforeValidator(_mesh_shape), WithJsonSchema({"type": "string"})] = key(
        'Mesh dimensions and their sizes, such as `"x:4,y:2"`; empty: one device.', default="", null_is_default=True
    )
    layout: Annotated[str, BeforeValidator(_layout), WithJsonSchema({"type": "string"})] = key(
        'Tensor dimensions and the mesh dimensions that split them, such as `"batch:x,heads:y"`. Tensor dimensions: '
        + ", ".join(f"`{name}`" for name in TENSOR_DIMENSIONS)
        + ".",
        default="",
        null_is_default=True,
    )

    @property
    def shape(self) -> dict[str, int]:
        """Size of each mesh dimension, in the order given."""
        return {name: int(size) for name, size in _pairs(self.mesh_shape, "mesh_shape").items()}

    @property
    def rules(self) -> dict[str, str]:
        """Mesh dimension that splits each tensor dimension, in the order given."""
        return _pairs(self.layout, "layout")

    @property
    def size(self) -> int:
        """Devices in the mesh."""
        return math.prod(self.shape.values())
