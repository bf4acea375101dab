"""Files that operating systems and editors leave beside documents, and that are none."""

from __future__ import annotations

import re
from types import TracebackType

from gpt_mesh.errors import shown
from gpt_mesh.storage.progress import log

_FOLDERS = {"__MACOSX", ".ipynb_checkpoints", ".AppleDouble"}
_FILES = {".ds_store", "thumbs.db", "desktop.ini"}
# macOS's attributes; back-ups, locks and swap files of Emacs, Vim, gedit, nano and Office.
_NAMES = re.compile(r"\._.*|.*~|#.*#|\.#.*|~\$.*|\..*\.sw[a-p]|.*\.(bak|orig|swp)", re.IGNORECASE | re.DOTALL)
_SHOWN = 3


def is_junk(path: str) -> bool:
    """Whether a path in a folder or an archive is such a file, by its name or that of a folder that it lies in."""
    *folders, name = path.replace("\\", "/").split("/")
    return not _FOLDERS.isdisjoint(folders) or name.lower() in _FILES or _NAMES.fullmatch(name) is not None


class LeftOut:
    """Counts the files of a folder or an archive that are left out, and logs how many, once all of it was seen."""

    def __init__(self, where: str) -> None:
        self._where, self._count, self._names = where, 0, list[str]()

    def add(self, name: str) -> None:
        """Count a file."""
        self._count += 1
        if len(self._names) < _SHOWN:
            self._names.append(ascii(name)[1:-1])

    def __enter__(self) -> LeftOut:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._count and error is None:
            names = ", ".join(self._names) + (", …" if self._count > _SHOWN else "")
            files = "file that is no document" if self._count == 1 else "files that are no documents"
            log.info("%s: left out %s %s: %s", shown(self._where), f"{self._count:,}", files, names)
