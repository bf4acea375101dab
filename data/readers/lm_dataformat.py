"""lm_dataformat's `.dat` files (https://github.com/leogao2/lm_dataformat), which it always compresses."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import ClassVar

from gpt_mesh.data.readers.blocks import BlockReader
from gpt_mesh.data.readers.reader import Content, Documents, ReadContent, Reader, Reading
from gpt_mesh.data.readers.text import decoded
from gpt_mesh.errors import InputError

_LENGTH_DIGITS = 16


class DatReader(Reader):
    """16 digits that say how many bytes follow, then those bytes, and so on: each a document."""

    name: ClassVar[str] = "dat"
    compressed_endings: ClassVar[tuple[str, ...]] = (".dat",)

    def documents(self, content: Content, reading: Reading, read_inner: ReadContent) -> Documents:
        for number, data in enumerate(_documents(content.where, content.blocks), start=1):
            yield decoded(f"{content.where}: document {number}", [data], reading, mark=False)


def _documents(where: str, blocks: Iterable[bytes]) -> Iterator[bytes]:
    reader = BlockReader(blocks)
    number = 0
    while head := reader.read(_LENGTH_DIGITS):
        number += 1
        if not (len(head) == _LENGTH_DIGITS and head.isdigit()):
            raise InputError(f"{where}: document {number} does not begin with 16 digits: is no .dat file, or damaged")
        data = reader.read(int(head))
        if len(data) < int(head):
            raise InputError(f"{where}: is cut off in document {number}; get the file again")
        yield data
