"""Compressed files, decompressed block by block in little memory, and never silently cut short.

Python's own file objects for gzip, xz and zstd read into memory, or take some truncated files for whole ones.
"""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import ClassVar, Protocol

import zstandard

from gpt_mesh.data.readers.reader import Content, Documents, ReadContent, Reader, Reading
from gpt_mesh.errors import InputError
from gpt_mesh.storage import files as storage

_OUTPUT_BYTES = 1 << 20  # decompressed at a time: a block of zeros can hold thousands of times its size
_MAX_WINDOW = 1 << 31  # `zstd --long=31`


class CompressedReader(Reader):
    """The file inside, which the rest of the name describes; or its content where the name says no more."""

    name: ClassVar[str] = "compressed"
    endings: ClassVar[tuple[str, ...]] = (".gz", ".xz", ".bz2", ".zst", ".tgz")
    container: ClassVar[bool] = True

    def documents(self, content: Content, reading: Reading, read_inner: ReadContent) -> Documents:
        name = content.name
        if name.lower().endswith(".tgz"):
            name = f"{name[:-4]}.tar.gz"
        stem, _, ending = name.rpartition(".")
        blocks = decompressed(content.where, f".{ending.lower()}", content.blocks)
        yield from read_inner(Content(content.where, stem, blocks, compressed=True), reading)


class _Stream(Protocol):
    """One gzip member, xz stream or zstd frame: a file may have several in a row."""

    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, block: bytes) -> Iterator[bytes]: ...


class _Gzip:
    def __init__(self) -> None:
        self._object = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)

    @property
    def eof(self) -> bool:
        return self._object.eof

    @property
    def unused_data(self) -> bytes:
        return self._object.unused_data

    def decompress(self, block: bytes) -> Iterator[bytes]:
        output = self._object.decompress(block, _OUTPUT_BYTES)
        yield output
        while self._object.unconsumed_tail or (len(output) == _OUTPUT_BYTES and not self.eof):
            output = self._object.decompress(self._object.unconsumed_tail, _OUTPUT_BYTES)
            yield output


class _LzmaOrBz2:
    def __init__(self, decompressor: lzma.LZMADecompressor | bz2.BZ2Decompressor) -> None:
        self._object = decompressor

    @property
    def eof(self) -> bool:
        return self._object.eof

    @property
    def unused_data(self) -> bytes:
        return self._object.unused_data

    def decompress(self, block: bytes) -> Iterator[bytes]:
        yield self._object.decompress(block, _OUTPUT_BYTES)
        while not self._object.needs_input and not self._object.eof:
            yield self._object.decompress(b"", _OUTPUT_BYTES)


class _Zstd:
    def __init__(self) -> None:
        self._object = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW).decompressobj()
        self._rest = b""
        self._size = 256  # bytes of input at a time, to begin with

    @property
    def eof(self) -> bool:
        return self._object.eof

    @property
    def unused_data(self) -> bytes:
        return self._rest

    def decompress(self, block: bytes) -> Iterator[bytes]:
        while block and not self.eof:
            part, block = block[: self._size], block[self._size :]
            output = self._object.decompress(part)
            yield output
            # The library has no limit for the output, so the input is measured out by what came of the last.
            self._size = min(max(len(part) * _OUTPUT_BYTES // max(len(output), 1), 64), _OUTPUT_BYTES)
        self._rest = self._object.unused_data + block


_KINDS: dict[str, tuple[str, Callable[[], _Stream]]] = {
    ".gz": ("gzip", _Gzip),
    ".xz": ("xz", lambda: _LzmaOrBz2(lzma.LZMADecompressor())),
    ".bz2": ("bzip2", lambda: _LzmaOrBz2(bz2.BZ2Decompressor())),
    ".zst": ("zstd", _Zstd),
}
ENDINGS = tuple(_KINDS)
"""Endings of compressed files."""

_DAMAGED = (zlib.error, lzma.LZMAError, zstandard.ZstdError, OSError, EOFError, ValueError)  # OSError is bz2's


def decompressed(name: str, ending: str, blocks: Iterable[bytes]) -> Iterator[bytes]:
    """Content of compressed `blocks`, of any number of streams. `ending`: one of ENDINGS; `name` is for messages.

    Raises InputError when the data is damaged, cut off, or of another kind.
    """
    kind, make = _KINDS[ending]
    stream: _Stream | None = None
    any_stream = False
    for block in blocks:
        while block:
            if stream is None and any_stream:
                block = block.lstrip(b"\0")  # padding between streams, and after the last
                if not block:
                    break
            stream = stream or make()
            any_stream = True
            try:
                yield from stream.decompress(block)
            except _DAMAGED as error:
                raise InputError(
                    f"{name}: is not {kind}, or damaged: {storage.reason(error)}; get the file again"
                ) from error
            block = b""
            if stream.eof:
                block, stream = stream.unused_data, None
    if not any_stream:
        raise InputError(f"{name}: is empty, so it is no {kind} file; get the file again")
    if stream is not None:
        raise InputError(f"{name}: is cut off: its {kind} data does not end; get the file again")
