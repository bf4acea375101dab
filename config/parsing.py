"""From flat JSON to a checked config."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gpt_mesh.config import checks
from gpt_mesh.config.config import GROUPS, Config
from gpt_mesh.config.data import DataConfig, DatasetUse
from gpt_mesh.config.dataset import DatasetConfig
from gpt_mesh.config.fields import Group, keys
from gpt_mesh.config.files import config_folders, names, read_file
from gpt_mesh.config.generation import GenerationSettings, clash
from gpt_mesh.config.layers import Layer, layers_of, merged, set_keys
from gpt_mesh.config.messages import nearest, one_line, refuse, show
from gpt_mesh.config.model import ModelConfig
from gpt_mesh.config.names import ALIASES, check_known, object_of_keys, without_aliases
from gpt_mesh.config.reading import check_complete, read
from gpt_mesh.config.source import Source, file_of
from gpt_mesh.errors import shown


def load_config(*names_or_paths: str, settings: Mapping[str, Any] | None = None, setter: str = "--set") -> Config:
    """Reads and checks a model config: one file, or several laid over each other.

    Args:
        names_or_paths: at least one, each a path with one of `files.SUFFIXES`, or the name of such a file in one of the
            `config_folders`. A later one's keys replace those of an earlier one. Dataset configs are looked for
            beside the last one that has `datasets`.
        settings: keys above all files; `object.entry` is an entry of an object.
        setter: who gives the settings, for messages.

    Raises:
        InputError: a file is missing, is not a config, or holds something that cannot work.
    """
    layers = [layer for name in names_or_paths for layer in layers_of(name)]
    return parse_layers([*layers, Layer(setter, settings)] if settings else layers)


def parse_layers(layers: Sequence[Layer], directory: Path | None = None) -> Config:
    """Checks a config laid over others, the lowest first.

    Args:
        directory: where its dataset configs are looked for first; default: the directory of the last file that has
            `datasets`.

    Raises:
        InputError: something in it cannot work.
    """
    values, source = merged(layers)
    files = [layer for layer in layers if layer.directory is not None]
    naming = [layer.directory for layer in files if "datasets" in layer.values] or [one.directory for one in files[-1:]]
    return parse_config(values, source, directory or next(reversed(naming), None))


def parse_config(values: Mapping[str, Any], source: str, directory: Path | None = None) -> Config:
    """Checks the flat `values` of a model config.

    Args:
        values: the parsed JSON object.
        source: the file it came from, for messages.
        directory: where `dataset_configs/` is looked for before the `config_folders`.

    Raises:
        InputError: something in it cannot work.
    """
    groups: dict[str, Any] = parse_groups(values, source)
    data: DataConfig = groups["data"]
    uses = tuple(_with_dataset(use, data, source, directory) for use in data.datasets)
    groups["data"] = data.model_copy(update={"datasets": uses})
    config = Config(source=source, directory=directory, given=dict(values), **groups)
    checks.check(config)
    return config


def parse_groups(values: Mapping[str, Any], source: str) -> dict[str, Group]:
    """The groups of a config by name, each key checked by itself, without reading the datasets.

    Raises:
        InputError: an unknown or missing key, or a value that cannot work.
    """
    given = object_of_keys(values, source)
    renamed = without_aliases(given, source)
    check_known(renamed, _keys_of(GROUPS.values()), source, keys(DatasetConfig), "dataset config")
    check_complete(GROUPS.values(), renamed, source)
    written = {name: alias for alias, name in ALIASES.items() if alias in given}
    read_groups: dict[str, Group] = {
        name: read(group, _part(group, renamed), source, written) for name, group in GROUPS.items()
    }
    return _with_derived(read_groups)


def parse_model(values: Mapping[str, Any], source: str) -> ModelConfig:
    """The architecture alone, from its flat keys.

    Raises:
        InputError: something in it cannot work.
    """
    check_known(values, keys(ModelConfig), source)
    check_complete([ModelConfig], values, source)
    model = _with_derived({"model": read(ModelConfig, values, source, {})})["model"]
    assert isinstance(model, ModelConfig)
    checks.check_model(source, model)
    return model


def replace(config: Config, **flat_keys: Any) -> Config:
    """`config` with some keys changed, checked again: see `overlay`."""
    return parse_config(overlay(config, flat_keys), config.source, config.directory)


def with_settings(config: Config, settings: Mapping[str, Any], setter: str = "--set") -> Config:
    """`config` with `settings` above it, as `load_config` has them, checked again.

    Raises:
        InputError: something in them cannot work.
    """
    if not settings:
        return config
    known = {name: one_line(config.source) for name in config.to_json()}
    origins = {**known, **{name.partition(".")[0]: setter for name in settings}}
    source = Source(f"{one_line(config.source)} + {setter}", origins, file_of(config.source))
    return parse_config(overlay(config, settings), source, config.directory)


def overlay(config: Config, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The flat keys of `config`, with those of `settings` in their place.

    A key that stands at its derived default follows what it is derived from: changing `train_steps` moves
    `lr_decay_end` along, unless that was set apart.
    """
    values, read_values = config.to_json(), values_of({name: getattr(config, name) for name in GROUPS})
    for group in GROUPS.values():
        for name, declared in keys(group).items():
            if declared.derive is not None and read_values[name] == declared.derive(read_values):
                del values[name]
    set_keys(values, without_aliases(settings, str(config.source)))
    return values


