"""Readers of text corpora, one document at a time, told apart by the endings of their names.

| ending | documents |
|---|---|
| `.jsonl`, `.ndjson` | one a line: an object with the text under a field, or a string |
| `.json` | the items of its array; without an array, one a line |
| `.parquet` | one a row |
| `.tar`, `.zip` | those of each file in it, which is read as its own name says |
| `.dat` inside a compressed file | as lm_dataformat writes it |
| anything else, `.txt` too | one: the whole file exactly as it stands |

Any of them may be compressed: `.gz`, `.xz`, `.bz2`, `.zst` (and `.tgz`). Where a compressed file's name says no more
than that, its content tells: a tar archive, JSON lines, or else text. Everything is UTF-8, and nothing is held whole in
memory but a line, an item, or a row group.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import IO

from gpt_mesh.data.archives import BlockReader, dat_members, is_tar, tar_members, zip_members
from gpt_mesh.data.compression import ENDINGS, decompressed
from gpt_mesh.data.json_documents import begins_with_object, lines, lines_or_array
from gpt_mesh.data.parquet import parquet_documents
from gpt_mesh.data.pieces import cut
from gpt_mesh.data.text import AS_IT_STANDS, Reading, decoded
from gpt_mesh.errors import InputError
from gpt_mesh.storage import files as storage

Progress = Callable[[int], object]
Documents = Iterator[Iterable[str]]
"""Documents as blocks of text. A document is to be read to its end before the next one is asked for."""

_READ_BYTES = 1 << 20
_COMPRESSED_BYTES = 1 << 16  # read at a time; what comes out of it is many times as much
_HEAD_BYTES = 1 << 20  # looked at to tell what a file is


def read_documents(path: str, reading: Reading = AS_IT_STANDS, progress: Progress | None = None) -> Iterator[str]:
    """Documents of one file.

    progress is called with the number of bytes of the file read since its last call; the calls add up to its size.

    Raises InputError naming the file, and where in it something is that cannot be used.
    """
    held: list[str] = []
    for piece, ends in read_pieces(path, 1 << 20, reading, progress):
        held.append(piece)
        if ends:
            yield "".join(held)
            held = []


def read_pieces(
    path: str, size: int, reading: Reading = AS_IT_STANDS, progress: Progress | None = None
) -> Iterator[tuple[str, bool]]:
    """read_documents() in pieces: (text, whether the document ends with it).

    A piece has about `size` characters, and ends before white space that follows something else, which changes no
    token of a tokenizer that is `splittable`. It may be longer where there is no such place. A file of many gigabytes
    is read in little memory.
    """
    count = _Count(progress or (lambda _: None))
    try:
        with storage.open_binary(path) as file:
            for document in _of_file(path, file, reading, count):
                yield from cut(document, size, path)
        count.up_to(storage.stat(path).size)
    except storage.errors() as error:
        raise InputError(f"{path}: cannot be read: {storage.reason(error)}") from error


class _Count:
    """Tells `progress` how much of a file was read, and at last what the reader did not see, such as zip's index."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._done = 0

    def __call__(self, size: int) -> None:
        self._done += size
        self._progress(size)

    def up_to(self, size: int) -> None:
        if size > self._done:
            self(size - self._done)


def _of_file(path: str, file: IO[bytes], reading: Reading, count: Progress) -> Documents:
    """Documents of an open file; `count` is told how far it has been read."""
    name = path.lower()
    if name.endswith(".zip"):
        for member, content in zip_members(path, file, count):
            yield from _of_stream(f"{path}: {member}", member, content, reading)
    elif name.endswith(".parquet"):
        yield from ([text] for text in parquet_documents(path, file, reading, count))
    else:
        size = _COMPRESSED_BYTES if name.endswith((*ENDINGS, ".tgz")) else _READ_BYTES
        yield from _of_stream(path, path, _blocks(file, count, size), reading)


def _of_stream(where: str, name: str, blocks: Iterator[bytes], reading: Reading) -> Documents:
    """Documents of a file called `name` with this content; messages call it `where`."""
    lower = name.lower()
    if lower.endswith(".tgz"):
        name, lower = f"{name[:-4]}.tar.gz", f"{lower[:-4]}.tar.gz"
    if lower.endswith(ENDINGS):
        ending = lower[lower.rindex(".") :]
        yield from _of_compressed(where, name[: -len(ending)], decompressed(where, ending, blocks), reading)
    elif lower.endswith(".tar"):
        yield from _of_tar(where, name, blocks, reading)
    elif lower.endswith((".jsonl", ".ndjson")):
        yield from ([text] for text in lines(where, blocks, reading))
    elif lower.endswith(".json"):
        yield from ([text] for text in lines_or_array(where, blocks, reading))
    elif lower.endswith((".zip", ".parquet")):
        raise InputError(f"{where}: a zip or Parquet file inside another file cannot be read; unpack the outer one")
    else:
        yield decoded(where, blocks, reading)


def _of_compressed(where: str, name: str, blocks: Iterator[bytes], reading: Reading) -> Documents:
    """Documents of decompressed content; `name` is without the compression's ending."""
    if name.lower().endswith(".dat"):
        for member, content in dat_members(where, blocks):
            yield decoded(f"{where}: {member}", content, reading)
    elif name.lower().endswith((".txt", *_TOLD)):
        yield from _of_stream(where, name, blocks, reading)
    else:
        reader = BlockReader(blocks)
        head = reader.peek(_HEAD_BYTES)
        kind = ".tar" if is_tar(head) else ".jsonl" if begins_with_object(head, len(head) < _HEAD_BYTES) else ""
        yield from _of_stream(where, name + kind, iter(reader), reading)


_TOLD = (".jsonl", ".ndjson", ".json", ".tar", ".zip", ".parquet", ".tgz", *ENDINGS)  # endings that tell what it is


def _of_tar(where: str, name: str, blocks: Iterator[bytes], reading: Reading) -> Documents:
    outer = name[: -len(".tar")]
    for member, content in tar_members(where, blocks):
        # lm_dataformat's .jsonl.zst.tar has members of any name, which the archive's own name tells how to read.
        told = member.lower().endswith((".txt", *_TOLD)) or not outer.lower().endswith(_TOLD)
        yield from _of_stream(f"{where}: {member}", member if told else outer, content, reading)


def _blocks(file: IO[bytes], progress: Progress, size: int) -> Iterator[bytes]:
    while block := file.read(size):
        progress(len(block))
        yield block
