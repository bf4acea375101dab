"""The records of a dataset, documents or chunks, and the numbered files that they go to."""

from __future__ import annotations

import contextlib
import os
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from typing import IO, NamedTuple, Protocol

import numpy as np

from gpt_mesh.data.account import Account
from gpt_mesh.data.encoding import Document, Ids
from gpt_mesh.data.manifest import Shard, SplitState
from gpt_mesh.data.reading import DocumentPlace, Position
from gpt_mesh.data.tfrecords import framed
from gpt_mesh.errors import InputError
from gpt_mesh.storage import files as storage

_LARGEST_RECORD = (1 << 31) - 1  # bytes: of a protobuf, which a record is


class Record(NamedTuple):
    """documents: how many begin in it. bytes: of its text in UTF-8, None when that is not known. first, last: where in
    the corpus its tokens begin, and end."""

    ids: Ids
    documents: int
    bytes: int | None
    first: Position
    last: Position


class Packer(Protocol):
    """Makes records of documents. Each method counts in `account` what it drops.

    record_extent: how much makes a record, in the unit of extent().
    """

    @property
    def record_extent(self) -> int: ...

    def extent(self, document: Document) -> int:
        """How much a document adds to the records."""

    def add(self, document: Document, account: Account) -> Iterator[Record]:
        """The records that are complete with this document, which comes next."""

    def resume(self, document: Document, token: int) -> Iterator[Record]:
        """Go on in the midst of a document, of which `token` tokens are in records already. (The first to be added.)"""

    def finish(self, account: Account) -> None:
        """There are no more documents."""


class Documents:
    """A record for each document, or for each of its sequences if there are several."""

    record_extent = 1

    def extent(self, document: Document) -> int:
        return len(document.lengths) or 1

    def add(self, document: Document, account: Account) -> Iterator[Record]:
        return self._records(document, 0)

    def resume(self, document: Document, token: int) -> Iterator[Record]:
        return self._records(document, token)

    def _records(self, document: Document, written: int) -> Iterator[Record]:
        """The records of a document's sequences that begin at token `written` or after it."""
        place, begin = document.origin.place, 0
        for number, length in enumerate(document.lengths or (len(document.ids),)):
            ids, end = document.ids[begin : begin + length], begin + length
            if begin >= written:
                yield Record(ids, int(number == 0), document.bytes, Position(place, begin), Position(place, end))
            begin = end

    def finish(self, account: Account) -> None:
        pass


class Chunks:
    """Records of exactly `size` tokens of the documents, `separator` after each. What is left at the end is dropped.

    byte_lengths: UTF-8 bytes of each token; None when they are not known.
    """

    def __init__(self, size: int, separator: Sequence[int], byte_lengths: np.ndarray | None = None) -> None:
        self._size = self.record_extent = size
        self._separator = np.array(separator, np.int32)
        self._byte_lengths = byte_lengths
        self._parts: list[Ids] = []  # tokens that are in no record yet
        self._held = 0  # how many
        # Documents that those tokens are of, and where each begins, counted from the first of those tokens.
        self._starts: list[int] = []
        self._places: list[DocumentPlace] = []

    def extent(self, document: Document) -> int:
        return len(document.ids) + len(self._separator)

    def add(self, document: Document, account: Account) -> Iterator[Record]:
        account.separators += len(self._separator)
        return self._take(document, 0)

    def resume(self, document: Document, token: int) -> Iterator[Record]:
        return self._take(document, token)

    def _take(self, document: Document, skipped: int) -> Iterator[Record]:
        self._starts.append(self._held - skipped)
        self._places.append(document.origin.place)
        tokens = np.concatenate([document.ids, self._separator])[skipped:]
        self._parts.append(tokens)
        self._held += len(tokens)
        if self._held < self._size:
            return
        joined = np.concatenate(self._parts)
        whole = self._held - self._held % self._size
        for begin in range(0, whole, self._size):
            yield self._record(joined[begin : begin + self._size], begin)
        kept = bisect_right(self._starts, whole) - 1  # the last document that begins there or before
        self._starts = [start - whole for start in self._starts[kept:]]
        self._places = self._places[kept:]
        self._parts, self._held = [joined[whole:].copy()], self._held - whole  # a view would keep all of it in memory

    def _record(self, ids: Ids, begin: int) -> Record:
        end = begin + self._size
        documents = bisect_left(self._starts, end) - bisect_left(self._starts, begin)
        size = None if self._byte_lengths is None else int(self._byte_lengths[ids].sum())
        return Record(ids, documents, size, self._position(bisect_right, begin), self._position(bisect_left, end))

    def _position(self, bisect: Callable[[list[int], int], int], token: int) -> Position:
        """Where in the corpus a token is. bisect: which document it belongs to when one begins there."""
        number = bisect(self._starts, token) - 1
        return Position(self._places[number], token - self._starts[number])

    def finish(self, account: Account) -> None:
        if self._held:
            begun = len(self._starts) - bisect_left(self._starts, 0)
            account.drop(f"the end, less than --chunk_size {self._size}", self._held, begun)


