"""Where text comes from: what the flags of the data scripts name, as a list of sources."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from gpt_mesh.data.documents import in_pieces, read_documents, read_pieces
from gpt_mesh.data.files import FILE_TYPES, find_files
from gpt_mesh.data.readers.reader import AS_IT_STANDS, Progress, Reading
from gpt_mesh.data.readers.roles import RECORD_KINDS
from gpt_mesh.data.readers.table import FORMATS
from gpt_mesh.data.readers.tfds import check_name, tfds_documents, tfds_size
from gpt_mesh.errors import InputError, shown
from gpt_mesh.storage import files as storage


@dataclass(frozen=True)
class Source:
    """The documents of one file, in order. Small, and can be pickled.

    Attributes:
        path: of the file.
        reading: how its bytes become text.
    """

    path: str
    reading: Reading = AS_IT_STANDS

    @property
    def size(self) -> int:
        """Bytes: what the numbers passed to `progress` below add up to."""
        return self._stat().size

    @property
    def mtime_ns(self) -> int | None:
        """When it was last changed, in nanoseconds; None if that is not known."""
        return self._stat().mtime_ns

    def _stat(self) -> storage.FileStat:
        try:
            return storage.stat(self.path)
        except storage.errors() as error:  # such as a symbolic link to nowhere
            raise InputError(
                f"{shown(self.path)}: cannot be read: {storage.reason(error)}; make it readable, or take it away"
            ) from error

    def documents(self, progress: Progress | None = None) -> Iterator[str]:
        """Each document whole; `progress` is called with the number of bytes read since its last call."""
        return read_documents(self.path, self.reading, progress)

    def pieces(self, size: int, progress: Progress | None = None) -> Iterator[tuple[str | None, bool]]:
        """Documents in pieces of about `size` characters: (text, whether the document ends with it); (None, True) for
        a record whose text is null and which is skipped."""
        return read_pieces(self.path, size, self.reading, progress)


def file_sources(paths: Iterable[str], reading: Reading = AS_IT_STANDS) -> list[Source]:
    """A source for each file."""
    return [Source(path, reading) for path in paths]


@dataclass(frozen=True)
class TfdsSource(Source):
    """A split of a dataset of tensorflow-datasets. path: NAME[:CONFIG]/SPLIT. folder: where such datasets lie."""

    folder: str | None = None

    @property
    def size(self) -> int:
        return tfds_size(self.path, self.folder)

    @property
    def mtime_ns(self) -> int | None:
        return None

    def documents(self, progress: Progress | None = None) -> Iterator[str]:
        return tfds_documents(self.path, self.folder, self.reading, progress or (lambda _: None))

    def pieces(self, size: int, progress: Progress | None = None) -> Iterator[tuple[str | None, bool]]:
        return in_pieces(([text] for text in self.documents(progress)), size, f"--tfds {self.path}")


def add_source_flags(parser: argparse.ArgumentParser, folder_flag: str) -> None:
    """Add the flags that name text to a script's parser; `folder_flag` (such as --input_dir) names a folder.

    `open_sources` takes their values.
    """
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument(folder_flag, help="folder of text (with its subfolders), a file, or a glob")
    where.add_argument(
        "--tfds",
        metavar="NAME:CONFIG/SPLIT",
        help="text of tensorflow-datasets instead, such as wikipedia:20220620.en/train",
    )
    add = parser.add_argument
    add("--tfds_dir", metavar="DIR", help="folder of those datasets (default: ~/tensorflow_datasets)")
    add(
        "--file_type",
        nargs="+",
        metavar="TYPE",
        help=f"endings of the files, such as txt, jsonl.zst or py (default: {' '.join(FILE_TYPES)}); the ending also "
        "says how a file is read: README.md has the list",
    )
    add(
        "--text_key",
        default="text",
        metavar="KEY",
        help="field, column or feature that holds the text; a.b is field b of field a (default: %(default)s)",
    )
    add(
        "--format",
        choices=sorted(FORMATS),
        help="what the files hold, whatever their endings say, once they are decompressed and taken out of archives "
        "(default: the endings tell, or the content)",
    )
    add("--skip_null", action="store_true", help="leave out records whose text is null (default: stop at the first)")
    add(
        "--errors",
        choices=("strict", "replace"),
        default="strict",
        help="bytes that are not UTF-8, and NUL bytes: stop, or put U+FFFD for them (default: %(default)s)",
    )


def add_records_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags for records with roles to a script's parser; `open_sources` takes their values."""
    parser.add_argument(
        "--records",
        choices=RECORD_KINDS,
        default="text",
        help="what the records of JSON, Parquet and tensorflow-datasets are: a text; messages with roles; a prompt and "
        "a completion; an instruction and its output; or preferences: chosen and rejected, or a label (kto) "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--skip_unusable",
        action="store_true",
        help="leave out records with roles that cannot be learned from: without an answer, with an empty one, or with "
        "equal halves (default: stop at the first)",
    )


def _records(flags: argparse.Namespace) -> tuple[str, bool]:
    """The values of those flags, where a script has them."""
    return getattr(flags, "records", "text"), getattr(flags, "skip_unusable", False)


def open_sources(folder: str | None, flags: argparse.Namespace) -> list[Source]:
    """The sources that the flags of add_source_flags() name; `folder` is the value of its `folder_flag`.

    Raises InputError when there are none.
    """
    reading = Reading(
        flags.text_key, flags.errors, flags.skip_null, flags.format, *_records(flags), by_flags=True
    )
    if folder is not None:
        if flags.tfds_dir is not None:
            raise InputError("--tfds_dir: goes with --tfds, which is not given")
        return file_sources(find_files(folder, flags.file_type), reading)
    for name, value in (("file_type", flags.file_type), ("format", flags.format)):
        if value:
            raise InputError(f"--{name}: goes with a folder; --tfds has none")
    check_name(flags.tfds)
    return [TfdsSource(flags.tfds, reading, flags.tfds_dir)]
