"""TFRecord files: what is written is what TensorFlow reads, and nothing damaged is taken for data."""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from gpt_mesh.data.tfrecords import (
    INDEX_SUFFIX,
    RecordIndex,
    load_index,
    parse_records,
    read_records,
    serialize,
    write_records,
)
from gpt_mesh.errors import InputError
from gpt_mesh.storage import files as storage

RECORDS = [[5, 300, 50256, 0], list(range(1000)), [], [1], [2**31, 2**62, 127, 128, 16383, 16384]]


def example(**features: tf.train.Feature) -> bytes:
    return bytes(tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString())


def int64_feature(ids: Sequence[int]) -> tf.train.Feature:
    return tf.train.Feature(int64_list=tf.train.Int64List(value=ids))


def ids_of(index: RecordIndex) -> list[list[int]]:
    values, row_splits = parse_records(read_records(index.path, index.offsets, index.sizes))
    return [values[start:end].tolist() for start, end in itertools.pairwise(row_splits)]


@pytest.fixture
def path(tmp_path: Path) -> str:
    target = tmp_path / "x_0_5.tfrecords"
    write_records(target, RECORDS)
    return str(target)


@given(st.lists(st.integers(0, 2**63 - 1) | st.integers(0, 60000)))
def test_serialized_bytes_are_those_of_tensorflow(ids: list[int]) -> None:
    assert serialize(ids) == example(text=int64_feature(ids))
    assert serialize(np.array(ids, np.int64)) == serialize(ids)


def test_serializing_a_long_document_in_blocks_changes_nothing() -> None:
    ids = np.random.default_rng(0).integers(0, 60000, 600_001)
    assert serialize(ids) == example(text=int64_feature(ids.tolist()))


def test_marked_ids_are_negative(tmp_path: Path) -> None:
    ids = [1, -3, -(2**30), 0, 2**40]
    assert serialize(ids) == example(text=int64_feature(ids))
    write_records(tmp_path / "x.tfrecords", [ids])
    index = load_index(str(tmp_path / "x.tfrecords"))
    assert (index.min_id, index.max_id) == (-(2**30), 2**40)


def test_tensorflow_reads_what_is_written(path: str) -> None:
    parsed = [tf.train.Example.FromString(raw.numpy()) for raw in tf.data.TFRecordDataset(path)]
    assert [list(record.features.feature["text"].int64_list.value) for record in parsed] == RECORDS


def test_what_tensorflow_writes_is_indexed(tmp_path: Path) -> None:
    path = str(tmp_path / "theirs.tfrecords")
    with tf.io.TFRecordWriter(path) as writer:
        for ids in RECORDS:
            writer.write(example(text=int64_feature(ids), other=int64_feature([9])))
    assert ids_of(load_index(path)) == RECORDS


def test_index_describes_every_record(path: str) -> None:
    index = load_index(path)
    assert index.tokens.tolist() == [len(ids) for ids in RECORDS]
    assert (index.min_id, index.max_id, len(index)) == (0, 2**62, len(RECORDS))
    assert {array.dtype for array in (index.offsets, index.sizes, index.tokens)} == {np.dtype(np.int64)}
    assert ids_of(index) == RECORDS


def test_any_order_of_records_can_be_read(path: str) -> None:
    index = load_index(path)
    payloads = read_records(path, index.offsets[[3, 0, 3]], index.sizes[[3, 0, 3]])
    assert payloads == [serialize(RECORDS[3]), serialize(RECORDS[0]), serialize(RECORDS[3])]


@pytest.mark.parametrize("records", [[], [[]], [[], []]])
def test_files_without_ids(tmp_path: Path, records: list[list[int]]) -> None:
    path = tmp_path / "empty.tfrecords"
    write_records(path, records)
    assert (path.stat().st_size == 0) == (not records)
    for _ in range(2):  # scanned, then from the sidecar
        index = load_index(path)
        assert index.tokens.tolist() == [0] * len(records)
        assert (index.min_id, index.max_id) == (0, -1)


def test_scanning_goes_through_files_larger_than_one_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpt_mesh.data.tfrecords._BATCH_BYTES", 2000)
    monkeypatch.setattr("gpt_mesh.data.tfrecords._SCAN_BYTES", 1000)
    records = np.random.default_rng(0).integers(0, 50257, (100, 65)).tolist()
    path = tmp_path / "many.tfrecords"
    write_records(path, records)
    read: list[int] = []
    index = load_index(path, progress=read.append)
    assert ids_of(index) == records
    assert (index.min_id, index.max_id) == (min(map(min, records)), max(map(max, records)))
    assert len(read) > 5
    assert sum(read) == path.stat().st_size
    load_index(path, progress=read.append)
    assert sum(read) == path.stat().st_size, "the sidecar saves reading the file again"


# The sidecar


