"""The one exception that means "what the user gave cannot work", and how messages show a path."""

from __future__ import annotations

import os


class InputError(ValueError):
    """A config, file or flag value that cannot work.

    `str(error)` is one line naming the file, the key, the value and the remedy. The command line prints it to standard
    error and exits with status 1; any other exception is a defect of this program and keeps its traceback.
    """

    def __str__(self) -> str:
        """One line of bounded length, even where it quotes a name with line breaks, or one of megabytes."""
        text = super().__str__()
        text = text if len(text) <= 4000 else f"{text[:2000]} … {text[-1000:]}"
        return text.replace("\r", "\\r").replace("\n", "\\n")


def shown(path: str | os.PathLike[str]) -> str:
    """A path as messages show it: from the root of the file system, so that it can be copied anywhere, on one line.
    URLs (`gs://bucket/file`) and "-" stay as they are. Idempotent.
    """
    text = os.fspath(path)
    if "://" not in text and text != "-":
        text = os.path.abspath(text)
    return text if text.isprintable() else ascii(text)[1:-1]
