"""What a reader of a file format is."""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import IO, ClassVar, Literal

from gpt_mesh.errors import InputError

Progress = Callable[[int], object]
Errors = Literal["strict", "replace"]
Documents = Iterator["Iterable[str] | None"]
"""Documents, each as blocks of text; None is a record whose text is null. A document is to be read to its end before
the next one is asked for."""


@dataclass(frozen=True)
class Reading:
    """How the bytes of a file become documents.

    Attributes:
        text_key: field or column that holds the text; `a.b` is field b of field a, unless a field has that very name.
        errors: what happens to bytes that are not UTF-8, to NUL bytes, and to lone surrogates in JSON: "strict" raises,
            "replace" puts U+FFFD in their place.
        skip_null: leave out records whose text is null, instead of raising.
        format: name of the reader of everything that is neither compressed nor an archive, whatever its ending; None:
            the ending decides, or the content.
        records: the kind of the records, of `roles.RECORD_KINDS`: texts, or records with roles, which become JSON.
        skip_unusable: hand on records with roles that cannot be learned from as ones to be left out.
        by_flags: the user has flags for all this, which messages may recommend.
    """

    text_key: str = "text"
    errors: Errors = "strict"
    skip_null: bool = False
    format: str | None = None
    records: str = "text"
    skip_unusable: bool = False
    by_flags: bool = False

    def recommend(self, flag: str) -> str:
        """`flag` as the end of a message, for users who have flags."""
        return f", or use {flag}" if self.by_flags else ""


AS_IT_STANDS = Reading()
"""The field `text`, and nothing that is not UTF-8."""


@dataclass(frozen=True)
class Content:
    """The bytes of a file, or of a file inside an archive or a compressed file.

    Attributes:
        where: what messages call it.
        name: its file name, whose ending tells the format.
        blocks: its bytes, which can be read once.
        compressed: it came out of a compressed file.
        outer: name, without its ending, of the archive that it came out of; it tells the format where `name` does not.
        file: the seekable file that it is; None inside another file.
        progress: told the number of bytes that were read of `file`; `blocks` tells by itself.
    """

    where: str
    name: str
    blocks: Iterator[bytes]
    compressed: bool = False
    outer: str = ""
    file: IO[bytes] | None = None
    progress: Progress = lambda _: None

    def seekable(self) -> IO[bytes]:
        """`file`. Raises InputError when it lies inside another file."""
        if self.file is None:
            raise InputError(f"{self.where}: cannot be read inside another file; unpack the outer one")
        return self.file


class Evidence(enum.Enum):
    """What the first bytes of a file say about its format."""

    NO = enum.auto()
    DOUBTFUL = enum.auto()
    YES = enum.auto()


ReadContent = Callable[[Content, Reading], Documents]


class Reader(ABC):
    """A file format.

    Attributes:
        name: what `Reading.format` and `--format` call it.
        endings: of file names, in lower case.
        compressed_endings: endings that only count inside a compressed file.
        container: what it holds are files, which their own names describe; `Reading.format` is for those.
    """

    name: ClassVar[str]
    endings: ClassVar[tuple[str, ...]] = ()
    compressed_endings: ClassVar[tuple[str, ...]] = ()
    container: ClassVar[bool] = False

    def evidence(self, head: bytes, whole: bool) -> Evidence:
        """Whether a file without a telling name has this format.

        Args:
            head: the first bytes of it.
            whole: these are all of its bytes.
        """
        return Evidence.NO

    @abstractmethod
    def documents(self, content: Content, reading: Reading, read_inner: ReadContent) -> Documents:
        """The documents, one after the other, in memory that is bounded by one of them.

        Args:
            content: what to read.
            reading: how bytes become text.
            read_inner: reads a file that was found inside this one.

        Raises:
            InputError: names the file, and the place in it, that cannot be used.
        """