@pytest.fixture
def scanned(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Paths that were scanned."""
    from gpt_mesh.data import tfrecords

    paths: list[str] = []
    scan = tfrecords._scan

    def counting(path: str, size: int, progress: Callable[[int], object]) -> RecordIndex:
        paths.append(path)
        return scan(path, size, progress)

    monkeypatch.setattr(tfrecords, "_scan", counting)
    return paths


def test_index_is_kept_until_the_file_changes(path: str, scanned: list[str]) -> None:
    first = load_index(path)
    again = load_index(path)
    assert len(scanned) == 1
    assert again.offsets.tolist() == first.offsets.tolist()
    assert (again.min_id, again.max_id) == (first.min_id, first.max_id)
    write_records(path, [[7, 8]])
    assert load_index(path).tokens.tolist() == [2]
    os.utime(path, ns=(1, 1))
    load_index(path)
    assert len(scanned) == 3


@pytest.mark.parametrize("seed", range(20))
def test_damaged_index_is_made_again(path: str, seed: int) -> None:
    expected = ids_of(load_index(path))
    sidecar = Path(path + INDEX_SUFFIX)
    generator = np.random.default_rng(seed)
    content = bytearray(sidecar.read_bytes())
    for position in generator.integers(0, len(content), 10):
        content[position] ^= int(generator.integers(1, 256))
    sidecar.write_bytes(content[: generator.integers(0, len(content))] if seed % 2 else content)
    assert ids_of(load_index(path)) == expected


def test_index_of_another_version_is_made_again(path: str, scanned: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    load_index(path)
    monkeypatch.setattr("gpt_mesh.data.tfrecords._INDEX_VERSION", 99)
    load_index(path)
    assert len(scanned) == 2


def test_folder_that_cannot_be_written_to(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(target: str) -> None:
        raise PermissionError(13, "Permission denied", target)

    monkeypatch.setattr(storage, "replacing", refuse)  # a mode bit would not stop root
    assert ids_of(load_index(path)) == RECORDS
    assert not os.path.exists(path + INDEX_SUFFIX)


# Damage


def damaged(path: str) -> str:
    with pytest.raises(InputError) as caught:
        load_index(path)
    line = str(caught.value)
    assert "\n" not in line
    assert path in line
    assert not os.path.exists(path + INDEX_SUFFIX)
    return line


def test_every_flipped_byte_is_found(tmp_path: Path) -> None:
    path = tmp_path / "small.tfrecords"
    records = [[1, 2, 3], [400, 500]]
    write_records(path, records)
    whole = path.read_bytes()
    second = 16 + len(serialize(records[0]))
    for position in range(len(whole)):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 0x10]) + whole[position + 1 :])
        line = damaged(str(path))
        assert f"record {int(position >= second)} is corrupt" in line, (position, line)


def test_every_truncation_is_found(tmp_path: Path) -> None:
    path = tmp_path / "small.tfrecords"
    records = [[1, 2, 3], [400, 500]]
    write_records(path, records)
    whole = path.read_bytes()
    second = 16 + len(serialize(records[0]))
    for size in set(range(1, len(whole))) - {second}:
        path.write_bytes(whole[:size])
        assert f"record {int(size > second)} is cut off" in damaged(str(path))


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"\xff\xffnot protobuf", "is not a tf.train.Example"),
        # Ids in a field that an Int64List does not have: protobuf passes over it, TensorFlow's parser does not.
        (serialize(range(10)).replace(b"\x1a\x0c\x0a\x0a", b"\x1a\x0c\x1a\x0a"), "that TensorFlow can read"),
        (b"", "no feature 'text' (features: none)"),
        (example(ids=int64_feature([1])), "no feature 'text' (features: ids)"),
        (example(text=tf.train.Feature()), "type None"),
        (example(text=tf.train.Feature(float_list=tf.train.FloatList(value=[1.0]))), "type float_list"),
        (example(text=tf.train.Feature(bytes_list=tf.train.BytesList(value=[b"hello"]))), "type bytes_list"),
    ],
)
def test_records_that_hold_no_ids(tmp_path: Path, payload: bytes, reason: str) -> None:
    path = str(tmp_path / "other.tfrecords")
    with tf.io.TFRecordWriter(path) as writer:
        for content in (serialize([1]), serialize([]), payload, payload):
            writer.write(content)
    line = damaged(path)
    assert "record 2 " in line
    assert reason in line
    with pytest.raises(InputError, match="record 1 of the batch"):
        parse_records([serialize([1]), payload])


def test_a_text_file_is_not_a_tfrecord_file(tmp_path: Path) -> None:
    path = tmp_path / "x.tfrecords"
    path.write_text("just some text, long enough for a header")
    assert "no TFRecord file" in damaged(str(path))


def test_missing_file(tmp_path: Path) -> None:
    path = str(tmp_path / "nowhere.tfrecords")
    assert "No such file" in damaged(path)
    with pytest.raises(InputError, match=r"nowhere.tfrecords: cannot be read: No such file"):
        read_records(path, [0], [1])


def test_reading_past_the_end(path: str) -> None:
    with pytest.raises(InputError, match="ends before byte 1000000"):
        read_records(path, [999_990], [10])


def test_no_records_parse_to_no_ids() -> None:
    values, row_splits = parse_records([])
    assert (values.tolist(), row_splits.tolist()) == ([], [0])


# URLs and graphs


def test_urls_go_through_gfile() -> None:
    path = "ram://records/x_0_5.tfrecords"
    tf.io.gfile.makedirs("ram://records")
    write_records(path, RECORDS)
    for _ in range(2):
        assert ids_of(load_index(path)) == RECORDS
    assert storage.glob("ram://records/*") == [path, path + INDEX_SUFFIX], "no temporary file is left"
    with pytest.raises(InputError, match="ram://records/none: cannot be read"):
        load_index("ram://records/none")
    with pytest.raises(InputError, match="ram://records/none: cannot be read"):
        read_records("ram://records/none", [0], [1])
    with pytest.raises(InputError, match=r"ends before byte|end of file"):  # as the filesystem notices
        read_records(path, [10**6], [10])


def test_parsing_while_a_graph_is_built() -> None:
    with tf.Graph().as_default():
        values, _ = parse_records([serialize([4, 5])])
    assert values.tolist() == [4, 5]


def test_writing_needs_no_tensorflow(tmp_path: Path) -> None:
    import subprocess

    code = "import sys; from gpt_mesh.data.tfrecords import write_records; write_records(sys.argv[1], [[1]])"
    check = f"{code}; assert 'tensorflow' not in sys.modules"
    root = Path(__file__).resolve().parents[2]
    subprocess.run([sys.executable, "-c", check, str(tmp_path / "x")], cwd=root, check=True)