def generation_settings(
    values: Mapping[str, Any], source: str, base: GenerationSettings | None = None
) -> GenerationSettings:
    """Settings of text generation, checked.

    Args:
        values: keys of `GenerationSettings`, as JSON has them.
        source: who gave them, for messages.
        base: the settings of the keys not given; default: each key's own default.

    Raises:
        InputError: an unknown key, or a value that cannot work.
    """
    known = keys(GenerationSettings)
    for name, value in values.items():
        if name not in known:
            refuse(source, name, value, f"unknown key{nearest(str(name), known) or '; remove it'}")
    given = read(GenerationSettings, values, source, {})
    settings = given if base is None else base.model_copy(update={name: getattr(given, name) for name in values})
    if found := clash(settings):
        refuse(source, found[0], getattr(settings, found[0]), found[1])
    return settings


def values_of(groups: Mapping[str, Group]) -> dict[str, Any]:
    """The values of all keys, by name."""
    return {name: getattr(group, name) for group in groups.values() for name in keys(type(group))}


def _keys_of(groups: Iterable[type[Group]]) -> list[str]:
    return [name for group in groups for name in keys(group)]


def _part(group: type[Group], values: Mapping[str, Any]) -> dict[str, Any]:
    """The `values` that are keys of a group."""
    return {name: value for name, value in values.items() if name in keys(group)}


def _with_derived(groups: Mapping[str, Group]) -> dict[str, Group]:
    """Groups whose defaults that come from other keys are filled in."""
    values, filled = values_of(groups), {}
    for place, group in groups.items():
        derived = {
            name: declared.derive(values)
            for name, declared in keys(type(group)).items()
            if declared.derive is not None and values[name] is None
        }
        filled[place] = group.model_copy(update=derived) if derived else group
    return filled


def _with_dataset(use: DatasetUse, data: DataConfig, source: str, directory: Path | None) -> DatasetUse:
    """An entry of `datasets` with its dataset config read, found beside the model config or in the `config_folders`."""
    roots = [root / "dataset_configs" for root in (directory, *config_folders()) if root is not None]
    places = list(dict.fromkeys(root.resolve() for root in roots))
    for place in places:
        if use.id in names(place):
            dataset = _load_dataset(place / f"{use.id}.json")
            return use.model_copy(update={"dataset": _with_ids(dataset, data, source)})
    known = sorted({known for place in places for known in names(place)})
    looked = " and ".join(shown(place) for place in places)
    problem = f"no dataset config {show(f'{use.id}.json')} in {looked}; create it or use one of the ids that exist"
    refuse(source, "datasets", use.id, f"{problem} ({', '.join(known) or 'none'}){nearest(use.id, known)}")


def _load_dataset(path: Path) -> DatasetConfig:
    """Reads and checks one dataset config."""
    source = shown(path)
    values = object_of_keys(read_file(path), source)
    check_known(values, keys(DatasetConfig), source, _keys_of(GROUPS.values()), "model config")
    check_complete([DatasetConfig], values, source)
    dataset = read(DatasetConfig, {"source": source, **values}, source, {})
    if not dataset.path:
        refuse(source, "path", values["path"], "must name at least one file or glob")
    if dataset.tokenizer_is_pretrained and dataset.tokenizer_path is None:
        refuse(source, "tokenizer_is_pretrained", True, 'needs tokenizer_path; give a hub name such as "gpt2"')
    return dataset


def _with_ids(dataset: DatasetConfig, data: DataConfig, source: str) -> DatasetConfig:
    """`dataset` with the special ids of the model config where it gives none. Both giving different ones is refused."""
    filled = {}
    for name in ("eos_id", "padding_id"):
        own, outer = getattr(dataset, name), getattr(data, name)
        if own is not None and outer is not None and own != outer:
            file = one_line(dataset.source)
            refuse(source, name, outer, f"{file} has {name} = {own}; make the two equal or remove it here")
        filled[name] = outer if own is None else own
    return dataset.model_copy(update=filled)
