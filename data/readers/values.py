"""From the values of records to the text of a document."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from gpt_mesh.data.readers.reader import Reading
from gpt_mesh.data.readers.roles import FIELDS, record_text
from gpt_mesh.errors import InputError

_PARAGRAPH_BREAK = "\n\n"  # lm_dataformat joins paragraphs with it


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
        remedy = f"correct it{reading.recommend('--errors replace')}"
        raise InputError(f"{where}: byte {error.start} of it is not UTF-8; {remedy}") from error


def document_of(record: Any, where: str, reading: Reading) -> list[str] | None:
    """The document of a record, as one block; None where its text is null and `reading.skip_null` is set."""
    text = text_of(record, where, reading)
    return None if text is None else [text]


def text_of(record: Any, where: str, reading: Reading) -> str | None:
    """The text of a record: a string, or an object with a string (or list of paragraphs) under `text_key`.

    None where it is null and `reading.skip_null` is set.

    Raises:
        InputError: there is no such text; `where` names the record.
    """
    if reading.records != "text":
        return record_text(record, reading.records, where, skip_unusable=reading.skip_unusable)
    value = record if isinstance(record, str) or record is None else _field(record, where, reading)
    if isinstance(value, list) and all(isinstance(part, str) for part in value):
        value = _PARAGRAPH_BREAK.join(value)
    if value is None:
        if reading.skip_null:
            return None
        remedy = "give it a text, or leave the record out"
        raise InputError(f"{where}: its field {reading.text_key} is null; {remedy}{_skip_null(reading)}")
    if not isinstance(value, str):
        kind = type(value).__name__
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
        if value is None:
            return None
        if not isinstance(value, dict) or part not in value:
            raise InputError(f"{where}: has no field {key}, but {_names(record)}{_or_text_key(reading, record)}")
        value = value[part]
    return value


def _names(record: dict[str, Any]) -> str:
    shown = ", ".join(sorted(map(str, record))[:8])
    return (shown if len(shown) < 200 else f"{shown[:200]}…") or "no field at all"


def _or_text_key(reading: Reading, names: Iterable[str] = ()) -> str:
    if not reading.by_flags:
        return ""
    there = set(names)
    for kind, forms in FIELDS.items():
        if any(there >= {name for name in form if not name.endswith("?")} for form in forms):
            return f"; name the field with --text_key, or give --records {kind}"
    return "; name the field with --text_key"


def _skip_null(reading: Reading) -> str:
    return " with --skip_null" if reading.by_flags else ""


def _without_surrogates(text: str, where: str, reading: Reading) -> str:
    """JSON can write half of a character: "\\ud83d"."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        if reading.errors == "strict":
            reason = f"character {error.start} of its text is a lone surrogate"
            raise InputError(f"{where}: {reason}; correct it{reading.recommend('--errors replace')}") from error
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
