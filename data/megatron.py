"""Token files of Megatron-LM and GPT-NeoX: a pair `X.bin`, `X.idx`, read as it is. `megatron_output.py` writes them.

`X.bin` holds the ids of all sequences one after the other, little-endian, all of one type. `X.idx` tells where each
sequence begins and which sequences make a document. There are two kinds of it, little-endian both:

`MMIDIDX` (Megatron's memory-mapped dataset): magic, version uint64 = 1, type code uint8, number of sequences uint64,
number of entries of the document index uint64; then lengths int32 in tokens and positions int64 in bytes of each
sequence, and the document index int64, whose entry d is the first sequence of document d, with one past the last at its
end. Newer files may hold a byte for each sequence after that (its modality), which plays no part here.

`TNTIDX` (fairseq's indexed dataset, with Megatron's document index): magic, version uint64 = 1, type code and bytes per
id uint64, number of sequences and of sizes uint64, number of entries of the document index uint64; then, all int64, the
dimensions' offsets and the positions in ids (one more of both than sequences), the sizes, and the document index.
fairseq's own files lack the document index and its number.

A document here is a document there; files without documents have one for each sequence.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gpt_mesh.data.tfrecords import INDEX_SUFFIX, RecordIndex
from gpt_mesh.errors import InputError, shown
from gpt_mesh.storage import files as storage

MAPPED, _FAIRSEQ = b"MMIDIDX\0\0", b"TNTIDX\0\0"
TYPES = {1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}  # 6 and 7 are floats
_SIDECAR_VERSION = 1
_SCAN_BYTES = 8 << 20

Int64s = npt.NDArray[np.int64]


@dataclass(frozen=True)
class _Layout:
    """What an .idx file says. dtype: of the ids. lengths: ids of each sequence; starts: where each begins, in ids.
    documents: first sequence of each document and one past the last; empty when it knows no documents."""

    dtype: str
    lengths: Int64s
    starts: Int64s
    documents: Int64s


def is_pair(path: str) -> bool:
    """Whether `path` is the .bin of a pair, or would be if it were there."""
    return path.endswith(".bin") and storage.exists(index_path(path))


def data_file(path: str) -> str:
    """The .bin for the .idx of a pair; any other path as it is."""
    data = f"{path.removesuffix('.idx')}.bin"
    return data if path.endswith(".idx") and storage.exists(data) else path


def index_path(path: str) -> str:
    """The .idx that belongs to a .bin."""
    return f"{path.removesuffix('.bin')}.idx"


def load_pair(path: str, *, progress: Callable[[int], object] | None = None) -> RecordIndex:
    """Index of the documents of the pair whose .bin is `path`.

    The ids are read once to know the smallest and largest, which are then kept in `<path>.index`, as the index of a
    TFRecord file is. `progress` is called with the number of bytes read since its last call.

    Raises InputError naming the file when either is damaged, cut off, of an unknown kind, or they are no pair.
    """
    try:
        stats = (*storage.stat(path), *storage.stat(index_path(path)))
        layout = _read_layout(index_path(path))
        offsets, tokens = _documents(path, layout, stats[0])
        id_range = _read_sidecar(path, stats)
        if id_range is None:
            id_range = _scan(path, layout.dtype, progress or (lambda _: None))
            _write_sidecar(path, stats, id_range)
    except storage.errors() as error:
        raise InputError(f"{shown(path)}: cannot be read: {storage.reason(error)}") from error
    return RecordIndex(path, offsets, tokens * np.dtype(layout.dtype).itemsize, tokens, *id_range, layout.dtype)


def _documents(path: str, layout: _Layout, size: int) -> tuple[Int64s, Int64s]:
    """Byte offset and number of ids of each document, checked against the .bin file of `size` bytes."""
    width = np.dtype(layout.dtype).itemsize
    ends = layout.starts + layout.lengths
    needed = int(ends[-1]) * width if len(ends) else 0
    if np.any(layout.lengths < 0) or np.any(layout.starts[1:] != ends[:-1]) or np.any(layout.starts[:1] != 0):
        raise InputError(f"{shown(index_path(path))}: its sequences do not follow one another; the index is damaged")
    if size != needed:
        what = "is cut off" if size < needed else "does not belong to its .idx"
        raise InputError(
            f"{shown(path)}: {what}: it has {size:,} bytes, and {shown(index_path(path))} tells of {needed:,}; get "
            "both files again"
        )
    first = layout.documents if len(layout.documents) > 1 else np.arange(len(ends) + 1, dtype=np.int64)
    if first[0] != 0 or first[-1] != len(ends) or np.any(np.diff(first) < 0):
        raise InputError(
            f"{shown(index_path(path))}: its documents do not cover its {len(ends):,} sequences; it is damaged"
        )
    bounds = np.append(layout.starts, ends[-1:] if len(ends) else 0)[first]
    tokens = np.diff(bounds)
    if tokens.size and tokens.max() > np.iinfo(np.int32).max:
        raise InputError(
            f"{shown(path)}: document {tokens.argmax()} has {tokens.max():,} tokens; 2,147,483,647 is the most"
        )
    return bounds[:-1] * width, tokens


# The .idx file


def _read_layout(path: str) -> _Layout:
    with storage.open_binary(path) as file:
        content = file.read()
    try:
        if content.startswith(MAPPED):
            return _mapped(path, content)
        if content.startswith(_FAIRSEQ):
            return _fairseq(path, content)
    except (struct.error, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{shown(path)}: is cut off or damaged: {len(content):,} bytes are not enough") from error
    raise InputError(
        f"{shown(path)}: is no index of Megatron (MMIDIDX) or fairseq (TNTIDX); it must belong to the .bin file"
    )


def _mapped(path: str, content: bytes) -> _Layout:
    version, code, sequences, documents = struct.unpack_from("<QBQQ", content, len(MAPPED))
    _check_version(path, version)
    at = len(MAPPED) + struct.calcsize("<QBQQ")
    expected = at + 12 * sequences + 8 * documents
    if len(content) not in (expected, expected + sequences):  # with modalities
        raise InputError(
            f"{shown(path)}: has {len(content):,} bytes, and {sequences:,} sequences and {documents:,} entries for "
            "documents "
            f"make {expected:,}; it is cut off or damaged"
        )
    dtype = _dtype(path, code)
    lengths = _array(content, "<i4", sequences, at)
    positions = _array(content, "<i8", sequences, at + 4 * sequences)
    width = np.dtype(dtype).itemsize
    if np.any(positions % width):
        raise InputError(f"{shown(path)}: a sequence begins inside an id; the index is damaged")
    return _Layout(dtype, lengths, positions // width, _array(content, "<i8", documents, at + 12 * sequences))


def _fairseq(path: str, content: bytes) -> _Layout:
    version, code, width, sequences, sizes = struct.unpack_from("<5Q", content, len(_FAIRSEQ))
    _check_version(path, version)
    at = len(_FAIRSEQ) + struct.calcsize("<5Q")
    arrays = 8 * (2 * (sequences + 1) + sizes)
    documents = 0
    if len(content) != at + arrays:  # then Megatron's number of documents comes before the arrays
        (documents,) = struct.unpack_from("<Q", content, at)
        at += 8
    if len(content) != at + arrays + 8 * documents or sizes != sequences:
        raise InputError(
            f"{shown(path)}: {len(content):,} bytes do not hold its {sequences:,} sequences; it is cut off"
        )
    dtype = _dtype(path, code)
    if width != np.dtype(dtype).itemsize:
        raise InputError(f"{shown(path)}: says that an id has {width} bytes and is of type {dtype}; it is damaged")
    starts = _array(content, "<i8", sequences + 1, at + 8 * (sequences + 1))
    first_document = at + arrays
    return _Layout(dtype, np.diff(starts), starts[:-1], _array(content, "<i8", documents, first_document))


def _check_version(path: str, version: int) -> None:
    if version != 1:
        raise InputError(f"{shown(path)}: is of version {version}, and only version 1 is known")


def _dtype(path: str, code: int) -> str:
    if code not in TYPES:
        raise InputError(f"{shown(path)}: type code {code} is no type of token ids ({', '.join(map(str, TYPES))} are)")
    return TYPES[code]


def _array(content: bytes, dtype: str, count: int, at: int) -> Int64s:
    return np.frombuffer(content, dtype, count, at).astype(np.int64)


# The range of the ids


def _scan(path: str, dtype: str, progress: Callable[[int], object]) -> tuple[int, int]:
    least, greatest = np.iinfo(np.int64).max, -1
    with storage.open_binary(path, _SCAN_BYTES) as file:
        while block := file.read(_SCAN_BYTES):
            ids = np.frombuffer(block, dtype)
            least, greatest = min(least, int(ids.min())), max(greatest, int(ids.max()))
            progress(len(block))
    return min(least, 0) if greatest < least else least, greatest


def _read_sidecar(path: str, stats: tuple[int, ...]) -> tuple[int, int] | None:
    try:
        with storage.open_binary(path + INDEX_SUFFIX) as file:
            content = io.BytesIO(file.read())
        with np.load(content, allow_pickle=False) as stored:
            header: list[Any] = stored["pair"].tolist()
    except Exception:  # none, or broken, or of a TFRecord file: the data has the truth
        return None
    return (header[-2], header[-1]) if header[:-2] == [_SIDECAR_VERSION, *stats] else None


def _write_sidecar(path: str, stats: tuple[int, ...], id_range: tuple[int, int]) -> None:
    content = io.BytesIO()
    np.savez(content, pair=np.array([_SIDECAR_VERSION, *stats, *id_range], np.int64))
    try:
        with storage.replacing(path + INDEX_SUFFIX) as file:
            file.write(content.getvalue())
    except storage.errors():  # a read-only folder is a good place for data
        pass
