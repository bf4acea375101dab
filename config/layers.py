"""Configs laid over each other: `"base"` in a file, several files, and single keys above them.

A higher layer's key replaces the lower one's whole value. A dotted key of a setting (`generation.top_p`) replaces one
entry of an object.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt_mesh.config.files import SUFFIXES, find, parse_json, read_file
from gpt_mesh.config.messages import one_line, refuse
from gpt_mesh.config.names import BASE_KEY, object_of_keys, without_aliases
from gpt_mesh.config.source import Source
from gpt_mesh.errors import InputError, shown


@dataclass(frozen=True)
class Layer:
    """Keys from one source.

    Attributes:
        source: a file, or the name of a caller such as `--set`.
        values: by key.
        directory: of the file; None: it is no file.
    """

    source: str
    values: Mapping[str, Any]
    directory: Path | None = None


def layers_of(name_or_path: str) -> list[Layer]:
    """The layers of a config file, the lowest first: those of its `base`, then its own.

    Raises:
        InputError: a file is missing, cannot be read, or is its own base.
    """
    return _layers_of(find(name_or_path), ())


def _layers_of(path: Path, above: tuple[Path, ...]) -> list[Layer]:
    source, directory = shown(path), path.resolve().parent
    values = without_aliases(object_of_keys(read_file(path), source), source)
    base = values.pop(BASE_KEY, None)
    above = (*above, path.resolve())
    own = Layer(source, values, directory)
    if base is None:
        return [own]
    if not isinstance(base, str) or not base:
        refuse(source, BASE_KEY, base, "must be the name or the path of another config")
    beside = directory / (base if base.endswith(SUFFIXES) else f"{base}.json")
    try:
        found = beside if beside.is_file() else find(base)
    except InputError as error:
        refuse(source, BASE_KEY, base, str(error))
    if found.resolve() in above:
        chain = " → ".join(shown(one) for one in (*above, found.resolve()))
        refuse(source, BASE_KEY, base, f"the config would be its own base ({chain}); remove one of these")
    return [*_layers_of(found, above), own]


def merged(layers: Sequence[Layer]) -> tuple[dict[str, Any], str]:
    """The keys of all layers, later ones replacing earlier ones, and their source."""
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for layer in layers:
        given = without_aliases(layer.values, layer.source)
        set_keys(values, given)
        for name in (key.partition(".")[0] for key in given):
            origins.pop(name, None)  # so that they are in the order of their layers
            origins[name] = layer.source
    if len(layers) == 1:
        return values, layers[0].source
    text = " + ".join(dict.fromkeys(one_line(layer.source) for layer in layers))
    files = [layer.source for layer in layers if layer.directory is not None]
    return values, Source(text, origins, files[-1] if files else "")


def origins_line(source: str) -> str | None:
    """Which keys come from where; None for a config of one source. The source of most keys is not listed in full."""
    if not isinstance(source, Source):
        return None
    by_origin: dict[str, list[str]] = {}
    for key, origin in source.origins.items():
        by_origin.setdefault(origin, []).append(key)
    rest = max(by_origin, key=lambda origin: len(by_origin[origin]))
    parts = [f"{', '.join(keys)} from {one_line(name)}" for name, keys in by_origin.items() if name != rest]
    return "; ".join([*parts, f"all other keys from {one_line(rest)}"])


def set_keys(values: dict[str, Any], given: Mapping[str, Any]) -> None:
    """Replace the values of keys; `object.entry` replaces an entry of an object."""
    for key, value in given.items():
        name, dot, entry = key.partition(".")
        if not dot:
            values[name] = value
        else:
            inside = values.get(name)
            values[name] = {**(inside if isinstance(inside, Mapping) else {}), entry: value}


def parse_settings(settings: Iterable[str], source: str) -> dict[str, Any]:
    """The keys of settings such as `lr=1e-3`: a value is JSON, or else text.

    Raises:
        InputError: a setting without `=`, a key given twice, or a value that begins like JSON and is not.
    """
    found: dict[str, Any] = {}
    for setting in settings:
        key, equals, text = (part.strip() for part in setting.partition("="))
        if not equals or not key:
            raise InputError(f"{source} {setting}: must be KEY=VALUE, such as lr=0.001")
        if key in found:
            raise InputError(f"{source}: {key}: given twice; remove one")
        try:
            found[key] = parse_json(text.encode("utf-8", "surrogateescape"), f"{source} {key}")
        except InputError:
            if text[:1] in ("[", "{", '"'):
                raise
            found[key] = text
    return found
