"""The data files of one dataset, as one numbered sequence of records."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gpt_mesh.config import DatasetConfig
from gpt_mesh.data.manifest import manifests_of
from gpt_mesh.data.megatron import data_file, index_path, is_pair, load_pair
from gpt_mesh.data.tfrecords import RecordError, RecordIndex, load_index, parse_records, read_records
from gpt_mesh.errors import InputError, shown
from gpt_mesh.storage import files as storage
from gpt_mesh.storage.progress import BYTES, Progress

Ints = NDArray[np.int64]

_REMOTE_READERS = 32
_ENDS_READ = 256


@dataclass(frozen=True)
class Corpus:
    """Records 0 … len-1: those of paths[0] in file order, then those of paths[1], and so on.

    Of each record the index knows where it lies and how many tokens it holds; the tokens themselves stay on disk.
    Large sets have hundreds of millions of records, so the index is kept at 16 bytes each: sizes and lengths fit int32
    because a protobuf, which a record is, cannot exceed 2 GiB.
    """

    paths: tuple[str, ...]
    first_records: Ints  # [files + 1]: the number of each file's first record; the last entry is len(self)
    offsets: Ints  # [records]: where the payload begins in its file, bytes
    sizes: NDArray[np.int32]  # [records]: bytes of payload; 0 in files of ids alone, where `lengths` tells
    lengths: NDArray[np.int32]  # [records]: tokens
    id_ranges: tuple[tuple[int, int], ...]  # least and greatest token id of each file
    dtypes: tuple[str, ...]  # of each file: type of its ids where it holds nothing else, "" for a TFRecord file

    @staticmethod
    def from_indexes(indexes: Sequence[RecordIndex]) -> Corpus:
        return Corpus(
            paths=tuple(index.path for index in indexes),
            first_records=np.cumsum([0] + [len(index.tokens) for index in indexes]).astype(np.int64),
            offsets=_concatenate([index.offsets for index in indexes], np.int64),
            sizes=_concatenate([index.sizes * (not index.dtype) for index in indexes], np.int32),
            lengths=_concatenate([index.tokens for index in indexes], np.int32),
            id_ranges=tuple((index.min_id, index.max_id) for index in indexes),
            dtypes=tuple(index.dtype for index in indexes),
        )

    def __len__(self) -> int:
        return int(self.first_records[-1])

    @property
    def n_tokens(self) -> int:
        return int(self.lengths.sum(dtype=np.int64))

    def sizes_of_files(self) -> dict[str, tuple[int, int]]:
        """Of each file its records and tokens."""
        records = np.diff(self.first_records)
        tokens = np.diff(np.concatenate([[0], np.cumsum(self.lengths, dtype=np.int64)])[self.first_records])
        return dict(zip(self.paths, zip(records.tolist(), tokens.tolist(), strict=True), strict=True))

    def where(self, record: int) -> str:
        """`FILE, record N`, as messages name a record; N counts from 0 within the file."""
        file = int(np.searchsorted(self.first_records, record, side="right")) - 1
        return f"{self.paths[file]}, record {record - int(self.first_records[file])}"

    def of_ids(self, records: Ints) -> NDArray[np.bool_]:
        """Which of these records are nothing but ids, to be read with read_ids() and not with read()."""
        if not any(self.dtypes):
            return np.zeros(len(records), np.bool_)
        return np.array([dtype != "" for dtype in self.dtypes])[self._files(records)]

    def read(self, records: Ints) -> list[bytes]:
        """The serialized records of these numbers, which must increase (so that each file is opened once)."""
        groups = _by_file(self._files(records))
        return _read_all(
            [(self.paths[file], self.offsets[records[part]], self.sizes[records[part]]) for file, part in groups]
        )

    def read_ids(self, records: Ints, starts: Ints, lengths: Ints) -> list[NDArray[np.integer]]:
        """Of each of these records (in any order) `lengths` ids from number `starts` on. Only those are read."""
        files = self._files(records)
        widths = np.array([np.dtype(dtype or np.int64).itemsize for dtype in self.dtypes])[files]
        begins, sizes = self.offsets[records] + starts * widths, lengths * widths
        groups = _by_file(files)
        contents = iter(_read_all([(self.paths[file], begins[part], sizes[part]) for file, part in groups]))
        found: list[NDArray[np.integer]] = [np.empty(0, np.int64)] * len(records)
        for file, part in groups:
            for place in part.tolist():
                found[place] = np.frombuffer(next(contents), self.dtypes[file])
        return found

    def read_tokens(self, records: Ints) -> list[NDArray[np.integer]]:
        """All ids of each of these records, whose numbers must increase."""
        of_ids = self.of_ids(records)
        values, splits = parse_records(self.read(records[~of_ids]))
        parsed = iter(np.split(values, splits[1:-1]))
        whole = records[of_ids]
        raw = iter(self.read_ids(whole, np.zeros_like(whole), self.lengths[whole].astype(np.int64)))
        return [next(raw if alone else parsed) for alone in of_ids]

    def without_final(self, token: int) -> Corpus:
        """Documents with a trailing `token` removed, if every document of an ids-only file ends with it, as after
        Megatron's --append-eod: joining documents puts one between them. Up to _ENDS_READ documents of a file are read.
        """
        lengths = self.lengths.copy()
        for file in (number for number, dtype in enumerate(self.dtypes) if dtype):
            part = slice(*self.first_records[file : file + 2].tolist())
            filled = part.start + np.flatnonzero(lengths[part])
            if not len(filled):
                continue
            some = filled[np.unique(np.linspace(0, len(filled) - 1, _ENDS_READ).astype(np.int64))]
            ends = self.read_ids(some, lengths[some].astype(np.int64) - 1, np.ones_like(some))
            if all(int(end[0]) == token for end in ends):
                lengths[filled] -= 1
        return dataclasses.replace(self, lengths=lengths)

    def without_empty(self) -> Corpus:
        """Documents without the empty ones of ids-only files, which Megatron's preprocessing writes for empty texts."""
        kept = (self.lengths > 0) | ~self.of_ids(np.arange(len(self)))
        return dataclasses.replace(
            self,
            first_records=np.concatenate([[0], np.cumsum(kept)])[self.first_records],
            offsets=self.offsets[kept],
            sizes=self.sizes[kept],
            lengths=self.lengths[kept],
        )

    def _files(self, records: Ints) -> Ints:
        """The number of each record's file."""
        return np.searchsorted(self.first_records, records, side="right") - 1


