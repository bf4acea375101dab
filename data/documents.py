"""The documents of one file, whole or in pieces: what `readers/` has for its format, on any path or URL."""

from __future__ import annotations

from collections.abc import Iterator

from gpt_mesh.data.pieces import cut
from gpt_mesh.data.readers.blocks import file_blocks
from gpt_mesh.data.readers.reader import AS_IT_STANDS, Content, Documents, Progress, Reading
from gpt_mesh.data.readers.table import read_content, reader_of
from gpt_mesh.errors import InputError, shown
from gpt_mesh.storage import files as storage

_READ_BYTES = 1 << 20
_COMPRESSED_BYTES = 1 << 16  # read at a time; decompressed it is many times as much


def read_documents(path: str, reading: Reading = AS_IT_STANDS, progress: Progress | None = None) -> Iterator[str]:
    """The documents of a file, without those that `reading` skips.

    `progress` is called with the number of bytes of the file read since its last call; the calls add up to its size.

    Raises:
        InputError: names the file, and the place in it, that cannot be used.
    """
    for document in joined(read_pieces(path, 1 << 20, reading, progress)):
        if document is not None:
            yield document


def read_pieces(
    path: str, size: int, reading: Reading = AS_IT_STANDS, progress: Progress | None = None
) -> Iterator[tuple[str | None, bool]]:
    """The documents of a file in pieces: (text, whether the document ends with it); (None, True) is a skipped record.

    A piece has about `size` characters, and ends before white space that follows something else, which changes no
    token of a tokenizer that is `splittable`. It may be longer where there is no such place. A file of many gigabytes
    is read in little memory.
    """
    count = _Count(progress or (lambda _: None))
    try:
        with storage.open_binary(path) as file:
            reader = reader_of(path)
            block_size = _COMPRESSED_BYTES if reader is not None and reader.container else _READ_BYTES
            content = Content(shown(path), path, file_blocks(file, block_size, count), file=file, progress=count)
            yield from in_pieces(read_content(content, reading), size, shown(path))
        count.up_to(storage.stat(path).size)
    except storage.errors() as error:
        raise InputError(f"{shown(path)}: cannot be read: {storage.reason(error)}") from error


def in_pieces(documents: Documents, size: int, where: str) -> Iterator[tuple[str | None, bool]]:
    """Documents cut into pieces of about `size` characters, as `read_pieces` gives them."""
    for document in documents:
        if document is None:
            yield None, True
        else:
            yield from cut(document, size, where)


def joined(pieces: Iterator[tuple[str | None, bool]]) -> Iterator[str | None]:
    """Whole documents from their pieces."""
    held: list[str] = []
    for piece, ends in pieces:
        if piece is None:
            yield None
            continue
        held.append(piece)
        if ends:
            yield "".join(held)
            held = []


class _Count:
    """Tells `progress` how much of a file was read, and finally what the reader did not see, such as zip's index."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._done = 0

    def __call__(self, size: int) -> None:
        self._done += size
        self._progress(size)

    def up_to(self, size: int) -> None:
        if size > self._done:
            self(size - self._done)
