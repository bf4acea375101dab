"""The encoding of create_tfrecords.py as an Apache Beam pipeline: the same files, byte for byte, made by many machines.

    sources -> read -> encode -> (mark duplicates) -> admit -> place -> write -> manifest

Text is read and selected, put into tasks, encoded, counted and packed by the functions that do it on one machine. Only
the order is Beam's own doing: a task's key is its place in the corpus, and once the sizes of all tasks are known, a sum
over them in order tells each document which files it goes to, and where in the first of them it begins. A file is then
packed as by a run that is resumed there. docs/beam.md is the guide.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import re
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions

from gpt_mesh.data.account import Account
from gpt_mesh.data.encoding import Document, EncodingTask, Recipe, encode, join, tasks
from gpt_mesh.data.manifest import Manifest, Shard, load_manifest
from gpt_mesh.data.output import Output
from gpt_mesh.data.reading import Place, Selection, read_corpus
from gpt_mesh.data.shards import OpenShard, Packer, Record, admit
from gpt_mesh.data.sources import Source
from gpt_mesh.errors import InputError
from gpt_mesh.storage import files as storage

TaskKey = tuple[int, int]
"""Number of a source, number of a task within it, both from 0: keys compare in reading order."""

ShardKey = tuple[int, int]
"""1 for the documents that are held out, else 0; number of the file, from 0."""


@dataclass(frozen=True)
class Job:
    """What every worker knows; small, since each step carries a copy. settings: of the manifest. prefixes: of the
    files' names, for each split. folder: where they go."""

    settings: dict[str, Any]
    prefixes: list[str]
    folder: str
    new_packer: Callable[[], Packer]


class Admitted(NamedTuple):
    """What is to be written of a task. For each split: accounts: of the task's documents so far; extents: what they
    take up in its files (Packer.extent)."""

    documents: list[Document]
    accounts: list[Account]
    extents: list[int]


class Written(NamedTuple):
    """A file. shard: None where what would have gone to it is too little for a record."""

    key: ShardKey
    shard: Shard | None
    account: Account


def run_pipeline(
    runner: str,
    arguments: Sequence[str],
    sources: Sequence[Source],
    recipe: Recipe,
    new_packer: Callable[[], Packer],
    output: Output,
) -> None:
    """Write all files and enter them in `output.manifest`; when that fails, nothing stays.

    arguments: Beam's options, as KEY=VALUE or KEY. Raises InputError when the runner or the text does not work.
    """
    logging.basicConfig()
    for handler in logging.getLogger().handlers:  # a worker in this process logs, with a traceback, what run() raises
        handler.addFilter(_no_input_error)
    wanted = output.manifest
    job = Job(wanted.settings, [wanted.prefix(split) for split in wanted.splits], output.folder, new_packer)
    try:
        with _one_line(runner):
            options = PipelineOptions([f"--{argument}" for argument in arguments])
            pipeline = beam.Pipeline(runner=runner, options=options)
            build(pipeline, sources, recipe, wanted, job)
            result = pipeline.run()
            try:
                result.wait_until_finish()
            except KeyboardInterrupt:  # it would go on elsewhere
                with contextlib.suppress(Exception):
                    result.cancel()
                raise
        written = load_manifest(output.folder, wanted.name)
        assert written is not None, "the manifest was there before"
        for split in written.splits.values():
            split.account.check()
        output.manifest = written
    finally:
        output.remove_partial(output.folder)


