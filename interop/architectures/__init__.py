"""Hugging Face's architectures, one a file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gpt_mesh.config import Config
from gpt_mesh.errors import InputError
from gpt_mesh.interop.architecture import Architecture
from gpt_mesh.interop.architectures.bloom import Bloom
from gpt_mesh.interop.architectures.falcon import Falcon
from gpt_mesh.interop.architectures.gpt2 import GPT2
from gpt_mesh.interop.architectures.gpt_neo import GPTNeo
from gpt_mesh.interop.architectures.gpt_neox import GPTNeoX
from gpt_mesh.interop.architectures.gptj import GPTJ
from gpt_mesh.interop.architectures.llama import Llama
from gpt_mesh.interop.architectures.mistral import Mistral
from gpt_mesh.interop.architectures.mixtral import Mixtral
from gpt_mesh.interop.architectures.qwen2 import Qwen2
from gpt_mesh.interop.architectures.qwen3 import Qwen3

# By `model_type`. Where several can express a model, an export is the first of them.
ARCHITECTURES: dict[str, Architecture] = {
    one.model_type: one
    for one in (
        GPTNeo(), GPT2(), GPTJ(), GPTNeoX(), Falcon(), Bloom(), Llama(), Mistral(), Mixtral(), Qwen2(), Qwen3()
    )
}  # fmt: skip


def of_values(values: Mapping[str, Any], source: str) -> Architecture:
    """The architecture that a `config.json` names.

    Raises:
        InputError: one that is not known here.
    """
    kind = values.get("model_type")
    if not isinstance(kind, str) or kind not in ARCHITECTURES:
        known = ", ".join(f"{name!r} ({one.title})" for name, one in ARCHITECTURES.items())
        raise InputError(f"{source}: model_type = {kind!r}: only {known} can be read")
    return ARCHITECTURES[kind]


def of_config(config: Config, model_type: str | None = None) -> Architecture:
    """The first architecture that can express a model, or the one of a `model_type`.

    Raises:
        InputError: none can, or that one can not. The message names the nearest, and what each of them lacks.
    """
    found = {
        one: one.obstacles(config) for name, one in ARCHITECTURES.items() if model_type is None or name == model_type
    }
    fewest = min(map(len, found.values()))
    nearest = [one for one, obstacles in found.items() if len(obstacles) == fewest]
    if not fewest:
        return nearest[0]
    if len(nearest) == 1:
        lacks = _some(found[nearest[0]])
        raise InputError(f"{config.source}: {lacks}: {nearest[0].title} has no such part{_other(model_type)}")
    listed = "; ".join(f"{one.title} has no {_some(found[one])}" for one in nearest[:3])
    raise InputError(f"{config.source}: no Hugging Face architecture can express this model: {listed}")


def _some(obstacles: list[str]) -> str:
    return ", ".join(obstacles[:4]) + (f" and {len(obstacles) - 4} more" if len(obstacles) > 4 else "")


def _other(model_type: str | None) -> str:
    return "" if model_type is None else "; leave out --architecture for one that may have it"
