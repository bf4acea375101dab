"""Where a config comes from: one file, or several files and flags laid over each other."""

from __future__ import annotations

from collections.abc import Mapping


class Source(str):
    """The source of a config laid over others, as text for messages.

    Attributes:
        origins: the source of each key: a file, or what a caller calls itself, such as `--set`.
        file: the uppermost file.
    """

    origins: Mapping[str, str]
    file: str

    def __new__(cls, text: str, origins: Mapping[str, str] | None = None, file: str = "") -> Source:
        source = super().__new__(cls, text)
        source.origins, source.file = dict(origins or {}), file
        return source

    def of(self, key: str) -> str:
        """The source of one key."""
        return self.origins.get(key, str(self))


def source_of(source: str, key: str) -> str:
    """The source of one key, for messages."""
    return source.of(key) if isinstance(source, Source) else source


def file_of(source: str) -> str:
    """The file of a config; the uppermost of several."""
    return source.file if isinstance(source, Source) else source
