"""Follows what a run writes: rows of `metrics.jsonl` and `eval.jsonl`, each once and in order, and new files.

A resumed run takes its files back to its checkpoint and writes the steps after it again (`JsonLines.rewind`), so a row
is known by its step (and task), not by its place in the file.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from typing import Any

from gpt_mesh.storage import files as storage

Row = dict[str, Any]
# Numbers in a row that say where it stands and how much was scored, which is the same each time: no metrics.
COUNTS = ("step", "tokens", "bytes", "detokenized_bytes", "words", "articles", "passages", "truncated", "stride")


class Rows:
    """The rows of one file that are new since the last look."""

    def __init__(self, path: str, after: int | None) -> None:
        """`after`: the step from which the run goes on, -1 for a new one: rows up to it were there before. None: all
        that is there was there before, and what is appended is new even where its step is not.
        """
        self._path = path
        old = list(_rows(_read(path)))
        self._appended = None if after is not None else len(old)
        if after is None:
            after = max((row["step"] for row in old), default=-1)
        self._seen = {_key(row) for row in old if row["step"] <= after}
        # Rows of an earlier run that this one is going to write again, and maybe with other values.
        self._before = _stat(path) if any(row["step"] > after for row in old) else None
        self._stat: storage.FileStat | None = None
        self._end, self.grew = _end(old), False

    def new(self) -> list[Row]:
        """Rows not returned before, in the file's order. `grew` says whether rows were written since the last look,
        those included that were there before and are written again.
        """
        self.grew = False
        stat = _stat(self._path)
        if stat is None or stat in (self._stat, self._before):
            return []
        self._before, self._stat = None, stat
        rows = list(_rows(_read(self._path)))
        if self._appended is not None:
            found, self._appended = rows[self._appended :], len(rows)
        else:
            found = []
            for row in rows:
                if _key(row) not in self._seen:
                    self._seen.add(_key(row))
                    found.append(row)
        self.grew, self._end = bool(found) or _end(rows) > self._end, _end(rows)
        return found

    def rewound(self, step: int) -> None:
        """The run begins again at that step: rows after it in a file that has changed since are written anew."""
        self._end = min(self._end, step)


class Files:
    """Files of a folder that are new, or written again, since the last look."""

    def __init__(self, folder: str, wanted: Callable[[str], bool]) -> None:
        self._folder, self._wanted = folder, wanted
        self._names: frozenset[str] = frozenset()
        self._known = dict(self._scan())
        self.changed = False

    def new(self) -> list[str]:
        """Paths, sorted by name. `changed` says whether there are any, or other names in the folder, wanted or not."""
        names = self._names
        changed = [(path, stat) for path, stat in self._scan() if self._known.get(path) != stat]
        self._known.update(changed)
        self.changed = bool(changed) or names != self._names
        return [path for path, _ in changed]

    def _scan(self) -> Iterator[tuple[str, storage.FileStat | None]]:
        names = storage.list_folder(self._folder)
        self._names = frozenset(names)
        for name in names:
            if self._wanted(name):
                path = os.path.join(self._folder, name)
                if (stat := _stat(path)) is not None:
                    yield path, stat


def parse_row(line: str) -> Row | None:
    """A line of metrics.jsonl or eval.jsonl; None if it is no whole row."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and isinstance(row.get("step"), int) else None


def newest_checkpoint(directory: str) -> int:
    """The step from which a run in this directory would go on; -1 if it has no checkpoint."""
    names = set(storage.list_folder(directory))
    steps = {int(match[1]) for name in names if (match := re.fullmatch(r"model\.ckpt-(\d+)\.index", name))}
    named = re.search(r'model_checkpoint_path: "[^"]*model\.ckpt-(\d+)"', _read(os.path.join(directory, "checkpoint")))
    if named is not None and int(named[1]) in steps:
        return int(named[1])
    return max(steps, default=-1)


def _end(rows: list[Row]) -> int:
    return int(rows[-1]["step"]) if rows else -1


def _key(row: Row) -> tuple[int, str]:
    return row["step"], str(row.get("task", ""))


def _rows(content: str) -> Iterator[Row]:
    """The whole rows; the last line may be in the writing, and one that a kill cut off is none."""
    for line in content.splitlines(keepends=True):
        if not line.endswith("\n"):
            return
        row = parse_row(line)
        if row is not None:
            yield row


def _read(path: str) -> str:
    try:
        with storage.open_binary(path) as file:
            return file.read().decode("utf-8", "replace")
    except storage.errors():
        return ""


def _stat(path: str) -> storage.FileStat | None:
    try:
        return storage.stat(path)
    except storage.errors():
        return None
