"""Documents in Parquet files."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

from gpt_mesh.meshes.compat import mtf  # noqa: F401  (first: it quiets TensorFlow's start-up)

import pytest
import tensorflow as tf

from gpt_mesh.data.documents import read_documents
from gpt_mesh.data.readers.reader import Reading
from tests.data.test_documents import DOCUMENTS, memory_below, message, tar, written

pa = pytest.importorskip("pyarrow", reason="is in requirements-data.lock, which `make test` installs")
parquet = pytest.importorskip("pyarrow.parquet")


def stored(table: Any, **options: object) -> bytes:
    content = io.BytesIO()
    parquet.write_table(table, content, **options)
    return content.getvalue()


@pytest.mark.parametrize("compression", ["none", "snappy", "zstd"])
@pytest.mark.parametrize("rows", [1, 3, 1000])
def test_a_row_is_a_document(tmp_path: Path, compression: str, rows: int) -> None:
    table = pa.table({"id": range(4), "text": DOCUMENTS})
    path = written(tmp_path, "a.parquet", stored(table, compression=compression, row_group_size=rows))
    read: list[int] = []
    assert list(read_documents(path, progress=read.append)) == DOCUMENTS
    assert sum(read) == Path(path).stat().st_size


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.binary(), pa.dictionary(pa.int32(), pa.string())], ids=str
)
def test_every_type_of_text(tmp_path: Path, kind: Any) -> None:
    column = pa.array([text.encode() for text in DOCUMENTS] if kind == pa.binary() else DOCUMENTS, kind)
    path = written(tmp_path, "a.parquet", stored(pa.table({"text": column})))
    assert list(read_documents(path)) == DOCUMENTS


def test_nested_columns_and_paragraphs(tmp_path: Path) -> None:
    table = pa.table({"a": [{"b": "one", "c": 1}, {"b": "two", "c": 2}], "parts": [["x", "y"], ["z"]], "ab": ["", ""]})
    path = written(tmp_path, "a.parquet", stored(table))
    assert list(read_documents(path, Reading(text_key="a.b"))) == ["one", "two"]
    assert list(read_documents(path, Reading(text_key="parts"))) == ["x\n\ny", "z"]
    flags = Reading(text_key="a.d", by_flags=True)
    assert "has no column a.d, but a.b, a.c, parts" in message(path, flags)
    assert message(path, flags).endswith("name the column with --text_key")
    assert "row 0: its field a is no string but dict" in message(path, Reading(text_key="a"))


def test_values_that_are_no_text(tmp_path: Path) -> None:
    invalid = pa.array([b"fine", b"ab\xff"]).cast(pa.binary()).view(pa.binary())
    invalid = pa.Array.from_buffers(pa.string(), 2, invalid.buffers())
    for column, reason in (
        (pa.array(["a", None]), "row 1: its field text is null"),
        (pa.array([1]), "row 0: its field text is no string but int"),
        (invalid, "row 1: byte 2 of it is not UTF-8"),
    ):
        path = written(tmp_path, "a.parquet", stored(pa.table({"text": column})))
        assert reason in message(path)
    assert list(read_documents(path, Reading(errors="replace"))) == ["fine", "ab\ufffd"]


def test_cut_off_or_damaged(tmp_path: Path) -> None:
    whole = stored(pa.table({"text": DOCUMENTS}), compression="snappy")
    for size in (0, 3, len(whole) // 2, len(whole) - 1):
        assert "is no Parquet file, or damaged or cut off" in message(written(tmp_path, "a.parquet", whole[:size]))
    assert "is no Parquet file" in message(written(tmp_path, "a.parquet", b"text " * 100))
    name = whole.rindex(b"text")  # where the metadata of a column tell of which
    bad = b"\xff".join((whole[:name], whole[name + 1 :]))
    assert "can't decode byte 0xff" in message(written(tmp_path, "a.parquet", bad))
    assert "unpack the outer one" in message(written(tmp_path, "a.tar", tar({"a.parquet": whole})))


def test_row_groups_are_read_one_by_one(tmp_path: Path) -> None:
    path = str(tmp_path / "a.parquet")
    group = pa.table({"text": ["0 " * 1000] * 1000})
    with parquet.ParquetWriter(path, group.schema, compression="zstd") as writer:
        for _ in range(20):
            writer.write_table(group)
    before = pa.total_allocated_bytes()
    most = 0
    with memory_below(8e6):
        for number, _ in enumerate(read_documents(path)):
            if number % 500 == 0:
                most = max(most, pa.total_allocated_bytes() - before)
    assert most < 12e6, "20 groups of 2 MB"


def test_parquet_at_urls() -> None:
    with tf.io.gfile.GFile("ram://parquet/a.parquet", "wb") as file:
        file.write(stored(pa.table({"text": DOCUMENTS}), row_group_size=2))
    assert list(read_documents("ram://parquet/a.parquet")) == DOCUMENTS


def test_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, "a.parquet", stored(pa.table({"text": DOCUMENTS})))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert "need pyarrow; pip install pyarrow" in message(path)
