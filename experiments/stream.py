"""Follows what a run writes: rows of `metrics.jsonl` and `eval.jsonl`, each once and in order, and new files.

A resumed run drops the rows after its checkpoint and writes these steps again (`JsonLines.rewind`), so a row is
identified by its step and task, not by its place in the file.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator

from gpt_mesh.storage import files as storage
from gpt_mesh.storage.json_lines import JsonLines, Row

# Numbers in a row that are not metrics: its step, and how much was scored, which never changes.
COUNTS = ("step", "tokens", "bytes", "detokenized_bytes", "words", "articles", "passages", "truncated", "stride")


class RowStream:
    """The rows of one file that are new since the last look."""

    def __init__(self, path: str, after: int | None) -> None:
        """`after`: the step from which the run continues, -1 for a new run; rows up to it are old. None: all present
        rows are old, and every appended row is new, even if its step is not.
        """
        self._path = path
        old = _rows(path)
        self._appended = None if after is not None else len(old)
        if after is None:
            after = max((row["step"] for row in old), default=-1)
        self._seen = {_key(row) for row in old if row["step"] <= after}
        # The file has rows of an earlier run that this one will write again, perhaps with other values.
        self._before = _stat(path) if any(row["step"] > after for row in old) else None
        self._stat: storage.FileStat | None = None
        self._end, self.grew = _end(old), False

    def new(self) -> list[Row]:
        """Rows not returned before, in the file's order. Sets `grew`: whether rows were written since the last look,
        including rows that were reported before.
        """
        self.grew = False
        stat = _stat(self._path)
        if stat is None or stat in (self._stat, self._before):
            return []
        self._before, self._stat = None, stat
        rows = _rows(self._path)
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
        """The run restarts from this step and will write the rows after it again."""
        self._end = min(self._end, step)


class FileStream:
    """Files of a folder that are new or changed since the last look."""

    def __init__(self, folder: str, wanted: Callable[[str], bool]) -> None:
        self._folder, self._wanted = folder, wanted
        self._known = dict(self._scan())

    def new(self) -> list[str]:
        """Their paths, sorted by name."""
        changed = [(path, stat) for path, stat in self._scan() if self._known.get(path) != stat]
        self._known.update(changed)
        return [path for path, _ in changed]

    def _scan(self) -> Iterator[tuple[str, storage.FileStat | None]]:
        for name in storage.list_folder(self._folder):
            if self._wanted(name):
                path = os.path.join(self._folder, name)
                if (stat := _stat(path)) is not None:
                    yield path, stat


def newest_checkpoint(directory: str) -> int:
    """The step from which a run in this directory would continue; -1 if it has no checkpoint."""
    names = set(storage.list_folder(directory))
    steps = {int(match[1]) for name in names if (match := re.fullmatch(r"model\.ckpt-(\d+)\.index", name))}
    try:
        content = storage.read_bytes(os.path.join(directory, "checkpoint")).decode("utf-8", "replace")
    except storage.errors():
        content = ""
    named = re.search(r'model_checkpoint_path: "[^"]*model\.ckpt-(\d+)"', content)
    if named is not None and int(named[1]) in steps:
        return int(named[1])
    return max(steps, default=-1)


def _end(rows: list[Row]) -> int:
    return int(rows[-1]["step"]) if rows else -1


def _key(row: Row) -> tuple[int, str]:
    return row["step"], str(row.get("task", ""))


def _rows(path: str) -> list[Row]:
    try:
        return JsonLines(path).rows()
    except storage.errors():  # read again at the next look
        return []


def _stat(path: str) -> storage.FileStat | None:
    try:
        return storage.stat(path)
    except storage.errors():
        return None
