"""Hugging Face's architectures, one a file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gpt_mesh.config import Config
from gpt_mesh.errors import InputError
from gpt_mesh.interop.architecture import Architecture
from gpt_mesh.interop.architectures.gpt_neo import GPTNeo

ARCHITECTURES: dict[str, Architecture] = {one.model_type: one for one in (GPTNeo(),)}


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


def of_config(config: Config) -> Architecture:
    """The first architecture that can express a model.

    Raises:
        InputError: none can. The message is that of the last one in the table.
    """
    problem: InputError | None = None
    for one in ARCHITECTURES.values():
        try:
            one.check(config)
        except InputError as error:
            problem = error
        else:
            return one
    assert problem is not None
    raise problem
