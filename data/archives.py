"""Members of archives, one after the other, each as a stream of bytes: tar, zip, and lm_dataformat's `.dat`."""

from __future__ import annotations

import contextlib
import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import IO, cast

from gpt_mesh.errors import InputError
from gpt_mesh.storage import files as storage
from gpt_mesh.storage.progress import Share

Progress = Callable[[int], object]
Member = tuple[str, Iterator[bytes]]
"""Name and content of a file in an archive. The content is to be read before the next member is asked for."""

_READ_BYTES = 1 << 18
_TAR_MAGIC = slice(257, 262)
_DAT_LENGTH = 16  # digits


def is_tar(head: bytes) -> bool:
    """Whether a file that begins so is a tar archive of POSIX's kind."""
    return head[_TAR_MAGIC] == b"ustar"


class BlockReader:
    """A file object over blocks of bytes, as far as `read` goes. It can also look ahead."""

    def __init__(self, blocks: Iterable[bytes]) -> None:
        self._blocks = iter(blocks)
        self._held, self._at = b"", 0  # what was taken from the blocks, and how much of it was read

    def peek(self, size: int) -> bytes:
        """The next `size` bytes, fewer at the end, which stay to be read."""
        if len(self._held) - self._at < size:
            parts = [self._held[self._at :]]
            held = len(parts[0])
            while held < size and (block := next(self._blocks, None)) is not None:
                parts.append(block)
                held += len(block)
            self._held, self._at = b"".join(parts), 0
        return self._held[self._at : self._at + size]

    def read(self, size: int) -> bytes:
        """`size` bytes, fewer at the end."""
        found = self.peek(size)
        self._at += len(found)
        return found

    def __iter__(self) -> Iterator[bytes]:
        """What is left, in blocks."""
        rest, self._held, self._at = self._held[self._at :], b"", 0
        if rest:
            yield rest
        yield from self._blocks


class _TarInfo(tarfile.TarInfo):
    """tarfile takes a damaged header, or none at all, for the end of the archive: here only its end mark is that."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _TarInfo:
        try:
            return super().frombuf(buf, encoding, errors)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]  # a block of zeros
            raise
        except tarfile.HeaderError as error:
            raise _BadTar(str(error)) from error


class _BadTar(Exception):
    pass


def tar_members(name: str, blocks: Iterable[bytes]) -> Iterator[Member]:
    """The regular files of a tar archive, in order, in memory that does not grow with it.

    Raises InputError, naming the archive as `name`, when it is damaged or does not end as tar archives do.
    """
    with _tar_errors(name):
        stream = cast("IO[bytes]", BlockReader(blocks))
        with tarfile.open(fileobj=stream, mode="r|", tarinfo=_TarInfo, bufsize=_READ_BYTES) as tar:
            headers: list[tarfile.TarInfo] = vars(tar)["members"]
            while (member := tar.next()) is not None:
                headers.clear()  # or it would keep every one
                if member.isreg() and (content := tar.extractfile(member)) is not None:
                    yield member.name, _blocks(content, _tar_errors(name))
            rest = cast("IO[bytes]", tar.fileobj)
            while block := rest.read(_READ_BYTES):  # also for the compression's own check at its end
                if block.strip(b"\0"):
                    raise InputError(f"{name}: goes on after its end mark; if archives were joined, take them apart")


def zip_members(name: str, file: IO[bytes], progress: Progress) -> Iterator[Member]:
    """The files of a zip archive, in order. `file` must be seekable; `progress` is told the bytes of each that is read.

    Raises InputError, naming the archive as `name`, when it is damaged, cut off, encrypted, or of an unknown method.
    """
    with _zip_errors(name), zipfile.ZipFile(file) as archive:
        for info in archive.infolist():
            if not info.filename:  # since Python 3.12 zipfile reads it
                raise zipfile.BadZipFile("a file in it has no name")
            if not info.is_dir():
                with archive.open(info) as content:
                    told = _telling(progress, info.compress_size, info.file_size)
                    yield info.filename, _blocks(content, _zip_errors(name), told)


def dat_members(name: str, blocks: Iterable[bytes]) -> Iterator[Member]:
    """Documents of lm_dataformat's `.dat`: 16 digits that say how many bytes follow, then those, and so on."""
    reader = BlockReader(blocks)
    number = 0
    while head := reader.read(_DAT_LENGTH):
        number += 1
        if not (len(head) == _DAT_LENGTH and head.isdigit()):
            raise InputError(f"{name}: document {number} does not begin with 16 digits: is no .dat file, or damaged")
        text = reader.read(int(head))
        if len(text) < int(head):
            raise InputError(f"{name}: is cut off in document {number}; get the file again")
        yield f"document {number}", iter([text])


def _blocks(
    content: IO[bytes], errors: AbstractContextManager[None], progress: Progress | None = None
) -> Iterator[bytes]:
    with errors:
        while block := content.read(_READ_BYTES):
            if progress is not None:
                progress(len(block))
            yield block


def _telling(progress: Progress, compressed: int, size: int) -> Progress:
    """Told of parts of a file, tells `progress` of what they are compressed."""
    share = Share(compressed, size)
    return lambda part: progress(share.of(part))


@contextlib.contextmanager
def _tar_errors(name: str) -> Iterator[None]:
    try:
        yield
    except (tarfile.TarError, _BadTar) as error:
        reason = storage.reason(error)
        raise InputError(f"{name}: is no tar archive, or damaged or cut off ({reason}); get the file again") from error


@contextlib.contextmanager
def _zip_errors(name: str) -> Iterator[None]:
    try:
        yield
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, ValueError, IndexError) as error:
        if isinstance(error, InputError):
            raise
        reason = storage.reason(error)
        raise InputError(f"{name}: is no zip archive, or damaged or cut off ({reason}); get the file again") from error
    except (NotImplementedError, RuntimeError) as error:  # an unknown method; a password
        raise InputError(f"{name}: cannot be unpacked: {storage.reason(error)}; unpack it yourself") from error
