"""Text that every machine with Python has: the sources of the standard library, split into training and held-out files.

Excluded: tests and vendored packages (missing on some systems), `encodings` (its tables are near-copies, so a held-out
one would already be in the training text), `pydoc_data` (prose generated from the manual), generated build settings,
files that are not UTF-8, files under 1,000 bytes (mostly a docstring), and second copies of a file.
"""

from __future__ import annotations

import hashlib
import os
import sysconfig
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from gpt_mesh.errors import InputError

HELD_OUT_SHARE = 0.05
SMALLEST = 1000
_ENOUGH = 2_000_000  # bytes in all
_OTHERS_CODE = {"site-packages", "dist-packages", "_bundled"}
_LEFT_OUT = {*_OTHERS_CODE, "__pycache__", "test", "tests", "idle_test", "lib2to3", "encodings", "pydoc_data"}


@dataclass(frozen=True)
class Source:
    """One file: its path inside the standard library, with forward slashes, and its content."""

    name: str
    content: bytes


def find_sources(folder: str | None = None) -> list[Source]:
    """The files of the running interpreter's standard library (or of `folder`), in an order of their names' hashes.

    Raises InputError when the standard library is there without its sources, as in some packaged Pythons.
    """
    root = folder or sysconfig.get_path("stdlib")
    found: dict[bytes, Source] = {}
    for path in sorted(_python_files(root)):
        content = path.read_bytes()
        if len(content) >= SMALLEST and _is_utf8(content):
            found.setdefault(content, Source(path.relative_to(root).as_posix(), content))
    if folder is None and (size := sum(map(len, found))) < _ENOUGH:
        raise InputError(f"{root}: has only {size:,} bytes of Python sources; run the demo with another Python")
    return sorted(found.values(), key=lambda source: hashlib.sha256(source.name.encode()).digest())


def _python_files(root: str) -> Iterable[Path]:
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [name for name in subfolders if name not in _LEFT_OUT]
        for name in names:
            if name.endswith(".py") and not name.startswith("_sysconfigdata"):
                yield Path(folder, name)


def _is_utf8(content: bytes) -> bool:
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return True


def split(sources: Sequence[Source]) -> tuple[list[Source], list[Source]]:
    """Training and held-out files: held out are, in the given order, those that fit in HELD_OUT_SHARE of the bytes."""
    room = HELD_OUT_SHARE * sum(len(source.content) for source in sources)
    training, held_out = [], []
    for source in sources:
        if len(source.content) <= room:
            room -= len(source.content)
            held_out.append(source)
        else:
            training.append(source)
    return training, held_out


def repeated_share(training: Iterable[Source], held_out: Iterable[Source]) -> float:
    """Share of the held-out lines of 20 characters or more that are in the training text too, word for word."""
    seen = {line for source in training for line in _long_lines(source)}
    lines = [line for source in held_out for line in _long_lines(source)]
    return sum(line in seen for line in lines) / max(1, len(lines))


def _long_lines(source: Source) -> list[bytes]:
    return [line for line in map(bytes.strip, source.content.splitlines()) if len(line) >= 20]


def write(sources: Iterable[Source], folder: Path) -> int:
    """Copy the files, with their subfolders, into `folder`; returns how many bytes they have."""
    written = 0
    for source in sources:
        path = folder / source.name
        path.parent.mkdir(parents=True, exist_ok=True)
        written += path.write_bytes(source.content)
    return written
