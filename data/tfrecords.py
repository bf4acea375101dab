"""TFRecord files of token ids: one `tf.train.Example` a record, with one int64 feature `text`.

A record on disk is: payload length (uint64), masked CRC of the length (uint32), payload, masked CRC of the payload,
all little-endian; the CRC is CRC-32C, masked as in https://www.tensorflow.org/tutorials/load_data/tfrecord#tfrecords_format_details.
Writing and indexing are done here rather than with TensorFlow's readers, which give neither record offsets nor the
number of a corrupt record; the ids themselves are parsed by TensorFlow, in batches.
"""

from __future__ import annotations

import io
import itertools
import os
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt

from gpt_mesh.errors import InputError, shown
from gpt_mesh.storage import files as storage

FEATURE = "text"
INDEX_SUFFIX = ".index"

_INDEX_VERSION = 1
_LENGTH = struct.Struct("<Q")
_CRC = struct.Struct("<I")
_HEADER_BYTES = _LENGTH.size + _CRC.size
_SCAN_BYTES = 8 << 20  # read this much at a time
_VARINT_BLOCK = 1 << 16  # ids turned into bytes at a time: stays in cache, and bounds memory
_BATCH_BYTES = 4 << 20  # parse this much at a time: at most 4 Mi one-byte ids, 32 MiB once they are int64

Ids = Sequence[int] | npt.NDArray[np.integer]
Int64s = npt.NDArray[np.int64]


@dataclass(frozen=True)
class RecordIndex:
    """Where the records of one file are and how long they are.

    offsets: [records] byte position of each payload. sizes: [records] bytes of each payload. tokens: [records] ids in
    each record. min_id, max_id: smallest and largest id of the file; 0 and -1 when the file holds no id. dtype: NumPy's
    name of the ids' type where a record is nothing but ids (Megatron's files); empty where it is a serialized Example.
    """

    path: str
    offsets: Int64s
    sizes: Int64s
    tokens: Int64s
    min_id: int
    max_id: int
    dtype: str = ""

    def __len__(self) -> int:
        return len(self.offsets)


# Writing


def write_records(path: str | os.PathLike[str], records: Iterable[Ids]) -> int:
    """Write one record for each sequence of ids . The file appears when it is complete.

    Returns how many records it has.
    """
    count = 0
    with storage.replacing(os.fspath(path)) as file:
        for ids in records:
            file.write(framed(ids))
            count += 1
    return count


def framed(ids: Ids) -> bytes:
    """The bytes of one record as they stand in a file, framing included."""
    payload = serialize(ids)
    header = _LENGTH.pack(len(payload))
    return b"".join((header, _crc(header), payload, _crc(payload)))


def serialize(ids: Ids) -> bytes:
    """The bytes of a `tf.train.Example` whose feature `text` holds `ids`: what its SerializeToString() returns.

    Written out here because it runs for every token of a corpus: NumPy packs the ids several times faster than
    protobuf takes a Python list, and needs no TensorFlow. A test holds it against TensorFlow byte for byte.
    """
    packed = _varints(np.asarray(ids, dtype=np.int64))
    int64_list = _field(1, packed) if packed else b""  # Int64List.value, packed
    feature = _field(3, int64_list)  # Feature.int64_list
    entry = _field(1, FEATURE.encode()) + _field(2, feature)  # map<string, Feature>: key, value
    return _field(1, _field(1, entry))  # Example.features, Features.feature


def _field(number: int, content: bytes) -> bytes:
    """A length-delimited protobuf field (https://protobuf.dev/programming-guides/encoding)."""
    head = bytearray([number << 3 | 2])
    length = len(content)
    while length > 0x7F:
        head.append(length & 0x7F | 0x80)
        length >>= 7
    head.append(length)
    return bytes(head) + content


