"""The folder that a dataset is written to: new, instead of an older one, or going on where a killed run left off.

A new dataset's files appear in the folder one by one; until the manifest says `complete`, training refuses them. With
--overwrite they are gathered in a hidden folder beside the old ones, which stay as they are until all is written. Then
the old manifest is marked as not complete, the files change places, and the new manifest comes last: whoever reads
meanwhile is refused, and a kill on the way leaves what --resume can finish.
"""

from __future__ import annotations

import contextlib
import os
import re
from fnmatch import fnmatchcase
from typing import Any

from gpt_mesh.data.manifest import Manifest, load_manifest, manifest_names, manifest_path, shard_pattern
from gpt_mesh.data.tfrecords import INDEX_SUFFIX
from gpt_mesh.errors import InputError, shown
from gpt_mesh.storage import files as storage


class Output:
    """Where a run writes.

    folder: where files and manifest go for now. manifest: what is there, and in which state. resumed: an earlier run
    wrote some of it.
    """

    def __init__(self, target: str, wanted: Manifest, *, resume: bool = False, overwrite: bool = False) -> None:
        """wanted: a manifest with no files yet. Raises InputError when it cannot go there."""
        self.target = target
        self._staging = f"{target}/.{wanted.name}.new"
        self.folder, self.manifest, self.resumed = target, wanted, False
        _check_name(target, wanted)
        if resume:
            self._resume(wanted)
        elif overwrite:
            if storage.exists(self._staging):
                storage.remove_folder(self._staging)
            if self._old_files():
                self.folder = self._staging
        else:
            check_free(target, wanted)
        storage.make_folder(self.folder)
        for folder in {self.folder, self.target}:
            self.remove_partial(folder)

    def _resume(self, wanted: Manifest) -> None:
        if storage.exists(manifest_path(self._staging, wanted.name)):
            self.folder = self._staging
        found = load_manifest(self.folder, wanted.name)
        if found is None:
            if files := self._old_files():
                raise InputError(
                    f"{self.target}/{files[0]}: is there, but no {manifest_path(self.target, wanted.name)} that tells "
                    "how far its run came; give another --name, or --overwrite to encode all of it again"
                )
            return
        if not found.shards:  # nothing to go on with
            return
        check_same_run(manifest_path(self.folder, wanted.name), found, wanted)
        for shard in found.shards:
            path = f"{self.folder}/{shard.file}"
            if found.complete and not storage.exists(path):
                path = f"{self.target}/{shard.file}"  # moved before the kill
            if not storage.exists(path) or storage.stat(path).size != shard.size:
                raise InputError(
                    f"{shown(path)}: is gone, or not of {shard.size:,} bytes any more; put it back, or encode all of "
                    "it again "
                    "with --overwrite"
                )
        found.inputs = wanted.inputs
        self.manifest, self.resumed = found, True

    def remove_partial(self, folder: str) -> None:
        """Remove what a run that was killed, or a worker that was, left there and is not in the manifest."""
        listed = {shard.file for shard in self.manifest.shards}
        manifest = os.path.basename(manifest_path(folder, self.manifest.name))
        for file in storage.list_folder(folder):
            half_manifest = re.fullmatch(rf"{re.escape(manifest)}\.\d+\.tmp", file)
            half_shard = re.fullmatch(r"\.(.*)\.partial", file)
            unlisted = folder == self.folder and self.manifest.owns(file) and file not in listed
            if unlisted or half_manifest or (half_shard and self.manifest.owns(f"{half_shard[1]}_0.tfrecords")):
                storage.remove(f"{folder}/{file}")

    def _old_files(self) -> list[str]:
        return written_files(self.target, self.manifest)

    def save(self) -> None:
        """Write the manifest as it is now: before the first file, and when a run ends."""
        self.manifest.save(self.folder)

    def enter(self, split: str) -> None:
        """Write down that a file of `split` is complete."""
        self.manifest.append(self.folder, split)

    def complete(self) -> None:
        """Every file is written: put them where they belong, and say so in the manifest."""
        self.manifest.complete = True
        self.save()  # in the hidden folder, if it is that: from here on --resume has only to finish what follows
        if self.folder == self.target:
            return
        new = {shard.file for shard in self.manifest.shards}
        old = self._old_files()
        marker = load_manifest(self.target, self.manifest.name) or self.manifest.copy()
        marker.complete = False
        marker.save(self.target)
        for file in old:
            if storage.exists(f"{self.target}/{file}{INDEX_SUFFIX}"):
                storage.remove(f"{self.target}/{file}{INDEX_SUFFIX}")
            if file not in new:
                storage.remove(f"{self.target}/{file}")
        for file in sorted(new):
            if storage.exists(f"{self.folder}/{file}"):
                storage.move(f"{self.folder}/{file}", f"{self.target}/{file}")
        self.manifest.save(self.target)
        storage.remove_folder(self.folder)
        self.folder = self.target

    def stop(self) -> None:
        """The run failed: leave one manifest of what is complete, without a journal; or nothing, if no file is."""
        if self.manifest.shards:
            with contextlib.suppress(*storage.errors(), InputError):  # on a full disk the journal still has it
                # As it is on disk: a last file that is not full yet must be written anew by a run that goes on.
                entered = load_manifest(self.folder, self.manifest.name)
                if entered is not None:
                    entered.save(self.folder)
            return
        if self.folder == self._staging:
            storage.remove_folder(self._staging)
        else:
            storage.remove(manifest_path(self.folder, self.manifest.name))


