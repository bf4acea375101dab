"""Finding the files of a corpus."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from data import storage
from errors import InputError

FILE_TYPES = ("txt", "jsonl", "gz", "xz", "bz2", "zst", "zip", "tar", "tgz", "parquet")
"""Endings looked for in a folder when none are asked for."""


def find_files(pattern: str, file_types: Sequence[str] | None = None) -> list[str]:
    """Files of a corpus, sorted.

    pattern: a file, a folder (searched with its subfolders), or a glob of either. file_types: endings without their
    leading dot, such as `txt` or `py`; of a folder only such files are taken, FILE_TYPES when it is None. A glob is
    filtered only when types are given; a file that is named is taken whatever it is.

    Raises InputError when nothing is found.
    """
    if storage.is_folder(pattern):
        found = _of_type(storage.walk(pattern), file_types or FILE_TYPES)
    elif storage.exists(pattern):
        found = [pattern]
    else:
        found = []
        for match in storage.glob(pattern):
            if storage.is_folder(match):
                found += _of_type(storage.walk(match), file_types or FILE_TYPES)
            else:
                found += _of_type([match], file_types) if file_types else [match]
    if not found:
        types = ", ".join(f".{name.lstrip('.')}" for name in file_types or FILE_TYPES)
        raise InputError(f"{pattern}: no {types} file there; check the path, or ask for another --file_type")
    return sorted(set(found))


def _of_type(paths: Iterable[str], file_types: Sequence[str]) -> list[str]:
    endings = tuple(f".{name.lstrip('.')}" for name in file_types)
    return [path for path in paths if path.endswith(endings)]
