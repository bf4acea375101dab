"""Finding the files of a corpus."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Iterator, Sequence

from gpt_mesh.data.junk import LeftOut, is_junk
from gpt_mesh.errors import InputError, shown
from gpt_mesh.storage import files as storage

FILE_TYPES = ("txt", "jsonl", "ndjson", "gz", "xz", "bz2", "zst", "zip", "tar", "tgz", "parquet")
"""Endings looked for in a folder when none are asked for. Not json: settings and tokenizers are .json files too."""


def find_files(pattern: str, file_types: Sequence[str] | None = None) -> list[str]:
    """Files of a corpus, sorted.

    pattern: a file, a folder (searched with its subfolders), or a glob of either. file_types: endings in any case and
    without their leading dot, such as `txt` or `py`; of a folder only such files are taken, FILE_TYPES when it is None.
    A glob is filtered only when types are given; a file that is named is taken whatever it is. Otherwise pipes, sockets
    and devices are left out, and so are files of the system's and of editors that are no documents, which are logged.

    Raises InputError when nothing is found, or a folder cannot be read.
    """
    if storage.exists(pattern) and not storage.is_folder(pattern):
        return [pattern]
    found: list[str] = []
    try:
        with LeftOut(pattern) as left_out:
            for match in [pattern] if storage.is_folder(pattern) else storage.glob(pattern):
                if storage.is_folder(match):
                    inside = _of_type(storage.walk(match), file_types or FILE_TYPES)
                else:
                    inside = _of_type([match], file_types) if file_types else [match]
                for path in inside:
                    name = path.removeprefix(match).lstrip("/") or os.path.basename(path)
                    if is_junk(name):
                        left_out.add(name)
                    else:
                        found.append(path)
    except storage.errors() as error:
        where = getattr(error, "filename", None) or pattern
        raise InputError(
            f"{shown(where)}: cannot be read: {storage.reason(error)}; make it readable, or take it away"
        ) from error
    found = sorted(path for path in _each_once(found) if not storage.is_special(path))
    if not found:
        types = ", ".join(f".{name.lstrip('.')}" for name in file_types or FILE_TYPES)
        raise InputError(f"{shown(pattern)}: no {types} file there; check the path, or ask for another --file_type")
    return found


def _of_type(paths: Iterable[str], file_types: Sequence[str]) -> list[str]:
    endings = tuple(f".{name.lstrip('.')}".lower() for name in file_types)
    return [path for path in paths if path.lower().endswith(endings)]


def _each_once(paths: Iterable[str]) -> Iterator[str]:
    """Each file under its shortest path, though symbolic links between folders may give it many."""
    real_folder = functools.cache(lambda folder: folder if storage.is_url(folder) else os.path.realpath(folder))
    seen = set()
    for path in sorted(set(paths), key=lambda path: (len(path), path)):
        folder, name = os.path.split(path)
        real = (real_folder(folder), name)
        if real not in seen:
            seen.add(real)
            yield path
