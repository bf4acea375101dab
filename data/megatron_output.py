"""Writes token files of Megatron-LM: a pair `X.bin`, `X.idx`, byte for byte as Megatron's own writer does.

`megatron.py` describes the format (`MMIDIDX`). A document is one sequence here.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterable
from contextlib import ExitStack
from types import TracebackType

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from gpt_mesh.data.megatron import MAPPED, TYPES, index_path
from gpt_mesh.storage import files as storage

_LARGEST_SHORT_VOCABULARY = 65500  # Megatron's limit for 16-bit ids


def id_type(n_vocab: int) -> np.dtype:
    """The type of ids that Megatron's preprocessing chooses for a vocabulary."""
    return np.dtype("<u2" if n_vocab < _LARGEST_SHORT_VOCABULARY else "<i4")


class PairWriter:
    """Writes one pair. Both files appear when the `with` block ends without an exception.

    >>> with PairWriter("data/train.bin", id_type(50257)) as writer:
    ...     writer.add([5, 7, 11])
    """

    def __init__(self, path: str, dtype: DTypeLike) -> None:
        """
        Args:
            path: of the .bin.
            dtype: of the ids: see `id_type`.
        """
        self.path, self.dtype = path, np.dtype(dtype)
        self._code = next(code for code, name in TYPES.items() if np.dtype(name) == self.dtype)
        self._lengths = array("i")

    def __enter__(self) -> PairWriter:
        with ExitStack() as stack:
            self._index = stack.enter_context(storage.replacing(index_path(self.path)))
            self._data = stack.enter_context(storage.replacing(self.path))
            self._files = stack.pop_all()
        return self

    def add(self, document: ArrayLike) -> None:
        """Append a document: ids, one after the other."""
        ids = np.asarray(document)
        self._data.write(ids.astype(self.dtype).tobytes())
        self._lengths.append(len(ids))

    def add_all(self, documents: Iterable[ArrayLike]) -> None:
        """Append documents."""
        for document in documents:
            self.add(document)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            lengths = np.array(self._lengths, "<i4")
            starts = np.zeros(len(lengths), "<i8")
            np.cumsum(lengths[:-1], dtype=np.int64, out=starts[1:])
            header = struct.pack("<QBQQ", 1, self._code, len(lengths), len(lengths) + 1)
            arrays = (lengths, starts * self.dtype.itemsize, np.arange(len(lengths) + 1, dtype="<i8"))
            self._index.write(MAPPED + header + b"".join(one.tobytes() for one in arrays))
        self._files.__exit__(kind, error, traceback)
