"""Tar archives."""

from __future__ import annotations

import contextlib
import tarfile
from collections.abc import Iterable, Iterator
from typing import IO, ClassVar, cast

from gpt_mesh.data.junk import LeftOut, is_junk
from gpt_mesh.data.readers.blocks import BlockReader, file_blocks
from gpt_mesh.data.readers.reader import Content, Documents, Evidence, ReadContent, Reader, Reading
from gpt_mesh.errors import InputError
from gpt_mesh.storage import files as storage

_READ_BYTES = 1 << 18
_MAGIC = slice(257, 262)


class TarReader(Reader):
    """The documents of each file in it, in order."""

    name: ClassVar[str] = "tar"
    endings: ClassVar[tuple[str, ...]] = (".tar",)
    container: ClassVar[bool] = True

    def evidence(self, head: bytes, whole: bool) -> Evidence:
        return Evidence.YES if head[_MAGIC] == b"ustar" else Evidence.NO  # POSIX's kind

    def documents(self, content: Content, reading: Reading, read_inner: ReadContent) -> Documents:
        outer = content.name[: -len(".tar")]
        with LeftOut(content.where) as left_out:
            for member, blocks in tar_members(content.where, content.blocks):
                if is_junk(member):
                    left_out.add(member)
                    continue
                yield from read_inner(Content(f"{content.where}: {member}", member, blocks, outer=outer), reading)


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


def tar_members(where: str, blocks: Iterable[bytes]) -> Iterator[tuple[str, Iterator[bytes]]]:
    """Name and content of the regular files of a tar archive, in order, in memory that does not grow with it.

    A content is to be read before the next member is asked for.

    Raises:
        InputError: the archive, which messages call `where`, is damaged, or does not end as tar archives do.
    """
    with _errors(where):
        stream = cast("IO[bytes]", BlockReader(blocks))
        with tarfile.open(fileobj=stream, mode="r|", tarinfo=_TarInfo, bufsize=_READ_BYTES) as tar:
            headers: list[tarfile.TarInfo] = vars(tar)["members"]
            while (member := tar.next()) is not None:
                headers.clear()  # or it would keep every one
                if member.isreg() and (content := tar.extractfile(member)) is not None:
                    yield member.name, _content(where, content)
            rest = cast("IO[bytes]", tar.fileobj)
            while block := rest.read(_READ_BYTES):  # also for the compression's own check at its end
                if block.strip(b"\0"):
                    raise InputError(f"{where}: goes on after its end mark; if archives were joined, take them apart")


def _content(where: str, file: IO[bytes]) -> Iterator[bytes]:
    with _errors(where):
        yield from file_blocks(file, _READ_BYTES)


@contextlib.contextmanager
def _errors(where: str) -> Iterator[None]:
    try:
        yield
    except (tarfile.TarError, _BadTar, RecursionError) as error:
        # tarfile calls itself for each header that only describes the next one.
        headers = "thousands of headers in a row without a file"
        reason = headers if isinstance(error, RecursionError) else storage.reason(error)
        raise InputError(f"{where}: is no tar archive, or damaged or cut off ({reason}); get the file again") from error
