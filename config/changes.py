"""What differs between two configs, and which part of a trained model that touches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from gpt_mesh.config.config import GROUPS, Config
from gpt_mesh.config.fields import Group, Key, Touches, keys
from gpt_mesh.config.mlm import MlmConfig
from gpt_mesh.config.model import ModelConfig
from gpt_mesh.config.moe import MoeParams
from gpt_mesh.config.optimizer import OptimizerConfig
from gpt_mesh.config.parsing import parse_groups, values_of


@dataclass(frozen=True)
class Change:
    """A key with another value.

    Attributes:
        touches: what this changes of a trained model; None: nothing, or its training alone.
        adaptable: whether weights trained with the old value may begin a new run.
    """

    key: str
    touches: Touches | None
    adaptable: bool
    was: Any
    now: Any


def values_of_config(config: Config) -> dict[str, Any]:
    """The values of all keys, by name."""
    return values_of({name: getattr(config, name) for name in GROUPS})


def values_of_file(values: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The values of all keys of a config, read from JSON without its datasets. Keys left out have their defaults.

    Raises:
        InputError: an unknown or missing key, or a value that cannot work.
    """
    return values_of(parse_groups(values, source))


def values_of_causal_model(model: ModelConfig) -> dict[str, Any]:
    """The known values of keys for weights that come with an architecture only.

    The weights are assumed to be those of a causal model trained with softmax.
    """
    plain = {
        name: group.model_fields[name].default
        for group in (MlmConfig, OptimizerConfig)
        for name, declared in keys(group).items()
        if declared.touches is not None
    }
    return values_of({"model": model}) | plain


def changes(was: Mapping[str, Any], now: Mapping[str, Any]) -> list[Change]:
    """The keys that differ, with those inside `rope_scaling`, `moe_params` and `generation`.

    Args:
        was: values by key. Keys that it lacks are not compared.
        now: the values of all keys.

    Keys that had no effect and have none now, such as the settings of mixtures in a model without any, do not count.
    """
    return [
        Change(name, declared.touches, declared.adaptable, old, new)
        for name, declared, old, new in _compared(was, now)
        if old != new
    ]


def _compared(was: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[tuple[str, Key, Any, Any]]:
    """Each key with its declaration and both values."""
    for group in GROUPS.values():
        for name, declared in keys(group).items():
            if name not in was or (declared.used and not (declared.used(was) or declared.used(now))):
                continue
            old, new = was[name], now[name]
            if isinstance(old, Group) and isinstance(new, Group):
                for inner, its in keys(type(old)).items():
                    yield inner, its, _inner(old, inner, was), _inner(new, inner, now)
            elif name == "datasets":
                yield name, declared, [use.model_dump() for use in old], [use.model_dump() for use in new]
            else:
                yield name, declared, _shown(old), _shown(new)


def _shown(value: Any) -> Any:
    return value.model_dump() if isinstance(value, Group) else value


def _inner(group: Group, name: str, values: Mapping[str, Any]) -> Any:
    value = getattr(group, name)
    if isinstance(group, MoeParams) and name == "moe_hidden_size" and value is None:
        return 4 * values["n_embd"]  # what null stands for
    return value
