"""`NAME.manifest.json`: what the files of a dataset hold, what they were made of, and whether they are all there.

It lies beside the files and never names one that is not complete. While a run writes them, it appends each to a
journal, `.NAME.manifest.journal`, since the manifest also lists all sources: writing it whole each time would take time
that grows with their number squared. The journal belongs to one manifest, whose digest its entries have, and goes when
that is replaced. Where nothing can be appended, on URLs, the manifest is replaced after each file.
create_tfrecords.py goes on from both after a kill; training asks the manifest which tokenizer made the data.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from gpt_mesh.data.account import Account
from gpt_mesh.data.reading import DocumentPlace, Position
from gpt_mesh.errors import InputError, shown
from gpt_mesh.storage import checksums, strict_json
from gpt_mesh.storage import files as storage

SUFFIX = ".manifest.json"
_JOURNAL_SUFFIX = ".manifest.journal"
_VERSION = 1


@dataclass(frozen=True)
class TokenizerFacts:
    """source: where it came from. fingerprint: SHA-256 of its definition. n_vocab: every id is smaller."""

    source: str
    fingerprint: str
    n_vocab: int


@dataclass(frozen=True)
class InputFacts:
    """A source of text as it was: size in bytes, modification time in nanoseconds (None where there is none)."""

    path: str
    size: int
    mtime_ns: int | None


@dataclass(frozen=True)
class Shard:
    """One file. documents: how many begin in it. bytes: of the text that its tokens stand for, in UTF-8 (None: not
    known). size: of the file, in bytes. first, last: where in the corpus its tokens begin, and end."""

    file: str
    records: int
    documents: int
    tokens: int
    bytes: int | None
    size: int
    first: Position
    last: Position


@dataclass
class SplitState:
    """The documents to train on, or those that are held out: their files so far, and the account up to there."""

    shards: list[Shard] = field(default_factory=list)
    account: Account = field(default_factory=Account)

    @property
    def position(self) -> Position | None:
        """Where the last file ends; None before the first."""
        return self.shards[-1].last if self.shards else None


@dataclass
class Manifest:
    """settings: the flags that decide what the files hold. splits: "train", and "eval" when documents are held out."""

    name: str
    tokenizer: TokenizerFacts
    settings: dict[str, Any]
    inputs: list[InputFacts]
    splits: dict[str, SplitState]
    complete: bool = False
    _saved: str = ""  # digest of the manifest that the journal goes on from

    @property
    def shards(self) -> list[Shard]:
        return [shard for split in self.splits.values() for shard in split.shards]

    def prefix(self, split: str) -> str:
        """Files of a split are called `prefix_<index>_<records>.tfrecords`."""
        return self.name if split == "train" else f"{self.name}_{split}"

    def owns(self, file: str) -> bool:
        """Whether a file name is one that this dataset's run writes."""
        prefixes = "|".join(re.escape(self.prefix(split)) for split in self.splits)
        return re.fullmatch(rf"({prefixes})_\d+_\d+\.tfrecords", file) is not None

    def copy(self) -> Manifest:
        return _from_json(self._to_json())

    def save(self, folder: str) -> None:
        """Replace the manifest in `folder`, and remove its journal. Raises one of storage.errors()."""
        values = self._to_json()
        strict_json.write(manifest_path(folder, self.name), values, indent=1, durable=True)
        self._saved = values["digest"]
        if storage.exists(journal_path(folder, self.name)):
            storage.remove(journal_path(folder, self.name))

    def append(self, folder: str, split: str) -> None:
        """Enter the last file of a split in the journal of the manifest that was saved in `folder`.

        Raises one of storage.errors().
        """
        if storage.is_url(folder):
            self.save(folder)
            return
        state = self.splits[split]
        entry: dict[str, Any] = {"manifest": self._saved, "split": split}
        entry |= {"shard": _shard_json(state.shards[-1]), "account": state.account.to_json()}
        with storage.append_binary(journal_path(folder, self.name)) as file:
            file.write(f"{json.dumps({**entry, 'digest': _digest(entry)})}\n".encode())
            file.flush()
            os.fsync(file.fileno())

    def _to_json(self) -> dict[str, Any]:
        values = {"version": _VERSION, "name": self.name, "complete": self.complete}
        values |= {"tokenizer": asdict(self.tokenizer), "settings": self.settings}
        values["splits"] = {
            name: {
                "shards": [_shard_json(shard) for shard in split.shards],
                "account": split.account.to_json(),
            }
            for name, split in self.splits.items()
        }
        values["inputs"] = [asdict(facts) for facts in self.inputs]
        return {**values, "digest": _digest(values)}


def manifest_path(folder: str, name: str) -> str:
    return f"{folder}/{name}{SUFFIX}"


def journal_path(folder: str, name: str) -> str:
    return f"{folder}/.{name}{_JOURNAL_SUFFIX}"


def manifest_names(folder: str) -> list[str]:
    """Names of the datasets that have a manifest in `folder`."""
    return [name.removesuffix(SUFFIX) for name in storage.list_folder(folder) if name.endswith(SUFFIX)]


def load_manifest(folder: str, name: str) -> Manifest | None:
    """The manifest of a dataset, with the files of its journal. None when there is none.

    Raises:
        InputError: it cannot be read, or was changed.
    """
    path = manifest_path(folder, name)
    if not storage.exists(path):
        return None
    try:
        with storage.open_binary(path) as file:
            values = json.loads(file.read())
        digest = values.get("digest")
        manifest = _from_json(values)
        _add_journal(manifest, folder, digest)
        return manifest
    except storage.errors() as error:
        raise InputError(f"{shown(path)}: cannot be read: {storage.reason(error)}") from error
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise InputError(
            f"{shown(path)}: is damaged, or of another version of this program ({type(error).__name__}: "
            f"{str(error)[:200]}); "
            "encode the data again with --overwrite, or delete it to use the files as they are"
        ) from error


