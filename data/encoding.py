"""Encode a corpus in parallel, in order: files of text in, one array of token ids a document out."""

from __future__ import annotations

import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import chain
from multiprocessing import get_context
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from data.encoders import Encoder
from data.sources import Source
from errors import InputError

Ids = npt.NDArray[np.int32]

_TASK_CHARACTERS = 1 << 18  # about 60,000 tokens, a tenth of a second
_TASKS_AHEAD = 2  # for each process, so that none waits for the reader


class _Task(NamedTuple):
    """Some pieces of text in a row. ends: whether a document ends with each. bytes: read from the files for them."""

    texts: list[str]
    ends: list[bool]
    bytes: int


class _Encoded(NamedTuple):
    """ids: of all texts of a task, one after the other. lengths: how many each text has."""

    ids: Ids
    lengths: npt.NDArray[np.int64]


def encode_files(
    sources: Sequence[Source],
    encoder: Encoder,
    *,
    processes: int,
    progress: Callable[[int], object] = lambda _: None,
) -> Iterator[Ids]:
    """Ids of every document of `sources`, in order, whatever the number of processes. Special tokens in them are text.

    `progress` is called with the number of bytes of the files that were encoded since its last call. Memory is bounded
    by the longest document (4 bytes a token) and a few tasks for each process.

    Raises InputError when a file cannot be read, or a process is killed.
    """
    held: list[Ids] = []
    for task, encoded in _in_order(_tasks(sources, encoder), encoder, processes):
        progress(task.bytes)
        texts = np.split(encoded.ids, np.cumsum(encoded.lengths)[:-1])
        for ids, ends in zip(texts, task.ends, strict=True):
            held.append(ids)
            if ends:
                yield held[0] if len(held) == 1 else np.concatenate(held)
                held = []


def _tasks(sources: Sequence[Source], encoder: Encoder) -> Iterator[_Task]:
    texts: list[str] = []
    ends: list[bool] = []
    characters = read = 0

    def count(size: int) -> None:
        nonlocal read
        read += size

    def pieces(source: Source) -> Iterator[tuple[str, bool]]:
        if encoder.splittable:
            return source.pieces(_TASK_CHARACTERS, count)
        return ((document, True) for document in source.documents(count))

    for text, end in chain.from_iterable(map(pieces, sources)):
        texts.append(text)
        ends.append(end)
        characters += len(text)
        if characters >= _TASK_CHARACTERS:
            yield _Task(texts, ends, read)
            texts, ends, characters, read = [], [], 0, 0
    if texts:
        yield _Task(texts, ends, read)


def _in_order(tasks: Iterable[_Task], encoder: Encoder, processes: int) -> Iterator[tuple[_Task, _Encoded]]:
    if processes == 1:
        for task in tasks:
            yield task, _encode(encoder, task.texts)
        return
    # Spawned, not forked: the tokenizers library has threads, and locks held by a thread stay locked in a fork.
    pool = ProcessPoolExecutor(processes, get_context("spawn"), _start_worker, (encoder,))
    waiting: deque[tuple[_Task, Future[_Encoded]]] = deque()
    try:
        for task in tasks:
            waiting.append((task, pool.submit(_work, task.texts)))
            if len(waiting) > processes * _TASKS_AHEAD:
                first, future = waiting.popleft()
                yield first, future.result()
        for first, future in waiting:
            yield first, future.result()
    except BrokenProcessPool as error:
        raise InputError(
            f"--processes {processes}: one of the processes was killed, most likely for want of memory; give fewer"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


_encoder: Encoder  # of a worker process


def _start_worker(encoder: Encoder) -> None:
    global _encoder
    _encoder = encoder
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the main process, which then ends the pool


def _work(texts: list[str]) -> _Encoded:
    return _encode(_encoder, texts)


def _encode(encoder: Encoder, texts: list[str]) -> _Encoded:
    encoded = encoder.encode_documents(texts)
    lengths = np.array([len(ids) for ids in encoded], np.int64)
    return _Encoded(np.fromiter(chain.from_iterable(encoded), np.int32, int(lengths.sum())), lengths)
