"""Configs as files: where they are, and strict reading of JSON, JSON with comments, and YAML."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any, ClassVar, NoReturn

from gpt_mesh.config.messages import nearest, one_line, refuse, show
from gpt_mesh.errors import InputError, shown

CONFIG_DIRECTORY = Path(__file__).resolve().parents[1] / "configs"
# It is in configs/ but is not a config.
SCHEMA_FILE = "schema.json"
YAML_SUFFIXES = (".yaml", ".yml")
# The endings of a config's file. A name without one is looked up with each of them, in this order.
SUFFIXES = (".json", ".jsonc", *YAML_SUFFIXES)


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
    """The file of a config: a path with one of the `SUFFIXES`, or the name of one in the `config_folders`.

    Raises:
        InputError: there is none.
    """
    path = Path(name_or_path)
    if not name_or_path.endswith(SUFFIXES):
        places = [folder / f"{name_or_path}{suffix}" for folder in config_folders() for suffix in SUFFIXES]
        path = next(filter(os.path.isfile, places), places[0])
    if not os.path.isfile(path) or path == CONFIG_DIRECTORY / SCHEMA_FILE:
        known = sorted({name for folder in config_folders() for name in names(folder)} - {Path(SCHEMA_FILE).stem})
        hint = nearest(path.stem, known) or f"; shipped configs: {', '.join(shipped_configs())}"
        remedy = f"give a path ending in .json or .yml, or a name{hint}"
        raise InputError(f"{shown(path)}: no such model config; {remedy}")
    return path


def read_file(path: Path) -> Any:
    """The value in a file: YAML by its ending, else JSON, which may have comments and trailing commas.

    Raises:
        InputError: unreadable, not UTF-8, neither (with line and column), or a key given twice.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        source = shown(path)
        raise InputError(f"{source}: cannot be read: {error.strerror}; check the path and its permissions") from None
    return (parse_yaml if path.suffix in YAML_SUFFIXES else parse_json)(data, shown(path))


def parse_json(data: bytes, source: str) -> Any:
    """The JSON value in the bytes of a file, which messages call `source`. Comments (`//`, `/* */`) are left out, and
    commas before a closing bracket.

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
        text = _without_comments(data.decode("utf-8-sig"))
        return json.loads(text, object_pairs_hook=unique, parse_constant=constant, parse_int=integer)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise InputError(f"{source}: not valid JSON at {place}: {error.msg}; correct it there") from None
    except RecursionError:
        raise InputError(f"{source}: not a config: brackets are nested too deeply; remove them") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{source}: not UTF-8 text (byte {error.start}); write JSON as UTF-8 text") from None


_STRING = r'"(?:\\.|[^"\\\n])*"'
_COMMENT = re.compile(rf"{_STRING}|//[^\n]*|/\*.*?\*/", re.DOTALL)
_TRAILING_COMMA = re.compile(rf'{_STRING}|(?<=[\w"}}\]])\s*,(?=\s*[}}\]])')


def _without_comments(text: str) -> str:
    """`text` with spaces for comments and trailing commas, so that lines and columns stay."""

    def blank(found: re.Match[str]) -> str:
        return found[0] if found[0].startswith('"') else re.sub(r"[^\n]", " ", found[0])

    if "//" in text or "/*" in text:
        text = _COMMENT.sub(blank, text)
    return _TRAILING_COMMA.sub(blank, text)


def parse_yaml(data: bytes, source: str) -> Any:
    """The value of a YAML file, with JSON's types alone: `1e-3` is a number, and `on`, `no` and dates are text.

    Raises:
        InputError: not UTF-8, not YAML (with line and column), or a key given twice.
    """
    import yaml

    source = one_line(source)

    class Loader(yaml.SafeLoader):
        yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            names = [key.value for key, _ in node.value]
            for name in names:
                if names.count(name) > 1:
                    refuse(source, str(name), None, f"given twice (line {node.start_mark.line + 1} on); remove one")
            return {str(name): value for name, value in super().construct_mapping(node, deep=True).items()}

    for tag, pattern, first in _YAML_TYPES:
        Loader.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", re.compile(rf"^(?:{pattern})$"), first)
    try:
        return yaml.load(data.decode("utf-8-sig"), Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = "" if mark is None else f" at line {mark.line + 1}, column {mark.column + 1}"
        why = getattr(error, "problem", None) or str(error).partition("\n")[0]
        raise InputError(f"{source}: not valid YAML{place}: {why}; correct it there") from None
    except RecursionError:
        raise InputError(f"{source}: not a config: brackets are nested too deeply; remove them") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{source}: not UTF-8 text (byte {error.start}); write YAML as UTF-8 text") from None
    except ValueError as error:  # such as an integer of too many digits
        raise InputError(f"{source}: {error}; correct it") from None


# YAML's implicit types, as JSON has them: tag, pattern, and the characters that such a value begins with.
_YAML_TYPES = (
    ("null", "~|null|", ["~", "n", ""]),
    ("bool", "true|false|True|False", list("tfTF")),
    ("int", "[-+]?(?:0|[1-9][0-9]*)", list("-+0123456789")),
    ("float", r"[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?", list("-+.0123456789")),
)
