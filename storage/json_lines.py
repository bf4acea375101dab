"""Files of one JSON object a line, each with a `step`: `metrics.jsonl`, `eval.jsonl`.

People edit such files, and a kill can cut off a line. So lines end at a newline byte only (other programs may leave
U+2028 inside a string), each line is decoded by itself, and a line that is not a row stays in the file.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from gpt_mesh.errors import shown
from gpt_mesh.storage import files, heartbeat, strict_json
from gpt_mesh.storage.progress import log

Row = dict[str, Any]

_reported: set[tuple[str, bytes]] = set()


class JsonLines:
    """A file of rows that can be appended to, read, and rewound to an earlier step. It need not exist."""

    def __init__(self, path: str) -> None:
        self.path = path

    def rows(self) -> list[Row]:
        """The rows. The first line that is not a row causes a warning, once; a truncated last line does not."""
        return [row for _, row in self._lines() if row is not None]

    def rewind(self, step: int) -> None:
        """Drop rows of later steps, and a last line that a kill cut off: a resumed run writes them again."""
        content = self._content()
        kept = b"".join(line + b"\n" for line, row in self._lines() if row is None or row["step"] <= step)
        if kept != content:
            files.write_bytes(self.path, kept)

    def append(self, row: Mapping[str, Any]) -> None:
        """Add a row. If a kill truncated the line before it, that line is kept as it is."""
        line = strict_json.dumps(dict(row)).encode() + b"\n"
        if files.exists(self.path) and (size := files.stat(self.path).size):
            with files.open_binary(self.path) as file:
                file.seek(size - 1)
                line = line if file.read(1) == b"\n" else b"\n" + line
        with files.append_binary(self.path) as file:
            file.write(line)
        heartbeat.worked()

    def _content(self) -> bytes:
        return files.read_bytes(self.path) if files.exists(self.path) else b""

    def _lines(self) -> Iterator[tuple[bytes, Row | None]]:
        """Lines without their ends, with the row in each, without a last line that is cut off."""
        *lines, last = self._content().split(b"\n")
        malformed = []
        for number, line in enumerate(lines, 1):
            row = parse_row(line)
            if row is None and line.strip():
                malformed.append((number, line))
            yield line, row
        if (row := parse_row(last)) is not None:
            yield last, row
        if malformed and (self.path, malformed[0][1]) not in _reported:
            number, line = malformed[0]
            _reported.add((self.path, line))
            more = f", nor are {len(malformed) - 1} more" if len(malformed) > 1 else ""
            log.warning(
                "%s: line %d is not a row of JSON with a step%s: ignored, and kept", shown(self.path), number, more
            )


def parse_row(line: bytes) -> Row | None:
    """The row in a line; None if it is incomplete."""
    try:
        row = json.loads(line.decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return None
    sound = isinstance(row, dict) and isinstance(row.get("step"), int) and not isinstance(row["step"], bool)
    return row if sound else None
