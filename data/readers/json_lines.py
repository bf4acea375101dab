"""JSON lines: a record a line."""

from __future__ import annotations

import io
import itertools
import json
import re
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar

from gpt_mesh.data.readers.blocks import MARK, without_mark
from gpt_mesh.data.readers.reader import Content, Documents, Evidence, ReadContent, Reader, Reading
from gpt_mesh.data.readers.values import document_of
from gpt_mesh.errors import InputError

_OBJECT = re.compile(rb'\{\s*"')
_KEY = re.compile(rb'"[^"\\]*"\s*:')
_LINES_SHOWN = 4  # looked at to tell what a file is


class JsonLinesReader(Reader):
    """An object with the text under a field, or a string, on each line. Blank lines are none."""

    name: ClassVar[str] = "jsonl"
    endings: ClassVar[tuple[str, ...]] = (".jsonl", ".ndjson")

    def evidence(self, head: bytes, whole: bool) -> Evidence:
        """The first line that is not blank decides. It is doubtful when a text may begin so, too: a line in quotation
        marks, an object that does not end, or text before lines of objects.
        """
        first, *others = _first_lines(head) or [b""]
        if first.startswith(b"[") or not first:
            return Evidence.NO  # an array is another reader's
        if b"\n" not in without_mark(head) and not whole:  # a line that goes on after `head`
            return Evidence.YES if _OBJECT.match(first) else Evidence.NO
        value = _value(first)
        if isinstance(value, dict):
            return Evidence.YES
        objects = any(isinstance(_value(line), dict) for line in others)
        indented = first == b"{" and bool(others) and bool(_KEY.match(others[0]))
        doubtful = isinstance(value, str) or _OBJECT.match(first) or objects or indented
        return Evidence.DOUBTFUL if doubtful else Evidence.NO

    def documents(self, content: Content, reading: Reading, read_inner: ReadContent) -> Documents:
        for number, line in enumerate(_lines(content.blocks), start=1):
            line = line.removeprefix(MARK)  # also inside: files that were joined have it where each begins
            if line.strip():
                where = f"{content.where}: line {number}"
                yield document_of(_parsed(line, where, reading), where, reading)


def _first_lines(head: bytes) -> list[bytes]:
    """The first lines that are not blank, without white space around them. The end of `head` may cut off the last."""
    lines = (without_mark(line).rstrip() for line in io.BytesIO(head))
    return list(itertools.islice(filter(None, lines), _LINES_SHOWN))


def _value(line: bytes) -> Any:
    """What a line is in JSON; None where it is none."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _lines(blocks: Iterable[bytes]) -> Iterator[bytes]:
    held: list[bytes] = []
    for block in blocks:
        first, *rest = block.split(b"\n")
        held.append(first)
        if rest:
            yield b"".join(held)
            yield from rest[:-1]
            held = rest[-1:]
    yield b"".join(held)


def _parsed(line: bytes, where: str, reading: Reading) -> Any:
    try:
        return json.loads(line.decode("utf-8", reading.errors))
    except UnicodeDecodeError as error:
        remedy = f"convert it{reading.recommend('--errors replace')}"
        raise InputError(f"{where}: byte {error.start} of it is not UTF-8; {remedy}") from error
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise InputError(
            f"{where}: is not JSON ({reason}); each line must be an object with a field {reading.text_key}"
        ) from error
