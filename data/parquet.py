"""Documents in Parquet files, a row each. Needs pyarrow, which is no requirement of the rest."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import IO, Any

from gpt_mesh.data.text import Reading, text_of, utf8
from gpt_mesh.errors import InputError
from gpt_mesh.storage import files as storage
from gpt_mesh.storage.progress import Share

_ROWS = 256  # turned into Python strings at a time


def parquet_documents(name: str, file: IO[bytes], reading: Reading, progress: Callable[[int], object]) -> Iterator[str]:
    """The text of each row: the column `text_key`, or `a.b` for a field of a struct column. Other columns stay unread.

    Memory is bounded by a row group of that column. `progress` is told the bytes of the column.
    Raises InputError when pyarrow is missing, the file is damaged, or the column is absent or not of strings.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise InputError(f"{name}: Parquet files need pyarrow; pip install pyarrow, or convert it to .jsonl") from error
    try:
        table = parquet.ParquetFile(file)
        column = _column(name, table, reading)
        row = 0
        for group in range(table.num_row_groups):
            told = Share(_bytes(table.metadata.row_group(group), column), table.metadata.row_group(group).num_rows)
            for batch in table.iter_batches(_ROWS, row_groups=[group], columns=[column]):
                progress(told.of(batch.num_rows))
                for record in _records(pyarrow, batch):
                    yield text_of(utf8(record, f"{name}: row {row}", reading), f"{name}: row {row}", reading)
                    row += 1
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:  # the last of names in its metadata
        reason = storage.reason(error)
        raise InputError(f"{name}: is no Parquet file, or damaged or cut off ({reason}); get the file again") from error


def _column(name: str, table: Any, reading: Reading) -> str:
    """The path of the column, checked."""
    leaves = [table.schema.column(i).path for i in range(len(table.schema))]
    if any(leaf == reading.text_key or leaf.startswith(f"{reading.text_key}.") for leaf in leaves):
        return reading.text_key
    names = ", ".join(leaves[:8])
    advice = "; name the column with --text_key" if reading.by_flags else ""
    raise InputError(f"{name}: has no column {reading.text_key}, but {names}{advice}")


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


def _bytes(group: Any, column: str) -> int:
    """Compressed bytes of a column in a row group."""
    parts = [group.column(i) for i in range(group.num_columns)]
    return sum(part.total_compressed_size for part in parts if part.path_in_schema.startswith(column))
