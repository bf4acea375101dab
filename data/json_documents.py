"""Documents in JSON: a record a line, or one array of records."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

from gpt_mesh.data.archives import BlockReader
from gpt_mesh.data.text import Reading, decoded, text_of
from gpt_mesh.errors import InputError

_HEAD_BYTES = 1 << 16
_SPACE = " \t\r\n"
_OBJECT = re.compile(rb'\s*\{\s*"')


def lines(name: str, blocks: Iterable[bytes], reading: Reading) -> Iterator[str]:
    """The text of each line; empty lines are none. Raises InputError naming the line (from 1) that has none."""
    for number, line in enumerate(_lines(blocks), start=1):
        if line.strip():
            where = f"{name}: line {number}"
            yield text_of(_parsed(line, where, reading), where, reading)


def lines_or_array(name: str, blocks: Iterable[bytes], reading: Reading) -> Iterator[str]:
    """The text of each record of a `.json` file: of its one array if it begins with `[`, else of its lines."""
    reader = BlockReader(blocks)
    if reader.peek(_HEAD_BYTES).lstrip().startswith(b"["):
        for number, record in enumerate(_items(name, decoded(name, reader, reading)), start=1):
            yield text_of(record, f"{name}: item {number}", reading)
    else:
        yield from lines(name, reader, reading)


def begins_with_object(head: bytes, whole: bool) -> bool:
    """Whether a file that begins so has a JSON object as its first line. whole: there is no more of it than `head`.

    A first line that goes on after `head` is judged by its beginning.
    """
    first, end, _ = head.partition(b"\n")
    if not (end or whole):
        return _OBJECT.match(first) is not None
    try:
        return first.lstrip().startswith(b"{") and isinstance(json.loads(first), dict)
    except (ValueError, RecursionError):
        return False


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
        raise InputError(f"{where}: byte {error.start} of it is not UTF-8; convert it{reading.or_replace}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{where}: is not JSON ({error}); each line must be an object with a field {reading.text_key}"
        ) from error


def _items(name: str, blocks: Iterator[str]) -> Iterator[Any]:
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
                at, opened = at + 1, True  # the "[" that lines_or_array() saw
                continue
            if held[at] == "]":
                _check_end(name, held[at + 1 :], blocks)
                return
            try:
                item, at = decoder.raw_decode(held, at)
            except ValueError:
                break  # not whole yet, or no JSON: the end of the file tells
            except RecursionError as error:
                raise InputError(f"{name}: is nested too deeply; give strings, or objects with a text each") from error
            yield item
    reason = "is cut off" if held[at:] else "is cut off after an item"
    try:
        decoder.raw_decode(held, at)
    except ValueError as error:
        reason = f"is no JSON array, or cut off ({error.args[0].partition(':')[0]})"
    raise InputError(f"{name}: {reason}; get the file again")


def _skip(text: str, at: int, characters: str) -> int:
    while at < len(text) and text[at] in characters:
        at += 1
    return at


def _check_end(name: str, rest: str, blocks: Iterator[str]) -> None:
    if rest.strip() or any(block.strip() for block in blocks):
        raise InputError(f"{name}: goes on after its array; a .json file holds one array, or an object a line")