def _varints(values: Int64s) -> bytes:
    """Base-128 varints, lowest seven bits first; of negative values, of their 64 bits. values: [n]."""
    if values.size > _VARINT_BLOCK:
        blocks = range(0, values.size, _VARINT_BLOCK)
        return b"".join(_varints(values[start : start + _VARINT_BLOCK]) for start in blocks)
    if values.size == 0:
        return b""
    values = values.view(np.uint64)
    width = max(1, -(-int(values.max()).bit_length() // 7))
    digits = np.empty((values.size, width), np.uint8)
    used = np.ones((values.size, width), np.bool_)
    for byte in range(width):
        rest = values >> 7
        more = rest > 0
        digits[:, byte] = (values & 0x7F) | (more.view(np.uint8) << 7)
        used[:, byte + 1 : byte + 2] = more[:, None]
        values = rest
    return digits[used].tobytes()


def _crc(content: bytes) -> bytes:
    """Masked CRC-32C as it stands in the file."""
    crc = google_crc32c.value(content)
    return _CRC.pack(((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


# Indexing


def load_index(path: str | os.PathLike[str], *, progress: Callable[[int], object] | None = None) -> RecordIndex:
    """Index of the records of `path`.

    Taken from `<path>.index` when that belongs to the file as it is now (same size and modification time). Otherwise
    the whole file is read, both CRCs of every record checked, and the index written beside it; in a folder that cannot
    be written to, it stays in memory. `progress` is called with the number of bytes read since its last call.

    Raises InputError naming the file and the record (counted from 0) that is truncated, corrupt, or not an Example
    with an int64 feature `text`; or the file when it cannot be read.
    """
    path = os.fspath(path)
    try:
        stat = storage.stat(path)
        index = _read_sidecar(path, stat)
        if index is None:
            index = _scan(path, stat.size, progress or (lambda _: None))
            _write_sidecar(index, stat)
    except storage.errors() as error:
        raise InputError(f"{shown(path)}: cannot be read: {storage.reason(error)}") from error
    return index


def _read_sidecar(path: str, stat: storage.FileStat) -> RecordIndex | None:
    """None when there is no index, or it is of another file, another version, or broken: it is then made again."""
    try:
        with storage.open_binary(path + INDEX_SUFFIX) as file:
            content = io.BytesIO(file.read())
        with np.load(content, allow_pickle=False) as stored:
            version, size, mtime_ns, min_id, max_id = (int(value) for value in stored["header"])
            offsets, sizes, tokens = stored["offsets"], stored["sizes"], stored["tokens"]
    except Exception:  # whatever is wrong with it, the data file has the truth
        return None
    if (version, size, mtime_ns) != (_INDEX_VERSION, *stat) or not len(offsets) == len(sizes) == len(tokens):
        return None
    return RecordIndex(path, offsets, sizes, tokens, min_id, max_id)


def _write_sidecar(index: RecordIndex, stat: storage.FileStat) -> None:
    header = np.array([_INDEX_VERSION, *stat, index.min_id, index.max_id], dtype=np.int64)
    content = io.BytesIO()
    np.savez(content, header=header, offsets=index.offsets, sizes=index.sizes, tokens=index.tokens)
    try:
        with storage.replacing(index.path + INDEX_SUFFIX) as file:
            file.write(content.getvalue())
    except storage.errors():  # a read-only folder is a good place for data
        pass


def _scan(path: str, size: int, progress: Callable[[int], object]) -> RecordIndex:
    offsets, sizes, tokens = ([np.zeros(0, np.int64)] for _ in range(3))
    min_id, max_id = np.iinfo(np.int64).max, -1
    records = 0
    for batch in _batches(_payloads(path, size)):
        payloads = [payload for _, payload in batch]
        try:
            values, row_splits = parse_records(payloads)
        except RecordError as error:
            raise InputError(f"{shown(path)}: record {records + error.position} {error.reason}") from None
        offsets.append(np.array([offset for offset, _ in batch], np.int64))
        sizes.append(np.array([len(payload) for payload in payloads], np.int64))
        tokens.append(np.diff(row_splits))
        if values.size:
            min_id, max_id = min(min_id, int(values.min())), max(max_id, int(values.max()))
        records += len(batch)
        progress(int(sizes[-1].sum()) + len(batch) * (_HEADER_BYTES + _CRC.size))
    min_id = min(min_id, 0) if max_id < min_id else min_id
    return RecordIndex(path, np.concatenate(offsets), np.concatenate(sizes), np.concatenate(tokens), min_id, max_id)


def _payloads(path: str, size: int) -> Iterator[tuple[int, bytes]]:
    """(offset, payload) of each record of a file of `size` bytes, CRCs checked."""
    position = 0
    with storage.open_binary(path, _SCAN_BYTES) as file:
        for record in itertools.count():
            header = file.read(_HEADER_BYTES)
            if not header:
                return
            if len(header) < _HEADER_BYTES:
                raise InputError(
                    f"{shown(path)}: record {record} is cut off: the file ends in its header; write it again"
                )
            (length,) = _LENGTH.unpack(header[: _LENGTH.size])
            if _crc(header[: _LENGTH.size]) != header[_LENGTH.size :]:
                raise InputError(
                    f"{shown(path)}: record {record} is corrupt (CRC of its length), or this is no TFRecord file"
                )
            position += _HEADER_BYTES
            # Checked before reading, so that no length can ask for more memory than the file has bytes.
            if position + length + _CRC.size > size:
                raise InputError(
                    f"{shown(path)}: record {record} is cut off: the file ends before its {length} bytes do; write it "
                    "again"
                )
            payload = file.read(length)
            if _crc(payload) != file.read(_CRC.size):
                raise InputError(
                    f"{shown(path)}: record {record} is corrupt (CRC of its content); write the file again"
                )
            yield position, payload
            position += length + _CRC.size


def _batches(records: Iterable[tuple[int, bytes]]) -> Iterator[list[tuple[int, bytes]]]:
    """Records in lots of about _BATCH_BYTES."""
    batch: list[tuple[int, bytes]] = []
    held = 0
    for record in records:
        batch.append(record)
        held += len(record[1])
        if held >= _BATCH_BYTES:
            yield batch
            batch, held = [], 0
    if batch:
        yield batch


# Reading


def read_records(path: str | os.PathLike[str], offsets: Ids, sizes: Ids) -> list[bytes]:
    """Payloads at these byte offsets, in this order. Raises InputError when the file ends before one does."""
    path = os.fspath(path)
    wanted = [(int(offset), int(size)) for offset, size in zip(offsets, sizes, strict=True)]
    try:
        if storage.is_url(path):
            with storage.open_binary(path, 1 << 16) as file:
                payloads = [file.read(size) for offset, size in wanted if file.seek(offset) == offset]
        else:
            descriptor = os.open(path, os.O_RDONLY)
            try:
                payloads = [os.pread(descriptor, size, offset) for offset, size in wanted]
            finally:
                os.close(descriptor)
    except storage.errors() as error:
        raise InputError(f"{shown(path)}: cannot be read: {storage.reason(error)}") from error
    for (offset, size), payload in zip(wanted, payloads, strict=True):
        if len(payload) != size:
            raise InputError(
                f"{shown(path)}: ends before byte {offset + size}; it was changed while in use, start again"
            )
    return payloads


def parse_records(serialized: Sequence[bytes]) -> tuple[Int64s, Int64s]:
    """Ids of a batch of serialized Examples: (values, row_splits); record i is values[row_splits[i]:row_splits[i+1]].

    Raises RecordError for a record that is no Example with an int64 feature `text`.
    """
    import tensorflow as tf
    from tensorflow.python.eager import context

    spec = {FEATURE: tf.io.RaggedFeature(tf.int64, row_splits_dtype=tf.int64)}
    with context.eager_mode():  # also when called while a graph is built, or under TPUEstimator
        try:
            ragged = tf.io.parse_example(tf.constant(list(serialized), tf.string, [len(serialized)]), spec)[FEATURE]
        except (tf.errors.InvalidArgumentError, UnicodeDecodeError) as error:  # its message quotes the record's bytes
            _check_examples(serialized)
            position = next(i for i, record in enumerate(serialized) if not _parses(record, spec))
            reason = "is not a tf.train.Example that TensorFlow can read; write the file with create_tfrecords.py"
            raise RecordError(position, reason) from error
        values, row_splits = ragged.values.numpy(), ragged.row_splits.numpy()
    if np.any(row_splits[1:] == row_splits[:-1]):  # TensorFlow reads a record without the feature as an empty one
        _check_examples(serialized)
    return values, row_splits


def _parses(record: bytes, spec: dict[str, Any]) -> bool:
    """Whether TensorFlow's parser, which differs from protobuf's in Python, takes a record."""
    import tensorflow as tf

    try:
        tf.io.parse_example(tf.constant([record]), spec)
    except (tf.errors.InvalidArgumentError, UnicodeDecodeError):
        return False
    return True


class RecordError(InputError):
    """position: of the record among those that were parsed. reason: what is wrong with it."""

    def __init__(self, position: int, reason: str) -> None:
        super().__init__(f"record {position} of the batch {reason}")
        self.position, self.reason = position, reason


def _check_examples(serialized: Sequence[bytes]) -> None:
    """Raise RecordError for the first record that is not what the data code writes. Slow: for when one is known."""
    import tensorflow as tf
    from google.protobuf.message import DecodeError

    for position, record in enumerate(serialized):
        example = tf.train.Example()
        try:
            example.ParseFromString(record)
        except DecodeError:
            raise RecordError(position, "is not a tf.train.Example; write the file with create_tfrecords.py") from None
        features = example.features.feature
        if FEATURE not in features:
            found = ", ".join(sorted(features)) or "none"
            raise RecordError(position, f"has no feature {FEATURE!r} (features: {found}); it must hold the token ids")
        kind = features[FEATURE].WhichOneof("kind")
        if kind != "int64_list":
            raise RecordError(position, f"has a feature {FEATURE!r} of type {kind}; it must be an int64_list of ids")
