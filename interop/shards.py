"""Reads the weight files of a Hugging Face folder, in either format, as one set of tensors."""

from __future__ import annotations

import json
import os
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from gpt_mesh.errors import InputError, shown
from gpt_mesh.interop.torch_files import TorchFile
from gpt_mesh.storage import files as storage

# Supported types, by their names in the format: no complex types, and no floating point of 8 bits or less.
TYPES = ("F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL")
SAFETENSORS, TORCH = "model.safetensors", "pytorch_model.bin"


class TensorFile(Protocol):
    """Tensors by name, read one at a time."""

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes by name."""

    def read(self, name: str) -> NDArray:
        """One tensor, in the type it is stored in."""


class SafetensorsFile:
    """A file in the safetensors format (https://huggingface.co/docs/safetensors)."""

    def __init__(self, path: str) -> None:
        """
        Raises:
            InputError: the file is unreadable, truncated, or of another format.
        """
        self.path = path
        try:
            with safe_open(path, "np") as file:
                slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
                self._shapes = {name: tuple(one.get_shape()) for name, one in slices.items()}
                types = {name: one.get_dtype() for name, one in slices.items()}
        except (SafetensorError, OSError) as error:
            raise InputError(
                f"{shown(path)}: cannot be read ({storage.reason(error)}); it is damaged or incomplete: download it "
                "again"
            ) from None
        for name, kind in types.items():
            if kind not in TYPES:
                raise InputError(
                    f"{shown(path)}: tensor {name} is of type {kind}, which cannot be read; take the model in "
                    "bfloat16, "
                    "float16 or float32"
                )

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes by name."""
        return self._shapes

    def read(self, name: str) -> NDArray:
        """One tensor. The file is only mapped during this call, since mapped pages count as memory."""
        try:
            with safe_open(self.path, "np") as file:
                array: NDArray = file.get_tensor(name)
        except (SafetensorError, OSError, TypeError) as error:
            raise InputError(f"{shown(self.path)}: tensor {name} cannot be read ({storage.reason(error)})") from None
        return array


class Shards:
    """The tensors of a folder.

    Attributes:
        shapes: by name.
        absent: tensors that the index names and no file has, with the file where they should be. A tied output layer
            is often among them.
    """

    def __init__(self, folder: str) -> None:
        """
        Raises:
            InputError: no weight files, one that is missing, or one that cannot be read.
        """
        self.folder = folder
        self._files: dict[str, TensorFile] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        names, index = weight_files(folder)
        for name in names:
            path = os.path.join(folder, name)
            file: TensorFile = SafetensorsFile(path) if name.endswith(".safetensors") else TorchFile(path)
            for tensor, shape in file.shapes().items():
                self._files[tensor] = file
                self.shapes[tensor] = shape
        self.absent = {name: file for name, file in index.items() if name not in self.shapes}

    def read(self, name: str) -> NDArray[np.float32]:
        """One tensor, as float32."""
        return self._files[name].read(name).astype(np.float32, copy=False)


def weight_files(folder: str) -> tuple[list[str], dict[str, str]]:
    """The names of a folder's weight files, and, where there are several, the file of each tensor, as the index says.
    """
    for single in (SAFETENSORS, TORCH):
        if os.path.isfile(os.path.join(folder, single)):
            return [single], {}
        index = f"{single}.index.json"
        if os.path.isfile(os.path.join(folder, index)):
            places = _weight_map(os.path.join(folder, index))
            names = sorted(set(places.values()))
            missing = [name for name in names if not os.path.isfile(os.path.join(folder, name))]
            if missing:
                raise InputError(
                    f"{shown(folder)}: {missing[0]} is missing, one of the {len(names)} weight files that {index} "
                    "names; "
                    "download it"
                )
            return names, places
    raise InputError(
        f"{shown(folder)}: has no weights; it needs {SAFETENSORS}, {TORCH}, or several such files with an index"
    )


def _weight_map(path: str) -> dict[str, str]:
    found = read_json(path).get("weight_map")
    if not isinstance(found, dict) or not found:
        raise InputError(f"{shown(path)}: has no weight_map, which says where each tensor is; download it again")
    for name in found.values():
        if not isinstance(name, str) or os.path.basename(name) != name:
            raise InputError(f"{shown(path)}: names {name!r}, which is no file of this folder; download it again")
    return found


def read_json(path: str) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        InputError: no such file, or something else in it.
    """
    try:
        with open(path, encoding="utf-8-sig") as file:
            values = json.load(file)
    except RecursionError:
        raise InputError(f"{shown(path)}: brackets are nested too deeply; download it again") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{shown(path)}: cannot be read ({storage.reason(error)}); download it again") from None
    if not isinstance(values, dict):
        raise InputError(f"{shown(path)}: must hold one JSON object; download it again")
    return values
