"""File operations on local paths and on URLs such as `gs://bucket/file`.

Local paths never import TensorFlow, which takes seconds to load. URLs go through `tf.io.gfile`. A file that others read
is replaced, never truncated: `replacing`, `write_text` and `write_bytes` write a temporary file beside it and move that
into place.
"""

from __future__ import annotations

import contextlib
import glob as local_glob
import io
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator
from stat import S_ISDIR, S_ISREG
from typing import IO, Any, NamedTuple, cast

from gpt_mesh.errors import InputError, shown

SCHEMES = ("gs", "file", "ram")  # of URLs that TensorFlow knows


class FileStat(NamedTuple):
    """Size in bytes and modification time in nanoseconds: together they tell whether a file has changed."""

    size: int
    mtime_ns: int


def is_url(path: str) -> bool:
    return "://" in path


def absolute(path: str) -> str:
    """A local path from the root of the file system, whatever the working directory becomes; a URL as it is."""
    return path if is_url(path) else os.path.abspath(path)


def _gfile() -> Any:
    import tensorflow as tf

    return tf.io.gfile


def errors() -> tuple[type[Exception], ...]:
    """What a failed file operation raises; TensorFlow's errors only once a URL has made it load."""
    if "tensorflow" not in sys.modules:
        return (OSError,)
    import tensorflow as tf

    return (OSError, tf.errors.OpError)


def reason(error: BaseException) -> str:
    """What a failed file operation says, on one line, without TensorFlow's names of operations."""
    text = str(getattr(error, "message", None) or getattr(error, "strerror", None) or error)
    line = text.partition("\n")[0] or type(error).__name__
    return re.sub(r"^\{\{.*?\}\} | \[Op:\w+\]$", "", line)


def stat(path: str) -> FileStat:
    """Raises one of errors() when there is no such file."""
    if is_url(path):
        remote = _gfile().stat(path)
        return FileStat(int(remote.length), int(remote.mtime_nsec))
    local = os.stat(path)
    return FileStat(local.st_size, local.st_mtime_ns)


def exists(path: str) -> bool:
    return bool(_gfile().exists(path)) if is_url(path) else os.path.exists(path)


def is_folder(path: str) -> bool:
    return bool(_gfile().isdir(path)) if is_url(path) else os.path.isdir(path)


def glob(pattern: str) -> list[str]:
    """Paths that match, sorted; `**` reaches into subfolders of local paths."""
    return sorted(_gfile().glob(pattern) if is_url(pattern) else local_glob.glob(pattern, recursive=True))


def is_special(path: str) -> bool:
    """Whether it is a pipe, a socket or a device, which hold no text and may block a reader."""
    if is_url(path):
        return False
    try:
        mode = os.stat(path).st_mode
    except OSError:  # reading it raises the reason
        return False
    return not (S_ISREG(mode) or S_ISDIR(mode))


def walk(folder: str) -> Iterator[str]:
    """Every file below `folder`. Symbolic links are followed, each real folder once. The folder `lost+found` of a disk
    is left out: only root can read it.

    Raises one of errors() when a folder cannot be read.
    """
    if is_url(folder):
        for parent, _, names in _gfile().walk(folder):
            yield from (f"{parent.rstrip('/')}/{name}" for name in names)
        return
    seen: set[str] = set()
    for parent, folders, names in os.walk(folder, onerror=_raise, followlinks=True):
        real = os.path.realpath(parent)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if name != "lost+found")
        yield from (os.path.join(parent, name) for name in sorted(names))


def _raise(error: OSError) -> None:
    raise error


def make_folder(path: str) -> None:
    """Make a folder for output, unless it is there. Raises InputError if it cannot be made."""
    try:
        if is_url(path):
            _gfile().makedirs(path)
        else:
            os.makedirs(path, exist_ok=True)
    except errors() as error:
        raise InputError(f"{shown(path)}: cannot be made: {reason(error)}; give another folder") from error
    if not is_url(path) and not os.access(path, os.W_OK):
        raise InputError(f"{shown(path)}: cannot be written: no permission, or a read-only disk; give another folder")


def list_folder(path: str) -> list[str]:
    """Names in a folder, sorted; none when there is no such folder."""
    if not is_folder(path):
        return []
    return sorted(name.rstrip("/") for name in (_gfile().listdir(path) if is_url(path) else os.listdir(path)))


def remove(path: str) -> None:
    if is_url(path):
        _gfile().remove(path)
    else:
        os.remove(path)