def written_files(folder: str, manifest: Manifest) -> list[str]:
    """Data files in `folder` that a run with this name wrote: those that the new one would, and those that the
    manifest there names."""
    try:
        there = load_manifest(folder, manifest.name)
    except InputError:  # damaged: another reason to write it all anew
        there = None
    return [file for file in storage.list_folder(folder) if manifest.owns(file) or (there and there.owns(file))]


def check_free(folder: str, manifest: Manifest) -> None:
    """Raise InputError when `folder` has files of this name, or of a run that was stopped."""
    found = written_files(folder, manifest)
    if not found and storage.exists(f"{folder}/.{manifest.name}.new"):
        found = [f".{manifest.name}.new"]
    if found:
        raise InputError(
            f"{shown(folder)}/{found[0]}: is there already, with {len(found) - 1} more of --name {manifest.name}; give "
            "another name, --resume to go on with a run that was stopped, or --overwrite to replace them all"
        )


def _check_name(folder: str, manifest: Manifest) -> None:
    """Raise InputError when files of this dataset would be taken for those of another, or the other way round."""
    prefixes = [manifest.prefix(split) for split in manifest.splits]
    others = [name for name in manifest_names(folder) if name != manifest.name]
    for other in others:
        theirs = [other]
        with contextlib.suppress(InputError):  # damaged: then its name alone tells
            there = load_manifest(folder, other)
            theirs = [there.prefix(split) for split in there.splits] if there else theirs
        if any(fnmatchcase(f"{prefix}_0_0.tfrecords", shard_pattern(name)) for prefix in prefixes for name in theirs):
            raise InputError(
                f"{manifest_path(folder, other)}: is of another dataset, whose files those of --name {manifest.name} "
                "would be taken for; give another name or --output_dir"
            )


def check_same_run(path: str, found: Manifest, wanted: Manifest) -> None:
    """Raise InputError when `wanted` would not write what `found`, which is at `path`, has begun."""
    again = "or encode all of it again with --overwrite"
    for key in {**found.settings, **wanted.settings}:
        old, new = found.settings.get(key), wanted.settings.get(key)
        if old != new:
            raise InputError(
                f"{shown(path)}: was begun with {_flag(key, old)}, not {_flag(key, new)}; give the same, {again}"
            )
    if found.tokenizer.fingerprint != wanted.tokenizer.fingerprint:
        raise InputError(
            f"{shown(path)}: was begun with another tokenizer ({found.tokenizer.source}) than "
            f"{wanted.tokenizer.source}; give "
            f"that one, {again}"
        )
    # Up to where its files reach. Further inputs are still to be read, and may have been put in order since.
    reached = [split.position.place.source for split in found.splits.values() if split.position]
    read = None if found.complete else max(reached) + 1
    old_inputs = {facts.path: facts for facts in found.inputs}
    inputs = {facts.path: facts for facts in wanted.inputs}
    before = {facts.path: facts for facts in found.inputs[:read]}
    now = {facts.path: facts for facts in wanted.inputs[:read]}
    changes = (
        (
            (name for name in before if name in inputs and inputs[name] != before[name]),
            "has changed since",
            "put back the old",
        ),
        ((name for name in before if name not in inputs), "is missing, and was there when", "put it back"),
        ((name for name in now if name not in old_inputs), "was not there when", "take it away"),
    )
    for names, what, remedy in changes:
        for name in names:
            raise InputError(f"{shown(name)}: {what} {shown(path)} was begun; {remedy}, {again}")


def _flag(key: str, value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return f"--{key}" if value else f"no --{key}"
    return f"--{key} {value}"
