"""Where text comes from: what the flags of the data scripts name, as a list of sources."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from data import storage
from data.documents import (
    AS_IT_STANDS,
    FILE_TYPES,
    Progress,
    Reading,
    find_files,
    read_documents,
    read_pieces,
)


@dataclass(frozen=True)
class Source:
    """Some documents in a fixed order: those of one file. Small, and can be pickled.

    path: of the file. reading: how its bytes become text.
    """

    path: str
    reading: Reading = AS_IT_STANDS

    @property
    def size(self) -> int:
        """Bytes: what the numbers passed to `progress` below add up to."""
        return storage.stat(self.path).size

    def documents(self, progress: Progress | None = None) -> Iterator[str]:
        """Each document whole; `progress` is called with the number of bytes read since its last call."""
        return read_documents(self.path, self.reading, progress)

    def pieces(self, size: int, progress: Progress | None = None) -> Iterator[tuple[str, bool]]:
        """Documents in pieces of about `size` characters: (text, whether the document ends with it)."""
        return read_pieces(self.path, size, self.reading, progress)


def file_sources(paths: Iterable[str], reading: Reading = AS_IT_STANDS) -> list[Source]:
    """A source for each file."""
    return [Source(path, reading) for path in paths]


def add_source_flags(parser: argparse.ArgumentParser, folder_flag: str) -> None:
    """Add the flags that name text to a script's parser; `folder_flag` (such as --input_dir) is its word for a folder.

    open_sources() takes what they hold.
    """
    add = parser.add_argument
    add(folder_flag, required=True, help="folder of text (with its subfolders), a file, or a glob")
    add(
        "--file_type",
        nargs="+",
        metavar="TYPE",
        help=f"endings of the files, such as txt, jsonl.zst or py (default: {' '.join(FILE_TYPES)})",
    )
    add("--text_key", default="text", metavar="KEY", help="field of JSON that holds the text (default: %(default)s)")
    add(
        "--errors",
        choices=("strict", "replace"),
        default="strict",
        help="bytes that are not UTF-8: stop, or put U+FFFD for them (default: %(default)s)",
    )


def open_sources(folder: str, flags: argparse.Namespace) -> list[Source]:
    """The sources that the flags of add_source_flags() name; `folder` is the value of its `folder_flag`.

    Raises InputError when there are none.
    """
    reading = Reading(text_key=flags.text_key, errors=flags.errors, by_flags=True)
    return file_sources(find_files(folder, flags.file_type), reading)