def _by_file(files: Ints) -> list[tuple[int, Ints]]:
    """(number of a file, the places in `files` where it stands), for each that does."""
    order = np.argsort(files, kind="stable")
    numbers, begins = np.unique(files[order], return_index=True)
    return list(zip(numbers.tolist(), np.split(order, begins[1:]), strict=True)) if len(files) else []


def _read_all(requests: Sequence[tuple[str, Ints, NDArray]]) -> list[bytes]:
    """Bytes of files, for each path at these offsets, of these sizes."""
    if not any(storage.is_url(path) for path, _, _ in requests):
        return [record for request in requests for record in read_records(*request)]
    # A read from a bucket waits tens of milliseconds on the network; many at once hide that.
    single = [
        (path, offsets[i : i + 1], sizes[i : i + 1]) for path, offsets, sizes in requests for i in range(len(offsets))
    ]
    with ThreadPoolExecutor(_REMOTE_READERS) as pool:
        return [record for found in pool.map(lambda request: read_records(*request), single) for record in found]


def _concatenate(arrays: list[Ints], dtype: type) -> NDArray:
    return np.concatenate([array.astype(dtype) for array in arrays]) if arrays else np.empty(0, dtype)


@dataclass(frozen=True)
class Pieces:
    """Stretches of records, and where each goes in a batch: one entry per piece in each of five int64 arrays."""

    records: Ints  # which record of the corpus
    starts: Ints  # its first token that is taken
    rows: Ints  # the row of the batch it goes to
    columns: Ints  # and the column of that first token
    lengths: Ints  # tokens taken

    def moved_to(self, rows: Ints) -> Pieces:
        """The same pieces, those of row r now going to rows[r]."""
        return dataclasses.replace(self, rows=rows[self.rows])

    def chosen(self, which: NDArray[np.bool_]) -> Pieces:
        """Some of them."""
        return Pieces(
            self.records[which], self.starts[which], self.rows[which], self.columns[which], self.lengths[which]
        )


def copy_pieces(parts: Sequence[tuple[Corpus, Pieces]], batch: NDArray[np.int32]) -> None:
    """Read every record that the pieces need, once, and copy the pieces into `batch` [rows, columns]."""
    serialized: list[bytes] = []
    wanted: list[tuple[Corpus, Ints]] = []
    placed: list[tuple[Pieces, Ints]] = []
    for corpus, pieces in parts:
        if any(corpus.dtypes):
            of_ids = corpus.of_ids(pieces.records)
            _copy_ids(corpus, pieces.chosen(of_ids), batch)
            pieces = pieces.chosen(~of_ids)
        records, slots = np.unique(pieces.records, return_inverse=True)
        placed.append((pieces, slots + len(serialized)))
        wanted.append((corpus, records))
        serialized += corpus.read(records)
    if not serialized:
        return
    try:
        values, splits = parse_records(serialized)
    except RecordError as error:
        raise InputError(f"{_places(wanted)[error.position]} {error.reason}") from None
    _check_lengths(wanted, np.diff(splits))
    for pieces, slots in placed:
        begins = splits[slots] + pieces.starts
        for row, column, begin, length in zip(
            pieces.rows.tolist(), pieces.columns.tolist(), begins.tolist(), pieces.lengths.tolist(), strict=True
        ):
            batch[row, column : column + length] = values[begin : begin + length]