def remove_folder(path: str) -> None:
    if is_url(path):
        _gfile().rmtree(path)
    else:
        shutil.rmtree(path)


def move(source: str, target: str) -> None:
    """Rename within one file system, replacing `target`."""
    if is_url(target):
        _gfile().rename(source, target, overwrite=True)
    else:
        os.replace(source, target)


def sync(path: str) -> None:
    """Flush a local file, or the names in a local folder, to the disk. Does nothing for URLs: closing a file sends it.
    """
    if is_url(path):
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class _UrlReader(io.RawIOBase):
    """A raw stream over `tf.io.gfile`, so that io.BufferedReader makes few and large requests of it."""

    def __init__(self, path: str) -> None:
        self._file = _gfile().GFile(path, "rb")

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._file.seek(offset, whence)
        return int(self._file.tell())

    def readinto(self, buffer: Any) -> int:
        read = self._file.read(len(buffer))
        buffer[: len(read)] = read
        return len(read)

    def close(self) -> None:
        self._file.close()
        super().close()


def open_binary(path: str, buffer_bytes: int = 1 << 20) -> IO[bytes]:
    """Open for reading, `buffer_bytes` at a time."""
    if is_url(path):
        return cast("IO[bytes]", io.BufferedReader(_UrlReader(path), buffer_bytes))
    return open(path, "rb", buffering=buffer_bytes)


def create_binary(path: str) -> IO[bytes]:
    """Open for writing, replacing what is there."""
    if is_url(path):
        return cast("IO[bytes]", _gfile().GFile(path, "wb"))
    return open(path, "wb", buffering=1 << 20)


def append_binary(path: str) -> IO[bytes]:
    """Open for writing at the end; what is written in one call to a local file arrives in one piece."""
    if is_url(path):
        return cast("IO[bytes]", _gfile().GFile(path, "ab"))
    return cast("IO[bytes]", open(path, "ab", buffering=0))


@contextlib.contextmanager
def replacing(path: str, *, durable: bool = False) -> Iterator[IO[bytes]]:
    """Write a file that appears under `path` only when the block ends without an exception. Readers see the old file or
    the new one, never a part. A pipe or a device, such as /dev/stdout, is written directly.

    Args:
        path: the file. Its folder must exist.
        durable: flush the file and its folder to the disk, so that it survives a power cut.
    """
    if is_special(path):
        with open(path, "wb") as file:
            yield file
        return
    temporary = f"{path}.{os.getpid()}.tmp"
    try:
        with create_binary(temporary) as file:
            yield file
        if durable:
            sync(temporary)
        move(temporary, path)
    except BaseException:
        with contextlib.suppress(Exception):
            remove(temporary)
        raise
    if durable:
        sync(os.path.dirname(path) or ".")


def write_bytes(path: str, content: bytes, *, durable: bool = False) -> None:
    """Replace the content of a file."""
    with replacing(path, durable=durable) as file:
        file.write(content)


def write_text(path: str, text: str, *, durable: bool = False) -> None:
    """Replace the content of a file by text in UTF-8. Lone surrogates, which UTF-8 cannot encode, become
    `\\udXXX`.
    """
    write_bytes(path, text.encode("utf-8", "backslashreplace"), durable=durable)


def read_bytes(path: str) -> bytes:
    """The content of a file. Raises one of errors()."""
    with open_binary(path) as file:
        return file.read()


def remove_leftovers(folder: str, older_than: float = 3600.0) -> None:
    """Remove temporary files of `replacing` that a killed process left in a folder.

    Args:
        folder: need not exist.
        older_than: minimum age in seconds since the last write; newer files may still be in use.
    """
    for name in list_folder(folder):
        if re.search(r"\.\d+\.tmp$", name):
            path = os.path.join(folder, name)
            with contextlib.suppress(*errors()):
                if time.time() - stat(path).mtime_ns / 1e9 > older_than:
                    remove(path)


def path_problem(path: str) -> str | None:
    """Why no file can have this path: what it must be, for a message; None if it can."""
    try:
        os.fsencode(path)
    except UnicodeEncodeError:  # a lone surrogate
        return "must not hold characters that no file name can have"
    if "\0" in path:
        return "must not hold characters that no file name can have"
    if not is_url(path) and max(map(len, os.fsencode(path).split(b"/"))) > 255:
        return "must not have a name of more than 255 bytes in it"
    if is_url(path) and path.partition("://")[0] not in SCHEMES:
        return "must be a local path, or one in gs://"
    return None
