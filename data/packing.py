"""Several samples in one window: which documents share one."""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gpt_mesh.data.permutation import derive_key, permute

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Packing:
    """Windows of whole documents.

    Attributes:
        documents: their numbers, window after window, int64 [documents].
        columns: where each begins in its window, int64 [documents].
        first: for each window the place of its first document in these arrays; the last entry is their length: int64
            [windows + 1].
    """

    documents: Ints
    columns: Ints
    first: Ints

    @property
    def n_windows(self) -> int:
        return len(self.first) - 1


def one_each(lengths: Ints) -> Packing:
    """A window for each document."""
    numbers = np.arange(len(lengths) + 1, dtype=np.int64)
    return Packing(numbers[:-1], np.zeros(len(lengths), np.int64), numbers)


def packed(lengths: Ints, width: int, name: str, seed: int) -> Packing:
    """Documents put into as few windows as best-fit decreasing finds: the longest first, each into the fullest window
    that has room (Johnson et al., 1974, doi:10.1137/0203025). Among equally long ones, a hash of `name` and `seed`
    decides.

    Args:
        lengths: of the documents, int64 [documents], each from 1 to `width`.
        width: of a window.
    """
    assert len(lengths) and lengths.min() > 0 and lengths.max() <= width
    shuffled = permute(np.arange(len(lengths), dtype=np.int64), len(lengths), derive_key("packing", seed, name))
    order = shuffled[np.argsort(-lengths[shuffled], kind="stable")]
    windows: list[list[int]] = []
    free: list[int] = []  # the amounts of room that windows have, ascending
    with_room: dict[int, list[int]] = {}  # windows by their room
    for document in order.tolist():
        length = int(lengths[document])
        place = bisect_left(free, length)
        if place == len(free):
            number, room = len(windows), width
            windows.append([])
        else:
            room = free[place]
            number = with_room[room].pop()
            if not with_room[room]:
                del with_room[room], free[place]
        windows[number].append(document)
        if left := room - length:
            if left not in with_room:
                insort(free, left)
                with_room[left] = []
            with_room[left].append(number)
    documents = np.fromiter((x for window in windows for x in window), np.int64, len(lengths))
    first = np.cumsum([0, *map(len, windows)]).astype(np.int64)
    ends = np.cumsum(lengths[documents])
    before = np.concatenate([[0], ends])[first[:-1]]
    columns = ends - lengths[documents] - np.repeat(before, np.diff(first))
    return Packing(documents, columns, first)
