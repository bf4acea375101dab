"""Bytes that come in blocks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import IO

from gpt_mesh.data.readers.reader import Progress

MARK = b"\xef\xbb\xbf"
"""UTF-8's byte-order mark, which Windows programs put before text."""


class BlockReader:
    """A file object over blocks of bytes, as far as `read` goes. It can also look ahead."""

    def __init__(self, blocks: Iterable[bytes]) -> None:
        self._blocks = iter(blocks)
        self._held, self._at = b"", 0  # the bytes that were taken from the blocks, and how many of them were read

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
        """The rest, in blocks."""
        rest, self._held, self._at = self._held[self._at :], b"", 0
        if rest:
            yield rest
        yield from self._blocks


def file_blocks(file: IO[bytes], size: int, progress: Progress = lambda _: None) -> Iterator[bytes]:
    """The bytes of a file in blocks of `size`."""
    while block := file.read(size):
        progress(len(block))
        yield block


def without_mark(head: bytes) -> bytes:
    """The first bytes of a file after its byte-order mark and white space."""
    return head.removeprefix(MARK).lstrip()
