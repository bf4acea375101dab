"""From bytes, and from values of records, to the text of a document."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from gpt_mesh.errors import InputError

Errors = Literal["strict", "replace"]

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_PARAGRAPH_BREAK = "\n\n"  # what lm_dataformat joins paragraphs with


@dataclass(frozen=True)
class Reading:
    """How the bytes of a file become text.

    text_key: field or column that holds the text; `a.b` is field b of field a, unless a field has that very name.
    errors: what happens to bytes that are not UTF-8, to NUL bytes, and to lone surrogates in JSON: "strict" stops,
    "replace" puts U+FFFD. by_flags: the user has flags for these (--text_key, --errors), which messages may advise.
    """

    text_key: str = "text"
    errors: Errors = "strict"
    by_flags: bool = False

    @property
    def or_replace(self) -> str:
        """What else can be done about bytes that are no text."""
        return ", or use --errors replace" if self.by_flags else ""


AS_IT_STANDS = Reading()
"""The field `text`, and nothing that is not UTF-8."""


def decoded(name: str, blocks: Iterable[bytes], reading: Reading) -> Iterator[str]:
    """Text of UTF-8 bytes, block by block. Raises InputError naming the first byte that is none.

    A NUL byte is no text either: it is what UTF-16, binary files, and files that a full disk cut short are full of.
    """
    decoder = codecs.getincrementaldecoder("utf-8")(reading.errors)
    read = 0
    try:
        for block in blocks:
            nul = block.find(b"\0") if reading.errors == "strict" else -1
            part = block if nul < 0 else block[:nul]
            read += len(part)
            text = decoder.decode(part, final=nul >= 0)
            if nul >= 0:
                raise InputError(
                    f"{name}: byte {read} is NUL, as in UTF-16 or binary files; convert the file to UTF-8"
                    f"{reading.or_replace}"
                )
            yield text.replace("\0", _REPLACEMENT) if reading.errors == "replace" else text
        yield decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        # error.object also has the bytes that an earlier block left over.
        at = read - len(error.object) + error.start
        raise InputError(f"{name}: byte {at} is not UTF-8; convert the file{reading.or_replace}") from error


def utf8(value: Any, where: str, reading: Reading) -> Any:
    """A record with text in place of its bytes. Raises InputError when they are not UTF-8."""
    if isinstance(value, dict):
        return {key: utf8(field, where, reading) for key, field in value.items()}
    if isinstance(value, list):
        return [utf8(item, where, reading) for item in value]
    if not isinstance(value, bytes):
        return value
    try:
        return value.decode("utf-8", reading.errors)
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: byte {error.start} of it is not UTF-8; mend it{reading.or_replace}") from error


def text_of(record: Any, where: str, reading: Reading) -> str:
    """The text of one record: a string, or an object with a string (or list of paragraphs) under `text_key`."""
    value = record if isinstance(record, str) else _field(record, where, reading)
    if isinstance(value, list) and all(isinstance(part, str) for part in value):
        value = _PARAGRAPH_BREAK.join(value)
    if not isinstance(value, str):
        kind = "null" if value is None else type(value).__name__
        raise InputError(f"{where}: its field {reading.text_key} is no string but {kind}{_or_text_key(reading)}")
    return _without_surrogates(value, where, reading)


def _field(record: Any, where: str, reading: Reading) -> Any:
    key = reading.text_key
    if not isinstance(record, dict):
        raise InputError(f'{where}: is neither a string nor an object such as {{"{key}": "…"}}')
    if key in record:
        return record[key]
    value: Any = record
    for part in key.split("."):
        if not isinstance(value, dict) or part not in value:
            raise InputError(f"{where}: has no field {key}, but {_names(record)}{_or_text_key(reading)}")
        value = value[part]
    return value


def _names(record: dict[str, Any]) -> str:
    shown = ", ".join(sorted(map(str, record))[:8])
    return (shown if len(shown) < 200 else f"{shown[:200]}…") or "no field at all"


def _or_text_key(reading: Reading) -> str:
    return "; name the field with --text_key" if reading.by_flags else ""


def _without_surrogates(text: str, where: str, reading: Reading) -> str:
    """JSON can write half of a character: "\\ud83d"."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        if reading.errors == "strict":
            reason = f"character {error.start} of its text is a lone surrogate"
            raise InputError(f"{where}: {reason}; mend it{reading.or_replace}") from error
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