def build(pipeline: beam.Pipeline, sources: Sequence[Source], recipe: Recipe, wanted: Manifest, job: Job) -> None:
    """Add all steps to `pipeline`. The last replaces the manifest, which is `wanted`, with no files yet."""
    encoded = (
        pipeline
        | "sources" >> beam.Create(list(enumerate(sources)))
        | "spread sources" >> beam.Reshuffle()
        | "read" >> beam.FlatMap(_read, job.settings["eval_fraction"])
        | "spread text" >> beam.Reshuffle()
        | "encode" >> beam.ParDo(_Encode(recipe))
    )
    if job.settings["deduplicate"]:
        repeated = (
            encoded
            | "digests" >> beam.FlatMap(_digests)
            | "alike" >> beam.GroupByKey()
            | "all but the first" >> beam.FlatMap(_all_but_first)
        )
        encoded = (
            {"documents": encoded, "repeated": repeated}
            | "with duplicates" >> beam.CoGroupByKey()
            | "mark" >> beam.FlatMap(_mark)
        )
    admitted = encoded | "admit" >> beam.Map(_admit, job)
    starts, accounts = (
        admitted
        | "sizes" >> beam.Map(lambda keyed: (0, (keyed[0], keyed[1].accounts, keyed[1].extents)))
        | "all sizes" >> beam.GroupByKey()
        | "starts" >> beam.FlatMap(_starts).with_outputs("accounts", main="starts")
    )
    written = (
        {"admitted": admitted, "starts": starts}
        | "with starts" >> beam.CoGroupByKey()
        | "place" >> beam.FlatMap(_place, job)
        | "files" >> beam.GroupByKey()
        | "write" >> beam.Map(_write, job)
    )
    (
        pipeline
        | "once" >> beam.Create([0])
        | "manifest" >> beam.Map(_save, job.folder, wanted, beam.pvalue.AsList(accounts), beam.pvalue.AsList(written))
    )


def _read(numbered: tuple[int, Source], eval_fraction: float) -> Iterator[tuple[TaskKey, EncodingTask]]:
    """The documents of a source, whole, in tasks."""
    number, source = numbered
    for index, task in enumerate(tasks(read_corpus([source], Selection(eval_fraction), size=None))):
        origins = [origin and origin._replace(place=Place(number, origin.place.document)) for origin in task.origins]
        yield (number, index), EncodingTask(task.texts, origins)


class _Encode(beam.DoFn):
    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe

    def setup(self) -> None:
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the workers are the parallelism

    def process(self, keyed: tuple[TaskKey, EncodingTask]) -> Iterator[tuple[TaskKey, list[Document]]]:
        key, task = keyed
        yield key, list(join([(task.origins, encode(self._recipe, task.texts))]))


def _digests(keyed: tuple[TaskKey, list[Document]]) -> Iterator[tuple[bytes, tuple[TaskKey, int]]]:
    """Each document's digest, its task, and its number within the source."""
    key, documents = keyed
    for document in documents:
        if document.origin.null:
            continue
        yield document.origin.digest, (key, document.origin.place.document)


def _all_but_first(group: tuple[bytes, Iterable[tuple[TaskKey, int]]]) -> Iterator[tuple[TaskKey, int]]:
    _, places = group
    first = min(places)
    yield from (place for place in places if place != first)


def _mark(group: tuple[TaskKey, dict[str, Any]]) -> Iterator[tuple[TaskKey, list[Document]]]:
    key, found = group
    repeated = set(found["repeated"])
    for documents in found["documents"]:
        yield (
            key,
            [
                document._replace(origin=document.origin._replace(duplicate=document.origin.place.document in repeated))
                for document in documents
            ],
        )


def _admit(keyed: tuple[TaskKey, list[Document]], job: Job) -> tuple[TaskKey, Admitted]:
    key, documents = keyed
    packer = job.new_packer()
    admitted = Admitted([], [Account() for _ in job.prefixes], [0 for _ in job.prefixes])
    for document in documents:
        split = int(document.origin.held_out)
        if admit(document, job.settings["minimum_size"], admitted.accounts[split]):
            admitted.documents.append(document)
            admitted.extents[split] += packer.extent(document)
    return key, admitted


def _starts(group: tuple[int, Iterable[tuple[TaskKey, list[Account], list[int]]]]) -> Iterator[Any]:
    """(key, where the task's documents begin in each split) for each task, and the account of all tasks for each split.

    One worker holds a few numbers for each task: a gigabyte or so for a terabyte of text.
    """
    _, sizes = group
    starts: list[int] = []
    totals: list[Account] = []
    for key, accounts, extents in sorted(sizes, key=lambda size: size[0]):
        starts = starts or [0] * len(extents)
        totals = totals or [Account() for _ in extents]
        yield key, starts
        starts = [start + extent for start, extent in zip(starts, extents, strict=True)]
        for total, account in zip(totals, accounts, strict=True):
            total.add(account)
    yield beam.pvalue.TaggedOutput("accounts", totals)