def _from_json(values: dict[str, Any]) -> Manifest:
    if values["version"] != _VERSION:
        raise ValueError(f"version {values['version']}")
    if values.pop("digest", None) not in (None, _digest(values)):
        raise ValueError("somebody changed it")
    splits = {
        name: SplitState(
            [_shard(shard) for shard in split["shards"]],
            Account.from_json(split["account"]),
        )
        for name, split in values["splits"].items()
    }
    return Manifest(
        name=str(values["name"]),
        tokenizer=TokenizerFacts(**values["tokenizer"]),
        settings=dict(values["settings"]),
        inputs=[InputFacts(**facts) for facts in values["inputs"]],
        splits=splits,
        complete=bool(values["complete"]),
    )


def _add_journal(manifest: Manifest, folder: str, digest: str | None) -> None:
    """Add the files that the journal in `folder` enters, if it goes on from the manifest of this digest.

    A kill may have cut off its last line. Raises ValueError when another was changed.
    """
    path = journal_path(folder, manifest.name)
    if not storage.exists(path):
        return
    with storage.open_binary(path) as file:
        *lines, _cut_off = file.read().split(b"\n")
    for line in lines:
        entry = json.loads(line)
        if entry["manifest"] != digest:
            return  # a kill came between a new manifest and the removal of its predecessor's journal
        if entry.pop("digest") != _digest(entry):
            raise ValueError("somebody changed its journal")
        split = manifest.splits[entry["split"]]
        split.shards.append(_shard(entry["shard"]))
        split.account = Account.from_json(entry["account"])


def _shard_json(shard: Shard) -> dict[str, Any]:
    return {**vars(shard), "first": _flat(shard.first), "last": _flat(shard.last)}


def _shard(values: Mapping[str, Any]) -> Shard:
    return Shard(**{**values, "first": _position(values["first"]), "last": _position(values["last"])})


def _digest(values: dict[str, Any]) -> str:
    """SHA-256 of the values, in hex: it shows whether somebody changed them."""
    return checksums.of_json(values)


def _flat(position: Position) -> str:
    """`input:document:token`, each counted from 0."""
    return f"{position.place.source}:{position.place.document}:{position.token}"


def _position(text: str) -> Position:
    source, document, token = map(int, text.split(":"))
    return Position(DocumentPlace(source, document), token)


def shard_pattern(name: str) -> str:
    """The glob for the files of one split. (`name_*` would also find those of a dataset called `name_eval`.)"""
    return f"{name}_[0-9]*_[0-9]*.tfrecords"


# For those who read the data


def manifests_of(paths: Sequence[str]) -> list[Manifest]:
    """The manifests that speak of any of these data files, in the order of the files' folders.

    Raises InputError when one of them says that its files are not all there yet, or cannot be read.
    """
    found = []
    for folder in dict.fromkeys(os.path.dirname(path) or "." for path in paths):
        files = {os.path.basename(path) for path in paths if (os.path.dirname(path) or ".") == folder}
        for name in manifest_names(folder):
            if not any(file.startswith(name) for file in files):
                continue
            manifest = load_manifest(folder, name)
            if manifest is None or not any(map(manifest.owns, files)):
                continue
            if not manifest.complete:
                raise InputError(
                    f"{manifest_path(folder, name)}: the data is not all written ({len(manifest.shards):,} files so "
                    "far); finish with create_tfrecords.py --resume, or delete this manifest to use what is there"
                )
            found.append(manifest)
    return found


def unlike_manifests(found: Mapping[str, tuple[int, int]]) -> Iterator[str]:
    """What data files have become since they were written, a line each.

    found: path of each file that is used -> its records and tokens. Of a manifest that names one of them, also the
    others of the same split must still be there.
    """
    for folder in dict.fromkeys(os.path.dirname(path) for path in found):
        here = {os.path.basename(path): facts for path, facts in found.items() if os.path.dirname(path) == folder}
        there = set(storage.list_folder(folder or "."))
        for manifest in manifests_of([os.path.join(folder, file) for file in here]):
            path = manifest_path(folder or ".", manifest.name)
            for split in manifest.splits.values():
                if here.keys().isdisjoint(shard.file for shard in split.shards):
                    continue
                if gone := [shard.file for shard in split.shards if shard.file not in there]:
                    yield (
                        f"{shown(os.path.join(folder, gone[0]))}: is gone, with {len(gone) - 1} more of the "
                        f"{len(split.shards)} files that {shown(path)} names; put them back, or delete the manifest "
                        "to use "
                        "what is there"
                    )
                for shard in split.shards:
                    records, tokens = here.get(shard.file, (shard.records, shard.tokens))
                    if (records, tokens) != (shard.records, shard.tokens):
                        yield (
                            f"{shown(os.path.join(folder, shard.file))}: holds {records:,} records of {tokens:,} "
                            "tokens, and "
                            f"{shown(path)} tells of {shard.records:,} of {shard.tokens:,}; put the file back that it "
                            "is of, "
                            "or delete the manifest to use this one"
                        )


def text_bytes(paths: Sequence[str]) -> int | None:
    """UTF-8 bytes of the text in these data files; None when no manifest tells it of each of them."""
    total = 0
    for folder in {os.path.dirname(path) for path in paths}:
        here = [path for path in paths if os.path.dirname(path) == folder]
        known = {shard.file: shard.bytes for manifest in manifests_of(here) for shard in manifest.shards}
        for path in here:
            size = known.get(os.path.basename(path))
            if size is None:
                return None
            total += size
    return total
