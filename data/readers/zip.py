"""Zip archives."""

from __future__ import annotations

import contextlib
import lzma
import zipfile
import zlib
from collections.abc import Iterator
from typing import IO, ClassVar

from gpt_mesh.data.junk import LeftOut, is_junk
from gpt_mesh.data.readers.blocks import file_blocks
from gpt_mesh.data.readers.reader import Content, Documents, Progress, ReadContent, Reader, Reading
from gpt_mesh.errors import InputError
from gpt_mesh.storage import files as storage
from gpt_mesh.storage.progress import Share

_READ_BYTES = 1 << 18


class ZipReader(Reader):
    """The documents of each file in it, in order. It must be a file that can be sought in."""

    name: ClassVar[str] = "zip"
    endings: ClassVar[tuple[str, ...]] = (".zip",)
    container: ClassVar[bool] = True

    def documents(self, content: Content, reading: Reading, read_inner: ReadContent) -> Documents:
        with LeftOut(content.where) as left_out:
            for member, blocks in zip_members(content.where, content.seekable(), content.progress):
                if is_junk(member):
                    left_out.add(member)
                    continue
                yield from read_inner(Content(f"{content.where}: {member}", member, blocks), reading)


def zip_members(where: str, file: IO[bytes], progress: Progress) -> Iterator[tuple[str, Iterator[bytes]]]:
    """Name and content of the files of a zip archive, in order.

    A content is to be read before the next member is asked for; it is opened when it is read.

    Args:
        where: what messages call the archive.
        file: the archive, seekable.
        progress: told the compressed bytes of each member, as they are read.

    Raises:
        InputError: the archive is damaged, cut off, encrypted, or of an unknown method.
    """
    with _errors(where), zipfile.ZipFile(file) as archive:
        for info in archive.infolist():
            if not info.filename:  # since Python 3.12 zipfile reads it
                raise zipfile.BadZipFile("a file in it has no name")
            if not info.is_dir():
                yield info.filename, _content(where, archive, info, progress)


def _content(where: str, archive: zipfile.ZipFile, info: zipfile.ZipInfo, progress: Progress) -> Iterator[bytes]:
    share = Share(info.compress_size, info.file_size)
    with _errors(where), archive.open(info) as content:
        yield from file_blocks(content, _READ_BYTES, lambda size: progress(share.of(size)))


@contextlib.contextmanager
def _errors(where: str) -> Iterator[None]:
    try:
        yield
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, ValueError, IndexError) as error:
        if isinstance(error, InputError):
            raise
        reason = storage.reason(error)
        raise InputError(f"{where}: is no zip archive, or damaged or cut off ({reason}); get the file again") from error
    except (NotImplementedError, RuntimeError) as error:  # an unknown method; a password
        raise InputError(f"{where}: cannot be unpacked: {storage.reason(error)}; unpack it yourself") from error