def _copy_ids(corpus: Corpus, pieces: Pieces, batch: NDArray[np.int32]) -> None:
    """copy_pieces() for files that hold nothing but ids, of which no more is read than the pieces."""
    found = corpus.read_ids(pieces.records, pieces.starts, pieces.lengths)
    for ids, row, column in zip(found, pieces.rows.tolist(), pieces.columns.tolist(), strict=True):
        batch[row, column : column + len(ids)] = ids


def _check_lengths(wanted: list[tuple[Corpus, Ints]], found: Ints) -> None:
    """A file that is rewritten during a run would otherwise give silently shifted text."""
    expected = np.concatenate([corpus.lengths[records] for corpus, records in wanted])
    if (differing := np.flatnonzero(expected != found)).size:
        first = int(differing[0])
        raise InputError(
            f"{_places(wanted)[first]}: holds {found[first]} tokens where {expected[first]} were found before; the "
            "file changed while it was in use: start again"
        )


def _places(wanted: list[tuple[Corpus, Ints]]) -> list[str]:
    return [corpus.where(int(record)) for corpus, records in wanted for record in records]


def data_files(dataset: DatasetConfig, key: str) -> list[str]:
    """The data files under `key` ("path" or "eval_path") of a dataset config, in natural order.

    Natural order, part_2 before part_10, is the order in which numbered files were written. Raises InputError when a
    glob matches nothing, or create_tfrecords.py was stopped before it had written all of the files.
    """
    paths = [path for path in dataset.files(key) if not path.endswith(".tmp")]  # .tmp: still being written
    if not paths:
        raise InputError(f"{dataset.source}: {key}: only unfinished .tmp files match; wait until they are written")
    # A pair of Megatron's may be named by either file, and a glob finds both.
    paths = list(dict.fromkeys(map(data_file, paths)))
    manifests_of(paths)  # refuses data that is not all written
    return sorted(paths, key=_natural_key)


def load_indexes(paths: Sequence[str], *, progress: bool = True) -> Iterator[RecordIndex | InputError]:
    """The index of each file, or what is wrong with it. `progress` shows how far, where files must be read whole."""
    with contextlib.ExitStack() as stack:
        shown: list[Progress] = []
        for number, path in enumerate(paths):

            def update(size: int, rest: Sequence[str] = paths[number:]) -> None:
                if progress and not shown:  # only now is it known that there is something to wait for
                    shown.append(stack.enter_context(Progress(sum(map(_size, rest)), "indexing", BYTES)))
                for bar in shown:
                    bar.update(size)

            try:
                yield _load_index(path, update)
            except InputError as error:
                yield error


def _load_index(path: str, progress: Callable[[int], object]) -> RecordIndex:
    if is_pair(path):
        return load_pair(path, progress=progress)
    if path.endswith(".idx"):
        raise InputError(
            f"{shown(path)}: is an index of Megatron's without its {shown(path)[:-4]}.bin; put both into one folder"
        )
    try:
        return load_index(path, progress=progress)
    except InputError as error:
        if path.endswith(".bin"):
            raise InputError(
                f"{error} (or a file of Megatron, but {shown(index_path(path))} is not beside it)"
            ) from error
        raise


def load_corpus(paths: Sequence[str], *, progress: bool = True) -> Corpus:
    """The corpus of these files; raises InputError for a file that is damaged or is not of records with `text`."""
    indexes = []
    for found in load_indexes(paths, progress=progress):
        if isinstance(found, InputError):
            raise found
        indexes.append(found)
    return Corpus.from_indexes(indexes)


def _size(path: str) -> int:
    try:
        return storage.stat(path).size
    except storage.errors():
        return 0  # load_index tells what is wrong with it


def _natural_key(path: str) -> list[tuple[int, int, str]]:
    """Text and runs of digits in turn, the latter compared by value."""
    parts = re.split(r"([0-9]+)", path)
    return [(1, 0, part) if number % 2 == 0 else (0, int(part), part) for number, part in enumerate(parts)]
