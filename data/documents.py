"""Readers of text corpora, one document at a time.

`.jsonl` and `.jsonl.zst` hold a document a line, in the field `text`; a file of any other type is one document,
exactly as it stands. Everything is UTF-8.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Literal

import zstandard

from data import storage
from errors import InputError

FILE_TYPES = ("txt", "jsonl", "jsonl.zst")
"""What is looked for in a folder when no type is asked for."""

Errors = Literal["strict", "replace"]
Progress = Callable[[int], object]


@dataclass(frozen=True)
class Reading:
    """How the bytes of a file become text.

    text_key: field of JSON objects that holds the text. errors: what happens to bytes that are not UTF-8 (and to lone
    surrogates in JSON): "strict" stops, "replace" puts U+FFFD. by_flags: the user has flags for these (--text_key,
    --errors), which messages may therefore advise.
    """

    text_key: str = "text"
    errors: Errors = "strict"
    by_flags: bool = False

    @property
    def or_replace(self) -> str:
        """What else can be done about text that is not UTF-8."""
        return ", or use --errors replace" if self.by_flags else ""


AS_IT_STANDS = Reading()
"""The field `text` of JSON, and nothing that is not UTF-8."""

_READ_BYTES = 1 << 20
_COMPRESSED_BYTES = 1 << 16  # read at a time; what comes out of it is many times as much
_MAX_WINDOW = 1 << 31  # `zstd --long=31`
# Where a document may be cut: before white space that follows something else. U+180E was white space until Unicode 6.3.
_CUT = re.compile(r"[^\s\u180e][ \n]")


def find_files(pattern: str, file_types: Sequence[str] | None = None) -> list[str]:
    """Files of a corpus, sorted.

    pattern: a file, a folder (searched with its subfolders), or a glob of either. file_types: endings without their
    leading dot, such as `txt` or `py`; of a folder only such files are taken, FILE_TYPES when it is None. A glob is
    filtered only when types are given; a file that is named is taken whatever it is.

    Raises InputError when nothing is found.
    """
    if storage.is_folder(pattern):
        found = _of_type(storage.walk(pattern), file_types or FILE_TYPES)
    elif storage.exists(pattern):
        found = [pattern]
    else:
        found = []
        for match in storage.glob(pattern):
            if storage.is_folder(match):
                found += _of_type(storage.walk(match), file_types or FILE_TYPES)
            else:
                found += _of_type([match], file_types) if file_types else [match]
    if not found:
        types = ", ".join(f".{name.lstrip('.')}" for name in file_types or FILE_TYPES)
        raise InputError(f"{pattern}: no {types} file there; check the path, or ask for another --file_type")
    return sorted(set(found))


def _of_type(paths: Iterable[str], file_types: Sequence[str]) -> list[str]:
    endings = tuple(f".{name.lstrip('.')}" for name in file_types)
    return [path for path in paths if path.endswith(endings)]


def read_documents(path: str, reading: Reading = AS_IT_STANDS, progress: Progress | None = None) -> Iterator[str]:
    """Documents of one file.

    progress is called with the number of bytes of the file read since its last call.

    Raises InputError naming the file and the byte, or the line (counted from 1), that cannot be used.
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
    progress = progress or (lambda _: None)
    try:
        with storage.open_binary(path) as file:
            if path.endswith((".jsonl", ".jsonl.zst")):
                blocks = _decompressed(path, file, progress) if path.endswith(".zst") else _blocks(file, progress)
                for number, line in enumerate(_lines(blocks), start=1):
                    if line.strip():
                        yield from _cut([_text_of(line, f"{path}: line {number}", reading)], size)
            else:
                yield from _cut(_decoded(path, _blocks(file, progress), reading), size)
    except storage.errors() as error:
        raise InputError(f"{path}: cannot be read: {storage.reason(error)}") from error


def _cut(blocks: Iterable[str], size: int) -> Iterator[tuple[str, bool]]:
    """Pieces of the document that `blocks` make up."""
    held, searched = "", 0
    for block in blocks:
        held += block
        start = 0
        while (match := _CUT.search(held, max(start + size - 1, searched))) is not None:
            yield held[start : match.start() + 1], False
            start = searched = match.start() + 1
        searched = max(len(held) - 1, start) - start
        held = held[start:]
    yield held, True


def _blocks(file: IO[bytes], progress: Progress, size: int = _READ_BYTES) -> Iterator[bytes]:
    while block := file.read(size):
        yield block
        progress(len(block))


def _decompressed(path: str, file: IO[bytes], progress: Progress) -> Iterator[bytes]:
    """Content of a zstd file of any number of frames. (The library's stream reader takes a cut-off one for whole.)"""
    decompressor = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW)
    frame = None
    try:
        for block in _blocks(file, progress, _COMPRESSED_BYTES):
            while block:
                frame = frame or decompressor.decompressobj()
                yield frame.decompress(block)
                block = frame.unused_data
                if frame.eof:
                    frame = None
    except zstandard.ZstdError as error:
        raise InputError(f"{path}: is not zstd, or damaged: {storage.reason(error)}") from error
    if frame is not None:
        raise InputError(f"{path}: is cut off: its last zstd frame does not end; get the file again")


def _lines(blocks: Iterable[bytes]) -> Iterator[bytes]:
    held: list[bytes] = []
    for block in blocks:
        first, *rest = block.split(b"\n")
        held.append(first)
        if rest:
            yield b"".join(held)
            yield from rest[:-1]
            held = rest[-1:]
    yield b"".join(held)


def _decoded(path: str, blocks: Iterable[bytes], reading: Reading) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8")(reading.errors)
    read = 0
    try:
        for block in blocks:
            read += len(block)
            yield decoder.decode(block)
        yield decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        # error.object also has the bytes that an earlier block left over.
        at = read - len(error.object) + error.start
        raise InputError(f"{path}: byte {at} is not UTF-8; convert the file{reading.or_replace}") from error


def _text_of(line: bytes, where: str, reading: Reading) -> str:
    """The document of one JSON line."""
    try:
        text = line.decode("utf-8", reading.errors)
        value = json.loads(text)
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: byte {error.start} of it is not UTF-8; convert it{reading.or_replace}") from error
    except ValueError as error:
        raise InputError(f"{where}: is not JSON ({error}); each line must be an object with a field text") from error
    document = value.get("text") if isinstance(value, dict) else None
    if not isinstance(document, str):
        raise InputError(f'{where}: has no string field text; each line must be an object such as {{"text": "…"}}')
    try:
        document.encode("utf-8")
    except UnicodeEncodeError as error:  # JSON can write half of a character: "\ud83d"
        if reading.errors == "strict":
            reason = f"character {error.start} of its text is a lone surrogate"
            raise InputError(f"{where}: {reason}; mend it{reading.or_replace}") from error
        document = document.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return document