def admit(document: Document, minimum_size: int, account: Account) -> bool:
    """Whether a document is to be written. It is counted as read, and, if it is not, as dropped."""
    length = len(document.ids)
    account.read(length + document.cut, document.bytes)
    if document.cut:
        account.drop("cut off after an answer (--maximum_size)", document.cut, 0)
    if document.origin.null:
        account.drop("null texts (--skip_null)", length, 1)
    elif document.origin.duplicate:
        account.drop("duplicates", length, 1)
    elif document.dropped:
        account.drop(document.dropped, length, 1)
    elif length == 0:
        account.drop("empty", length, 1)
    elif length < minimum_size:
        account.drop(f"shorter than --minimum_size {minimum_size}", length, 1)
    else:
        return True
    return False


class Split:
    """The documents that are trained on, or those that are held out, on their way to files called
    `prefix_<index>_<records>.tfrecords` in `folder`.

    state: what is written already; it grows with each file that is complete. on_shard is then called.
    """

    def __init__(
        self,
        folder: str,
        prefix: str,
        packer: Packer,
        state: SplitState,
        *,
        minimum_size: int,
        records_per_file: int,
        on_shard: Callable[[], object] = lambda: None,
    ) -> None:
        self.account = Account.from_json(state.account.to_json())
        self._folder, self._prefix = folder, prefix
        self._packer, self._state, self._on_shard = packer, state, on_shard
        self._minimum_size, self._records_per_file = minimum_size, records_per_file
        self._resumed = state.position
        self._open: OpenShard | None = None

    def add(self, document: Document) -> None:
        """Write what is complete with this document, the next one in reading order. Raises InputError when that
        cannot be."""
        if self._resumed is not None and document.origin.place == self._resumed.place:
            records = self._packer.resume(document, self._resumed.token)
        else:
            if not admit(document, self._minimum_size, self.account):
                return
            records = self._packer.add(document, self.account)
        for record in records:
            self._write(record)

    def finish(self) -> None:
        """There are no more documents: complete the last file, and check that the account adds up.

        on_shard is not called for that file: the account has counted documents after it, so a run that is resumed
        must write it anew, unless all is complete.
        """
        self._packer.finish(self.account)
        if self._resumed is not None and not self.account.adds_up:
            raise InputError(
                f"{self._folder}: the account of {self._prefix}_* in its manifest does not add up with what was read "
                "since; it was changed: encode all of it again with --overwrite"
            )
        self.account.check()
        if self._open is not None:
            self._complete(self._open)
        self._state.account = self.account

    def abandon(self) -> None:
        """Remove the file that is being written."""
        if self._open is not None:
            self._open.remove()
            self._open = None

    def _write(self, record: Record) -> None:
        if self._open is None:
            self._open = OpenShard(f"{self._folder}/.{self._prefix}_{len(self._state.shards)}.partial")
        self._open.add(record)
        self.account.written(len(record.ids), record.documents)
        if self._open.records == self._records_per_file:
            self._complete(self._open)
            self._on_shard()

    def _complete(self, shard: OpenShard) -> None:
        self._state.shards.append(shard.close(self._folder, self._prefix, len(self._state.shards)))
        # A copy: the account goes on while the manifest says where it stood when this file was complete.
        self._state.account = Account.from_json(self.account.to_json())
        self._open = None


class OpenShard:
    """A file that is being written, under a temporary name."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._file: IO[bytes] = storage.create_binary(path)
        self._first: Position | None = None
        self.records = self._documents = self._tokens = self._size = 0
        self._bytes: int | None = 0

    def add(self, record: Record) -> None:
        content = framed(record.ids)
        if len(content) > _LARGEST_RECORD:
            raise InputError(
                f"a document of {len(record.ids):,} tokens is too long for one record (2 GiB); use --mode chunks"
            )
        self._file.write(content)
        self._first = self._first or record.first
        self._last = record.last
        self.records += 1
        self._documents += record.documents
        self._tokens += len(record.ids)
        self._size += len(content)
        self._bytes = None if self._bytes is None or record.bytes is None else self._bytes + record.bytes

    def close(self, folder: str, prefix: str, index: int) -> Shard:
        """The file appears in `folder`, which it is in already, under its name."""
        name = f"{prefix}_{index}_{self.records}.tfrecords"
        path = f"{folder}/{name}"
        self._file.flush()
        if not storage.is_url(path):
            os.fsync(self._file.fileno())  # the manifest, which names it, must not reach the disk before it
        self._file.close()
        storage.move(self._path, path)
        assert self._first is not None, "no record"
        return Shard(
            name, self.records, self._documents, self._tokens, self._bytes, self._size, self._first, self._last
        )

    def remove(self) -> None:
        with contextlib.suppress(*storage.errors()):
            self._file.close()
        with contextlib.suppress(*storage.errors()):
            storage.remove(self._path)
