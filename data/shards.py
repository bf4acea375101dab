"""The records of a dataset and its files: documents or chunks, counted, written all or none."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice

import numpy as np

from data import storage
from data.encoding import Ids
from data.tfrecords import INDEX_SUFFIX, write_records
from errors import InputError

_EMPTY = "empty"


@dataclass
class Account:
    """Where the tokens of a corpus went. Every one is written, or dropped for a reason."""

    documents_read: int = 0
    tokens_read: int = 0
    separators: int = 0
    records: int = 0
    tokens_written: int = 0
    shortest: int | None = None
    dropped_documents: Counter[str] = field(default_factory=Counter)
    dropped_tokens: Counter[str] = field(default_factory=Counter)

    def read(self, documents: Iterable[Ids]) -> Iterator[Ids]:
        for ids in documents:
            self.documents_read += 1
            self.tokens_read += len(ids)
            yield ids

    def written(self, records: Iterable[Ids]) -> Iterator[Ids]:
        for ids in records:
            self.records += 1
            self.tokens_written += len(ids)
            self.shortest = len(ids) if self.shortest is None else min(self.shortest, len(ids))
            yield ids

    def drop(self, reason: str, tokens: int, documents: int = 0) -> None:
        self.dropped_tokens[reason] += tokens
        self.dropped_documents[reason] += documents

    def check(self) -> None:
        assert self.tokens_read + self.separators == self.tokens_written + self.dropped_tokens.total(), self

    def lines(self) -> list[str]:
        """The account as a small table."""
        rows = [
            ("documents read", f"{self.documents_read:,}"),
            ("tokens read", f"{self.tokens_read:,}"),
            ("+ separators", f"{self.separators:,}"),
            *((f"- {reason}", amount) for reason, amount in self._dropped()),
            ("= tokens written", f"{self.tokens_written:,}"),
            ("records", f"{self.records:,}"),
            ("shortest record", "none" if self.shortest is None else f"{self.shortest:,} tokens"),
        ]
        width = max(len(label) for label, _ in rows)
        return [f"{label:<{width}}  {value}" for label, value in rows]

    def nothing_written(self) -> str:
        """Why there is no record."""
        if not self.documents_read:
            return "nothing written: its files hold no document"
        dropped = "; ".join(f"{reason}: {amount}" for reason, amount in self._dropped())
        return f"nothing written of {self.documents_read:,} documents ({dropped}); lower the limit, or give more text"

    def _dropped(self) -> list[tuple[str, str]]:
        """(reason, how much) for each reason."""
        return [
            (reason, f"{tokens:,} tokens" + (f" in {documents:,} documents" if documents else ""))
            for reason, tokens in self.dropped_tokens.items()
            for documents in [self.dropped_documents[reason]]
        ]


def long_enough(documents: Iterable[Ids], minimum_size: int, account: Account) -> Iterator[Ids]:
    """Documents of at least `minimum_size` tokens, and of at least one."""
    for ids in documents:
        if len(ids) == 0:
            account.drop(_EMPTY, 0, documents=1)
        elif len(ids) < minimum_size:
            account.drop(f"shorter than --minimum_size {minimum_size}", len(ids), documents=1)
        else:
            yield ids


def chunks(documents: Iterable[Ids], separator: Sequence[int], size: int, account: Account) -> Iterator[Ids]:
    """Records of exactly `size` tokens of the documents, `separator` after each. What is left at the end is dropped."""
    after = np.array(separator, np.int32)
    parts: list[Ids] = []
    held = 0
    for ids in documents:
        parts += [ids, after]
        held += len(ids) + len(after)
        account.separators += len(after)
        if held >= size:
            joined = np.concatenate(parts)
            whole = held - held % size
            yield from joined[:whole].reshape(-1, size)
            parts, held = [joined[whole:]], held - whole
    if held:
        account.drop(f"the end, less than --chunk_size {size}", held)


# Files


def shard_names(folder: str, name: str) -> list[str]:
    """Files in `folder` that a run with this name wrote."""
    pattern = re.compile(rf"{re.escape(name)}_\d+_\d+\.tfrecords")
    return [found for found in storage.list_folder(folder) if pattern.fullmatch(found)]


def shard_pattern(name: str) -> str:
    """The glob for those files. (`name_*` would also find those of a dataset called `name_eval`.)"""
    return f"{name}_[0-9]*_[0-9]*.tfrecords"


def check_free(folder: str, name: str) -> None:
    """Raise InputError when `folder` has files of this name."""
    if found := shard_names(folder, name):
        raise InputError(
            f"{folder}/{found[0]}: is there already, with {len(found) - 1} more of --name {name}; "
            "give another name, or --overwrite to replace them all"
        )


def write_shards(
    records: Iterable[Ids], folder: str, name: str, *, records_per_file: int, overwrite: bool = False
) -> list[str]:
    """Write `folder/name_<index>_<records>.tfrecords`; they appear when all are complete, and replace older ones.

    Returns the names; none when there is no record, and then older files stay. Raises InputError when there are older
    ones and `overwrite` is false, or the folder cannot be written to.
    """
    storage.make_folder(folder)
    partial = f"{folder}/.{name}.{os.getpid()}.partial"
    counts: list[int] = []
    records = iter(records)
    try:
        storage.make_folder(partial)
        for first in records:
            shard = chain([first], islice(records, records_per_file - 1))
            counts.append(write_records(f"{partial}/{len(counts)}", shard))
        if counts and not overwrite:
            check_free(folder, name)  # again: another run may have come first
        names = [f"{name}_{index}_{count}.tfrecords" for index, count in enumerate(counts)]
        for old in shard_names(folder, name) if names else ():
            for path in (f"{folder}/{old}", f"{folder}/{old}{INDEX_SUFFIX}"):
                if storage.exists(path):
                    storage.remove(path)
        for index, new in enumerate(names):
            storage.move(f"{partial}/{index}", f"{folder}/{new}")
        return names
    except storage.errors() as error:
        raise InputError(f"{folder}: cannot be written: {storage.reason(error)}; free or give another") from error
    finally:
        if storage.exists(partial):
            storage.remove_folder(partial)
