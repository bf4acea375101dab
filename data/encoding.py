"""Encode a corpus in parallel, in order: pieces of text in, one array of token ids a document out."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import chain
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from gpt_mesh.data.cleaning import Cleaning
from gpt_mesh.data.encoders import Encoder
from gpt_mesh.data.reading import Origin, Piece
from gpt_mesh.data.rendering import Rendered, Rendering
from gpt_mesh.errors import InputError

Ids = npt.NDArray[np.int32]

TASK_CHARACTERS = 1 << 18
"""How much text a process is given at a time: about 60,000 tokens, a tenth of a second."""

_TASKS_AHEAD = 2  # for each process, so that none waits for the reader


class Document(NamedTuple):
    """An encoded document.

    Attributes:
        ids: of its sequences, one after the other; those that are not learned are marked (`data.marks`).
        bytes: of its text in UTF-8, as it was encoded.
        lengths: of its sequences, if there are several.
        dropped: why it is left out; empty: it is not.
        cut: tokens that were cut off its end.
    """

    origin: Origin
    ids: Ids
    bytes: int
    lengths: tuple[int, ...] = ()
    dropped: str = ""
    cut: int = 0


class Recipe(NamedTuple):
    """How text becomes ids. Special tokens that are written out in it are text.

    Attributes:
        rendering: of records with roles, which need no cleaning; None: documents are texts.
    """

    encoder: Encoder
    cleaning: Cleaning = Cleaning()
    rendering: Rendering | None = None

    @property
    def piece_size(self) -> int | None:
        """Characters of the pieces that documents may come in; None when each must come whole."""
        whole = self.cleaning or self.rendering or not self.encoder.splittable
        return None if whole else TASK_CHARACTERS


class Encoded(NamedTuple):
    """ids: of all texts of a task, one after the other. lengths, bytes: how many of either each text has. rendered: of
    each text, if they are records with roles.
    """

    ids: Ids
    lengths: npt.NDArray[np.int64]
    bytes: list[int]
    rendered: list[Rendered] | None = None


def encode(recipe: Recipe, texts: list[str]) -> Encoded:
    """The one place where text becomes ids."""
    if recipe.rendering is not None:
        rendered = [recipe.rendering(text) for text in texts]
        lengths = np.array([len(one.ids) for one in rendered], np.int64)
        ids = np.concatenate([one.ids for one in rendered]) if rendered else np.empty(0, np.int32)
        return Encoded(ids, lengths, [len(text.encode()) for text in texts], rendered)
    if recipe.cleaning:
        texts = [recipe.cleaning(text) for text in texts]
    encoded = recipe.encoder.encode_documents(texts)
    lengths = np.array([len(ids) for ids in encoded], np.int64)
    ids = np.fromiter(chain.from_iterable(encoded), np.int32, int(lengths.sum()))
    return Encoded(ids, lengths, [len(text.encode()) for text in texts])


def encode_pieces(pieces: Iterable[Piece], recipe: Recipe, *, processes: int) -> Generator[Document, None, None]:
    """The documents that `pieces` make up, in order, whatever the number of processes.

    Memory is bounded by the longest document (4 bytes a token) and a few tasks for each process.

    Raises InputError when a process is killed, or, after all that came before it, when `pieces` does.
    """
    yield from join(_in_order(tasks(pieces), recipe, processes))


def join(encoded_tasks: Iterable[tuple[Sequence[Origin | None], Encoded]]) -> Iterator[Document]:
    """The documents that consecutive tasks hold, each from all of its pieces."""
    held: list[Ids] = []
    size = 0
    for origins, encoded in encoded_tasks:
        ids_of_texts = np.split(encoded.ids, np.cumsum(encoded.lengths)[:-1])
        rendered: Sequence[Rendered | None] = encoded.rendered or [None] * len(ids_of_texts)
        for origin, ids, bytes_of_text, one in zip(origins, ids_of_texts, encoded.bytes, rendered, strict=True):
            held.append(ids)
            size += bytes_of_text
            if origin is not None:
                whole = held[0] if len(held) == 1 else np.concatenate(held)
                facts = () if one is None else (tuple(map(len, one.parts)), one.dropped, one.cut)
                yield Document(origin, whole, size, *facts)
                held, size = [], 0


class EncodingTask(NamedTuple):
    """What is encoded at a time: texts, and with each the origin of the document that ends with it."""

    texts: list[str]
    origins: list[Origin | None]


def tasks(pieces: Iterable[Piece]) -> Iterator[EncodingTask]:
    """Pieces put together to TASK_CHARACTERS. Raises InputError when `pieces` does, after all that came before it."""
    texts: list[str] = []
    origins: list[Origin | None] = []
    characters = 0
    failure: InputError | None = None
    try:
        for text, origin in pieces:
            texts.append(text)
            origins.append(origin)
            characters += len(text)
            if characters >= TASK_CHARACTERS:
                yield EncodingTask(texts, origins)
                texts, origins, characters = [], [], 0
    except InputError as error:  # what was read before is good
        failure = error
    if texts:
        yield EncodingTask(texts, origins)
    if failure is not None:
        raise failure


def _in_order(
    todo: Iterable[EncodingTask], recipe: Recipe, processes: int
) -> Iterator[tuple[list[Origin | None], Encoded]]:
    if processes == 1:
        for task in todo:
            yield task.origins, encode(recipe, task.texts)
        return
    # Spawned, not forked: the tokenizers library has threads, and locks held by a thread stay locked in a fork.
    pool = ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), _start_worker, (recipe,))
    waiting: deque[tuple[list[Origin | None], Future[Encoded]]] = deque()
    failure: InputError | None = None
    try:
        try:
            for task in todo:
                waiting.append((task.origins, pool.submit(_work, task.texts)))
                if len(waiting) > processes * _TASKS_AHEAD:
                    origins, future = waiting.popleft()
                    yield origins, future.result()
        except InputError as error:
            failure = error
        for origins, future in waiting:
            yield origins, future.result()
        if failure is not None:
            raise failure
    except BrokenProcessPool as error:
        raise InputError(
            f"--processes {processes}: one of the processes was killed, most likely for want of memory; give fewer"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


_recipe: Recipe  # of a worker process


def _start_worker(recipe: Recipe) -> None:
    global _recipe
    _recipe = recipe
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the main process, which then ends the pool
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A killed main process tells its workers nothing: they would wait for work forever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _work(texts: list[str]) -> Encoded:
    return encode(_recipe, texts)
