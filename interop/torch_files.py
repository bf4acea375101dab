"""Tensors in a file of `torch.save`, read without PyTorch.

Such a file is a zip archive: `data.pkl`, a pickle of the dictionary of tensors, which names the storage of each, and
`data/<key>`, the storages' bytes (https://docs.pytorch.org/docs/stable/notes/serialization.html). A pickle can run any
code. This reader knows the few names that tensors need, and refuses the file at the first other one.
"""

from __future__ import annotations

import collections
import io
import math
import pickle
import zipfile
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from gpt_mesh.errors import InputError, shown

MAX_PICKLE = 64 << 20  # bytes; that of a model with a thousand layers has one or two million
MAX_ENTRIES = 1 << 20  # of dictionaries that a pickle copies: a few bytes of it may ask for another copy
MAX_DIMENSIONS = 16
MAX_TEXT = 64  # bytes of a member that names something

_TYPES: dict[str, Any] = {
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "DoubleStorage": np.float64,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}


class _StorageType(NamedTuple):
    """Stands for a class such as torch.FloatStorage. It cannot be called."""

    dtype: np.dtype


class _Storage(NamedTuple):
    key: str
    dtype: np.dtype


class _StoredTensor(NamedTuple):
    """Where a tensor lies in a storage; offset and strides in elements."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def _allowed() -> dict[tuple[str, str], Any]:
    """What a pickle may name. Made for each pickle, since one can set attributes of what it gets."""

    copied = 0

    def ordered_dict(*pairs: Any) -> collections.OrderedDict[Any, Any]:
        nonlocal copied
        copied += sum(len(each) for each in pairs)
        if copied > MAX_ENTRIES:
            raise pickle.UnpicklingError("it copies dictionaries without end")
        return collections.OrderedDict(*pairs)

    def rebuild_tensor(storage: Any, offset: Any, shape: Any, strides: Any, *unused: Any) -> _StoredTensor:
        del unused  # requires_grad, hooks, metadata
        for sizes in (shape, strides):
            few = isinstance(sizes, tuple) and len(sizes) <= MAX_DIMENSIONS
            if not few or not all(type(size) is int and 0 <= size < 1 << 48 for size in sizes):
                raise pickle.UnpicklingError("a tensor in it has no sound shape")
        return _StoredTensor(storage, offset, shape, strides)

    def rebuild_parameter(data: Any, *unused: Any) -> Any:
        del unused
        return data

    return {
        ("collections", "OrderedDict"): ordered_dict,
        ("torch._utils", "_rebuild_tensor_v2"): rebuild_tensor,
        ("torch._utils", "_rebuild_parameter"): rebuild_parameter,
        **{("torch", name): _StorageType(np.dtype(dtype)) for name, dtype in _TYPES.items()},
    }


class _Inert:
    """Stands for whatever else a training program saves: it takes what it is given, and keeps nothing."""

    def __new__(cls, *unused: Any, **named: Any) -> Any:
        del unused, named
        return object.__new__(cls)

    def __setstate__(self, state: Any) -> None:
        del state


# States of random generators, and settings.
_INERT = {
    *((f"numpy.{core}.multiarray", name) for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
    *(("numpy", name) for name in ("ndarray", "dtype")),
    *(("torch", name) for name in ("Size", "device", "float16", "bfloat16", "float32", "float64", "int64", "bool")),
    ("_codecs", "encode"),
    ("argparse", "Namespace"),
    ("collections", "defaultdict"),
}


class _Unpickler(pickle.Unpickler):
    """Builds dictionaries of tensors and nothing else."""

    def __init__(self, data: bytes, *, programs: bool) -> None:
        super().__init__(io.BytesIO(data))
        self._names = _allowed()
        self._programs = programs

    def find_class(self, module: str, name: str) -> Any:
        if self._programs and ((module, name) in _INERT or module.startswith("deepspeed.")):
            return _Inert
        if (module, name) not in self._names:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no tensor needs")
        return self._names[module, name]

    def persistent_load(self, pid: Any) -> _Storage:
        kind, storage_type, key, *_ = pid
        # Nothing that a pickle made is converted to text before its type is known: nested tuples of a few bytes can
        # have texts of gigabytes.
        if kind != "storage" or not isinstance(storage_type, _StorageType) or not isinstance(key, str):
            raise pickle.UnpicklingError("it names something that is not a storage")
        return _Storage(key, storage_type.dtype)


class TorchFile:
    """The tensors of one file, read one at a time."""

    def __init__(self, path: str, within: str | None = None) -> None:
        """
        Args:
            within: the name of the dictionary of tensors in the file's own dictionary, which may hold other things, of
                classes that a training program has; None: the file is that dictionary.

        Raises:
            InputError: not such a file, or one that holds anything but tensors.
        """
        self.path = path
        try:
            self._zip = zipfile.ZipFile(path)
            (pickled,) = (name for name in self._zip.namelist() if name.endswith("/data.pkl"))
            self._prefix = pickled.removesuffix("data.pkl")
            if self._zip.getinfo(pickled).file_size > MAX_PICKLE:
                raise pickle.UnpicklingError(f"its pickle is larger than {MAX_PICKLE} bytes")
            if self._text("byteorder") == "big":
                raise pickle.UnpicklingError("its numbers are big-endian")
            found = _Unpickler(self._zip.read(pickled), programs=within is not None).load()
            if within is not None:
                found = found.get(within) if isinstance(found, dict) else None
        except (zipfile.BadZipFile, OSError, EOFError) as error:
            raise InputError(
                f"{shown(path)}: cannot be read ({error}); it is damaged or incomplete, or PyTorch before 1.6 wrote "
                "it: "
                "download it again, or save the model as safetensors"
            ) from None
        except Exception as error:  # whatever a made-up pickle brings about
            told = isinstance(error, (pickle.UnpicklingError, ValueError))
            reason = str(error).partition("\n")[0][:200] if told and str(error) else type(error).__name__
            raise InputError(
                f"{shown(path)}: not a file of weights alone ({reason}); save the model as safetensors"
            ) from None
        if not isinstance(found, dict) or not all(
            isinstance(name, str) and isinstance(tensor, _StoredTensor) for name, tensor in found.items()
        ):
            raise InputError(f"{shown(path)}: not a dictionary of tensors; save the model as safetensors")
        self._tensors: dict[str, _StoredTensor] = dict(found)

    def _text(self, name: str) -> str:
        """A small text in the archive; empty where there is none."""
        member = self._prefix + name
        if member not in self._zip.namelist():
            return ""
        with self._zip.open(member) as file:
            text = file.read(MAX_TEXT + 1)
        if len(text) > MAX_TEXT:
            raise pickle.UnpicklingError(f"its {name} is longer than {MAX_TEXT} bytes")
        return text.decode()

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes by name."""
        return {name: tensor.shape for name, tensor in self._tensors.items()}

    def read(self, name: str) -> NDArray:
        """One tensor.

        Raises:
            InputError: it does not lie in its storage, or the file is damaged.
        """
        tensor = self._tensors[name]
        shape, strides, offset = tensor.shape, tensor.strides, tensor.offset
        sound = len(shape) == len(strides) and all(type(n) is int and n >= 0 for n in (*shape, *strides, offset))
        if not sound or not isinstance(tensor.storage, _Storage):
            raise InputError(f"{shown(self.path)}: tensor {name} has no sound shape; the file is damaged")
        size = 1 + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True)) if math.prod(shape) else 0
        width = tensor.storage.dtype.itemsize
        try:
            with self._zip.open(f"{self._prefix}data/{tensor.storage.key}") as file:
                file.seek(offset * width)
                data = file.read(size * width)
        except Exception as error:  # damaged, encrypted, or compressed in one of the many ways zip files know
            reason = str(error).partition("\n")[0] or type(error).__name__
            raise InputError(
                f"{shown(self.path)}: tensor {name} cannot be read ({reason}); download the file again"
            ) from None
        if len(data) != size * width:
            raise InputError(f"{shown(self.path)}: tensor {name} reaches beyond its storage; download the file again")
        flat = np.frombuffer(data, tensor.storage.dtype)
        # In bounds: `size` is one more than the place of the last element.
        return np.lib.stride_tricks.as_strided(flat, shape, [stride * width for stride in strides], writeable=False)
