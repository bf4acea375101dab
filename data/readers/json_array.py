"""`.json` files: one array of records, or a record a line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, ClassVar

from gpt_mesh.data.readers.blocks import BlockReader, without_mark
from gpt_mesh.data.readers.json_lines import JsonLinesReader
from gpt_mesh.data.readers.reader import Content, Documents, Evidence, ReadContent, Reader, Reading
from gpt_mesh.data.readers.text import decoded
from gpt_mesh.data.readers.values import document_of
from gpt_mesh.errors import InputError

_HEAD_BYTES = 1 << 16
_SPACE = " \t\r\n"


class JsonArrayReader(Reader):
    """The items of its one array if it begins with `[`, else its lines."""

    name: ClassVar[str] = "json"
    endings: ClassVar[tuple[str, ...]] = (".json",)

    def evidence(self, head: bytes, whole: bool) -> Evidence:
        """Text may begin with a bracket, too: the items decide."""
        text = without_mark(head).decode("utf-8", "ignore").rstrip()
        if not text.startswith("["):
            return Evidence.NO
        records, end = _records_seen(text)
        inside, rest = text[1:].lstrip(), text[end:]
        if rest.startswith("]"):
            if rest[1:].strip():
                return Evidence.DOUBTFUL if records else Evidence.NO  # "[1] A footnote"
            return Evidence.YES if records or inside == "]" else Evidence.DOUBTFUL
        if records or (inside.startswith("{") and inside[1:].lstrip().startswith(('"', "}"))):
            return Evidence.DOUBTFUL if whole else Evidence.YES
        return Evidence.DOUBTFUL if inside.startswith('"') and not whole else Evidence.NO

    def documents(self, content: Content, reading: Reading, read_inner: ReadContent) -> Documents:
        reader = BlockReader(content.blocks)
        if without_mark(reader.peek(_HEAD_BYTES)).startswith(b"["):
            for number, record in enumerate(_items(content.where, decoded(content.where, reader, reading)), start=1):
                yield document_of(record, f"{content.where}: item {number}", reading)
        else:
            lines = Content(content.where, content.name, iter(reader))
            yield from JsonLinesReader().documents(lines, reading, read_inner)


def _records_seen(text: str) -> tuple[int, int]:
    """How many strings and objects follow the bracket that `text` begins with, and where the next thing begins.

    A number, as in "[1] a footnote", is no record.
    """
    decoder = json.JSONDecoder()
    found, at = 0, 1
    while True:
        at = _skip(text, at, _SPACE + ",")
        try:
            item, end = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            return found, at
        if isinstance(item, (str, dict)):
            found += 1
        at = end


def _items(where: str, blocks: Iterator[str]) -> Iterator[Any]:
    """Items of the array that `blocks` make up, each parsed as soon as it is whole."""
    decoder = json.JSONDecoder()
    held, at, opened = "", 0, False
    for block in blocks:
        held, at = held[at:] + block, 0
        while True:
            at = _skip(held, at, _SPACE if not opened else _SPACE + ",")
            if at == len(held):
                break
            if not opened:
                at, opened = at + 1, True  # the "[" that documents() saw
                continue
            if held[at] == "]":
                _check_end(where, held[at + 1 :], blocks)
                return
            try:
                item, at = decoder.raw_decode(held, at)
            except ValueError:
                break  # not whole yet, or no JSON: the end of the file tells
            except RecursionError as error:
                raise InputError(f"{where}: is nested too deeply; give strings, or objects with a text each") from error
            yield item
    reason = "is cut off" if held[at:] else "is cut off after an item"
    try:
        decoder.raw_decode(held, at)
    except ValueError as error:
        reason = f"is no JSON array, or cut off ({error.args[0].partition(':')[0]})"
    raise InputError(f"{where}: {reason}; get the file again")


def _skip(text: str, at: int, characters: str) -> int:
    while at < len(text) and text[at] in characters:
        at += 1
    return at


def _check_end(where: str, rest: str, blocks: Iterator[str]) -> None:
    if rest.strip() or any(block.strip() for block in blocks):
        raise InputError(f"{where}: goes on after its array; a .json file holds one array, or an object a line")
