"""Parquet files, which need pyarrow."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

from gpt_mesh.data.readers.reader import Content, Documents, ReadContent, Reader, Reading
from gpt_mesh.data.readers.roles import columns_of
from gpt_mesh.data.readers.values import document_of, utf8
from gpt_mesh.errors import InputError
from gpt_mesh.storage import files as storage
from gpt_mesh.storage.progress import Share

_ROWS = 256  # converted to Python strings at a time


class ParquetReader(Reader):
    """The text of each row: the column `text_key`, or `a.b` for a field of a struct column. Other columns stay unread.

    Memory is bounded by a row group of that column.
    """

    name: ClassVar[str] = "parquet"
    endings: ClassVar[tuple[str, ...]] = (".parquet",)

    def documents(self, content: Content, reading: Reading, read_inner: ReadContent) -> Documents:
        """`content.progress` is told the bytes of the column.

        Raises:
            InputError: pyarrow is missing, the file is damaged, or the column is absent or not of strings.
        """
        file, where = content.seekable(), content.where
        try:
            import pyarrow
            from pyarrow import parquet
        except ImportError as error:
            remedy = "pip install pyarrow, or convert it to .jsonl"
            raise InputError(f"{where}: Parquet files need pyarrow; {remedy}") from error
        try:
            table = parquet.ParquetFile(file)
            columns = _columns(where, table, reading)
            row = 0
            for group in range(table.num_row_groups):
                metadata = table.metadata.row_group(group)
                share = Share(_bytes(metadata, columns), metadata.num_rows)
                for batch in table.iter_batches(_ROWS, row_groups=[group], columns=columns):
                    content.progress(share.of(batch.num_rows))
                    for record in _records(pyarrow, batch):
                        place = f"{where}: row {row}"
                        yield document_of(utf8(record, place, reading), place, reading)
                        row += 1
        except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:  # the last of names in its metadata
            reason = f"is no Parquet file, or damaged or cut off ({storage.reason(error)})"
            raise InputError(f"{where}: {reason}; get the file again") from error


def _columns(name: str, table: Any, reading: Reading) -> list[str]:
    """The paths of the columns to read, checked."""
    if reading.records == "text":
        return [_column(name, table, reading)]
    return columns_of(reading.records, list(table.schema_arrow.names), name)


def _column(name: str, table: Any, reading: Reading) -> str:
    """The path of the column, checked."""
    leaves = [table.schema.column(i).path for i in range(len(table.schema))]
    _check_no_list(name, table, reading)
    if any(leaf == reading.text_key or leaf.startswith(f"{reading.text_key}.") for leaf in leaves):
        return reading.text_key
    names = ", ".join(leaves[:8])
    advice = "; name the column with --text_key" if reading.by_flags else ""
    raise InputError(f"{name}: has no column {reading.text_key}, but {names}{advice}")


def _check_no_list(name: str, table: Any, reading: Reading) -> None:
    """Raise InputError when `text_key` leads into a list of structs, which has many texts and not one."""
    from pyarrow import types

    kind: Any = None
    reached: list[str] = []
    for part in reading.text_key.split("."):
        fields = table.schema_arrow if kind is None else kind
        if kind is not None and not types.is_struct(kind):
            break
        if fields.get_field_index(part) < 0:
            return
        reached.append(part)
        kind = fields.field(part).type
    if (types.is_list(kind) or types.is_large_list(kind)) and types.is_struct(kind.value_type):
        inner = ", ".join(kind.value_type.field(i).name for i in range(kind.value_type.num_fields))
        raise InputError(
            f"{name}: column {'.'.join(reached)} is a list of structs (with {inner}), and a document is one text; a "
            "column of strings, of lists of strings, or a string in a struct can be read: write such a column, or a "
            ".jsonl file with a text a line"
        )


def _records(pyarrow: Any, batch: Any) -> Iterator[Any]:
    """Rows as Python objects, strings as bytes: Arrow does not check that they are UTF-8."""
    table = pyarrow.Table.from_batches([batch])
    yield from table.cast(pyarrow.schema([_binary(pyarrow, field) for field in table.schema])).to_pylist()


def _binary(pyarrow: Any, field: Any) -> Any:
    return pyarrow.field(field.name, _binary_type(pyarrow, field.type), field.nullable)


def _binary_type(pyarrow: Any, kind: Any) -> Any:
    types = pyarrow.types
    if types.is_dictionary(kind):
        return _binary_type(pyarrow, kind.value_type)
    if types.is_struct(kind):
        return pyarrow.struct([_binary(pyarrow, kind.field(i)) for i in range(kind.num_fields)])
    if types.is_list(kind) or types.is_large_list(kind):
        return pyarrow.large_list(_binary_type(pyarrow, kind.value_type))
    return pyarrow.large_binary() if types.is_string(kind) or types.is_large_string(kind) else kind


def _bytes(group: Any, columns: list[str]) -> int:
    """Compressed bytes of columns in a row group."""
    parts = [group.column(i) for i in range(group.num_columns)]
    return sum(part.total_compressed_size for part in parts if part.path_in_schema.startswith(tuple(columns)))
