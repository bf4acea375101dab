"""The formats that text is read from, and which of them a file has."""

from __future__ import annotations

from gpt_mesh.data.readers.blocks import BlockReader
from gpt_mesh.data.readers.compressed import CompressedReader
from gpt_mesh.data.readers.json_array import JsonArrayReader
from gpt_mesh.data.readers.json_lines import JsonLinesReader
from gpt_mesh.data.readers.lm_dataformat import DatReader
from gpt_mesh.data.readers.parquet import ParquetReader
from gpt_mesh.data.readers.reader import Content, Documents, Evidence, Reader, Reading
from gpt_mesh.data.readers.tar import TarReader
from gpt_mesh.data.readers.text import LinesReader, TextReader
from gpt_mesh.data.readers.zip import ZipReader
from gpt_mesh.errors import InputError

_TEXT = TextReader()
READERS: tuple[Reader, ...] = (
    *(_TEXT, LinesReader(), JsonLinesReader(), JsonArrayReader(), DatReader(), ParquetReader()),
    *(CompressedReader(), TarReader(), ZipReader()),
)
FORMATS = {reader.name: reader for reader in READERS if not reader.container}
"""By name, what `Reading.format` can be."""

_HEAD_BYTES = 1 << 20  # looked at to tell what a file is


def read_content(content: Content, reading: Reading) -> Documents:
    """The documents of a file, or of a file in another one.

    Its ending tells the format; inside a compressed file, whose name may have no more endings, its first bytes do.
    Any other file is text.

    Raises:
        InputError: it cannot be read, or its first bytes fit two formats.
    """
    found = reader_of(content.name, content.compressed) or reader_of(content.outer)
    if content.outer and found and not reader_of(content.name):
        content = Content(content.where, content.outer, content.blocks)
    if found is None and content.compressed:
        found, content = _recognised(content, reading)
    if reading.format is not None and not (found and found.container):
        found = FORMATS[reading.format]
    yield from (found or _TEXT).documents(content, reading, read_content)


def reader_of(name: str, compressed: bool = False) -> Reader | None:
    """The reader that a file name's ending tells; None where it tells none."""
    name = name.lower()
    for reader in READERS:
        if name.endswith(reader.endings) or (compressed and name.endswith(reader.compressed_endings)):
            return reader
    return None


def _recognised(content: Content, reading: Reading) -> tuple[Reader, Content]:
    """The reader whose format the first bytes show, and the content from its beginning."""
    blocks = BlockReader(content.blocks)
    head = blocks.peek(_HEAD_BYTES)
    found = {reader: reader.evidence(head, len(head) < _HEAD_BYTES) for reader in READERS}
    certain = [reader for reader, evidence in found.items() if evidence is Evidence.YES]
    doubtful = [reader for reader, evidence in found.items() if evidence is Evidence.DOUBTFUL]
    if doubtful and not certain and reading.format is None:
        name = doubtful[0].name
        flags = f", or say --format {name} or --format text" if reading.by_flags else ""
        raise InputError(
            f"{content.where}: begins like JSON and like text; put .{name} or .txt before the last ending of its name"
            f"{flags}"
        )
    reader = certain[0] if certain else _TEXT
    ending = reader.endings[0] if reader.container else ""
    return reader, Content(content.where, content.name + ending, iter(blocks), compressed=True)
