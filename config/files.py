"""Configs as files: where they are, and strict reading of JSON."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, NoReturn

from gpt_mesh.config.messages import nearest, one_line, refuse, show
from gpt_mesh.errors import InputError, shown

CONFIG_DIRECTORY = Path(__file__).resolve().parents[1] / "configs"
# It is in configs/ but is not a config.
SCHEMA_FILE = "schema.json"


def shipped_configs() -> list[str]:
    """The names of the configs in `configs/`, sorted."""
    return [name for name in names(CONFIG_DIRECTORY) if f"{name}.json" != SCHEMA_FILE]


def names(directory: Path) -> list[str]:
    """The JSON files in a directory, without `.json`, sorted."""
    return sorted(path.stem for path in directory.glob("*.json")) if directory.is_dir() else []


def config_folders() -> list[Path]:
    """Where a config is looked up by its name: `configs/` of the working directory, then the one of this package."""
    own = Path.cwd() / "configs"
    return [own, CONFIG_DIRECTORY] if own.is_dir() and own != CONFIG_DIRECTORY else [CONFIG_DIRECTORY]


def find(name_or_path: str) -> Path:
    """The file of a config: a path ending in `.json`, or the name of one in the `config_folders`.

    Raises:
        InputError: there is none.
    """
    path = Path(name_or_path)
    if not name_or_path.endswith(".json"):
        places = [folder / f"{name_or_path}.json" for folder in config_folders()]
        path = next(filter(os.path.isfile, places), places[0])
    if not os.path.isfile(path) or path == CONFIG_DIRECTORY / SCHEMA_FILE:
        known = sorted({name for folder in config_folders() for name in names(folder)} - {Path(SCHEMA_FILE).stem})
        hint = nearest(path.stem, known) or f"; shipped configs: {', '.join(shipped_configs())}"
        raise InputError(f"{shown(path)}: no such model config; give a path ending in .json or a name{hint}")
    return path


def read_json(path: Path) -> Any:
    """The JSON value in a file.

    Raises:
        InputError: unreadable, not UTF-8, not JSON (with line and column), or a key given twice.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        source = shown(path)
        raise InputError(f"{source}: cannot be read: {error.strerror}; check the path and its permissions") from None
    return parse_json(data, shown(path))


def parse_json(data: bytes, source: str) -> Any:
    """The JSON value in the bytes of a file, which messages call `source`.

    Raises:
        InputError: not UTF-8, not JSON (with line and column), or a key given twice.
    """
    source = one_line(source)

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for name, value in pairs:
            if name in values:
                refuse(source, name, value, f"given twice (first {show(values[name])}); remove one")
            values[name] = value
        return values

    def constant(name: str) -> NoReturn:
        raise InputError(f"{source}: {name} is not JSON; write a finite number")

    def integer(digits: str) -> int:
        if len(digits) > 400:  # longer than any float, and past 4300 int() itself refuses
            raise InputError(f"{source}: {digits[:20]}... has {len(digits)} digits; write a smaller number")
        return int(digits)

    try:
        text = data.decode("utf-8-sig")
        return json.loads(text, object_pairs_hook=unique, parse_constant=constant, parse_int=integer)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise InputError(f"{source}: not valid JSON at {place}: {error.msg}; correct it there") from None
    except RecursionError:
        raise InputError(f"{source}: not a config: brackets are nested too deeply; remove them") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{source}: not UTF-8 text (byte {error.start}); write JSON as UTF-8 text") from None
