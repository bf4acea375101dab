"""The words of a refusal: file, key, value, problem and remedy, on one line."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

from gpt_mesh.config.source import source_of
from gpt_mesh.errors import InputError


class Refused(ValueError):
    """Why a value cannot work and what would, without the file and the key, which the caller knows."""


def refuse(source: str, name: str, value: Any, problem: str) -> NoReturn:
    """Raises the one-line InputError of a key. A `value` of None is not shown.

    `source`: of the config; if that is several files, the one that has the key is named.
    """
    source = source_of(source, name)
    key = show(name).strip('"')
    given = "" if value is None else f" = {show(value)}"
    raise InputError(f"{one_line(source)}: {key}{given}: {problem}")


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean …?` for the known name nearest to `name`, or nothing when none is near."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]}?" if near else ""


def one_of(name: str, known: Sequence[str], what: str) -> Refused:
    """The refusal of a name that is not in `known`."""
    listed = ", ".join(known) if len(known) <= 12 else "the names listed in docs/parameters.md"
    return Refused(f"unknown {what}; use {'one of ' if len(known) > 1 else ''}{listed}{nearest(name, known)}")


def show(value: Any) -> str:
    """A value as JSON on one line, shortened."""
    try:
        text = json.dumps(value, default=repr)
    except (TypeError, ValueError, RecursionError):
        text = json.dumps(repr(type(value)))
    return text if len(text) <= 100 else f"{text[:97]}..."


def one_line(source: str) -> str:
    """The name of what holds a value, on one line. (Files are named by `shown`.)"""
    return source if source.isprintable() else ascii(source)[1:-1]