def _place(group: tuple[TaskKey, dict[str, Any]], job: Job) -> Iterator[tuple[ShardKey, tuple[int, Document]]]:
    """Each document for every file that it goes to, with how much of it is in the files before."""
    _, found = group
    packer = job.new_packer()
    capacity = packer.record_extent * job.settings["records_per_file"]
    for admitted, starts in zip(found["admitted"], found["starts"], strict=True):
        at = list(starts)
        for document in admitted.documents:
            split = int(document.origin.held_out)
            begin = at[split]
            at[split] += packer.extent(document)
            for number in range(begin // capacity, (at[split] - 1) // capacity + 1):
                yield (split, number), (max(0, number * capacity - begin), document)


def _write(group: tuple[ShardKey, Iterable[tuple[int, Document]]], job: Job) -> Written:
    key, documents = group
    account = Account()
    packer, limit = job.new_packer(), job.settings["records_per_file"]
    in_order = sorted(documents, key=lambda placed: placed[1].origin.place)
    records = itertools.islice(_records(in_order, packer, account), limit)
    try:
        shard = _write_file(job.folder, job.prefixes[key[0]], key[1], records, account)
    except storage.errors() as error:
        raise InputError(
            f"{job.folder}: cannot be written: {storage.reason(error)}; make room or give another"
        ) from error
    if shard is None or shard.records < limit:  # the last one: no other file begins with what is held
        packer.finish(account)
    return Written(key, shard, account)


def _records(documents: list[tuple[int, Document]], packer: Packer, account: Account) -> Iterator[Record]:
    for skipped, document in documents:
        yield from packer.resume(document, skipped) if skipped else packer.add(document, account)


def _write_file(folder: str, prefix: str, number: int, records: Iterable[Record], account: Account) -> Shard | None:
    # A name of its own, for Beam may try the same file twice at a time; both make the same, and either may come last.
    shard = None
    try:
        for record in records:
            shard = shard or OpenShard(f"{folder}/.{prefix}_{uuid.uuid4().int}.partial")
            shard.add(record)
            account.written(len(record.ids), record.documents)
        return None if shard is None else shard.close(folder, prefix, number)
    except BaseException:
        if shard is not None:
            shard.remove()
        raise


def _save(_: int, folder: str, wanted: Manifest, accounts: list[list[Account]], written: list[Written]) -> None:
    """Enter all files in the manifest, in order."""
    manifest = wanted.copy()
    splits = list(manifest.splits.values())
    for totals in accounts:
        for split, total in zip(splits, totals, strict=True):
            split.account.add(total)
    for (number, _file), shard, account in sorted(written, key=lambda file: file.key):
        splits[number].account.add(account)
        if shard is not None:
            splits[number].shards.append(shard)
    manifest.save(folder)


# What goes wrong

_INPUT_ERROR = re.compile(r"errors\.InputError: (.*?)(?: \[while running|\\n|\n|$)")


@contextlib.contextmanager
def _one_line(runner: str) -> Iterator[None]:
    """Raise what a worker raised as InputError, which arrives inside other errors, as InputError again."""
    try:
        yield
    except Exception as error:
        if found := _INPUT_ERROR.search(f"{type(error).__module__}.{type(error).__name__}: {error}"):
            raise InputError(found[1]) from error
        if str(error).startswith("KeyboardInterrupt"):  # Ctrl-C reached a worker in this process
            raise KeyboardInterrupt from error
        if isinstance(error, ValueError) and "runner" in str(error).lower():
            reason = " ".join(str(error).split())
            raise InputError(f"--runner {runner}: {reason}; docs/beam.md has examples") from error
        raise


def _no_input_error(record: logging.LogRecord) -> bool:
    if record.exc_info and isinstance(record.exc_info[1], (InputError, KeyboardInterrupt)):
        return False
    return _INPUT_ERROR.search(record.getMessage()) is None
