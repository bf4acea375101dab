"""Folders with a model's weights, in the layouts of the programs that write them, all seen as transformers has them:
the values of a `config.json`, and tensors under the names of a state dict.

A layout is recognised by its files: `config.json` (transformers), `params.json` (Meta's Llama), or files of DeepSpeed,
which GPT-NeoX writes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from gpt_mesh.errors import InputError, shown
from gpt_mesh.interop.architecture import Architecture
from gpt_mesh.interop.shards import TensorFile


class Tensors(Protocol):
    """Tensors by name, read one at a time."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """By name."""

    @property
    def absent(self) -> Mapping[str, str]:
        """Tensors that an index names and no file has, with the file where they should be."""

    def read(self, name: str) -> NDArray[np.float32]:
        """One tensor, as float32."""


@dataclass(frozen=True)
class ModelFolder:
    """A model's folder.

    Attributes:
        source: the file with its settings, for messages.
        values: as of a `config.json`.
        tensors: those of its state dict.
        tokenizers: files and folders that may have its tokenizer, in order.
        kind: the architecture; None: the one that `values` name.
    """

    source: str
    values: Mapping[str, Any]
    tensors: Tensors
    tokenizers: Sequence[str]
    kind: Architecture | None = None


@dataclass(frozen=True)
class Part:
    """A tensor in a file: a part of one that is cut over several devices."""

    file: TensorFile
    name: str

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        return self.file.shapes()[self.name]


@dataclass(frozen=True)
class Joined:
    """A tensor that is cut along an axis, or kept by each device.

    Attributes:
        parts: in order.
        axis: along which they are joined; None: each device has the whole.
        total: of parts without an axis: take their sum, not their mean.
        change: what is done to the whole.
    """

    parts: Sequence[Part]
    axis: int | None
    total: bool = False
    change: Callable[[NDArray[np.float32]], NDArray[np.float32]] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the whole."""
        shape = [*self.parts[0].shape]
        if self.axis is not None:
            shape[self.axis] = sum(part.shape[self.axis] for part in self.parts)
        return tuple(shape)

    def read(self) -> NDArray[np.float32]:
        """The whole. Beside it, one part is in memory."""
        if len(self.parts) == 1:
            whole = self.parts[0].file.read(self.parts[0].name).astype(np.float32, copy=False)
        elif self.axis is None:
            whole = np.zeros(self.shape, np.float32)
            for part in self.parts:
                whole += part.file.read(part.name)
            if not self.total:
                whole /= len(self.parts)
        else:
            whole, done = np.empty(self.shape, np.float32), 0
            for part in self.parts:
                after = done + part.shape[self.axis]
                whole[(slice(None),) * self.axis + (slice(done, after),)] = part.file.read(part.name)
                done = after
        return whole if self.change is None else self.change(whole)


@dataclass(frozen=True)
class JoinedTensors:
    """Tensors whose parts lie in several files."""

    joined: Mapping[str, Joined]
    absent: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """By name."""
        return {name: one.shape for name, one in self.joined.items()}

    def read(self, name: str) -> NDArray[np.float32]:
        """One tensor, as float32."""
        return self.joined[name].read()


def check_parts(folder: str, name: str, parts: Sequence[Part], axis: int | None) -> None:
    """
    Raises:
        InputError: the parts of a tensor cannot be joined along the axis.
    """
    shapes = [part.shape for part in parts]
    if axis is None or any(len(shape) <= axis for shape in shapes):
        others = shapes
    else:
        others = [(*shape[:axis], *shape[axis + 1 :]) for shape in shapes]
    if len(set(others)) > 1 or len({len(shape) for shape in shapes}) > 1:
        listed = ", ".join(str(list(shape)) for shape in shapes[:3])
        raise InputError(f"{shown(folder)}: the parts of {name} have shapes {listed}; are they of one checkpoint?")


def numbered(folder: str, names: Mapping[int, str], form: Callable[[int], str]) -> list[str]:
    """The names of files that are numbered from 0.

    Raises:
        InputError: one between them is missing.
    """
    for number in range(max(names) + 1):
        if number not in names:
            raise InputError(
                f"{shown(folder)}: {form(number)} is missing, one of at least {max(names) + 1} parts; download it"
            )
    return [names[number] for number in sorted(names)]
