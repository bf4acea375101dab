"""Rotary positions as `config.json` describes them: `rope_theta` and `rope_scaling` of transformers 4, or
`rope_parameters` of transformers 5, which holds both.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from gpt_mesh.config import ModelConfig
from gpt_mesh.errors import InputError

# What an architecture adds to its defaults.
DEFAULTS: Mapping[str, Any] = {
    "rope_theta": 10000.0,
    "rope_scaling": None,
    "rope_parameters": None,
    "partial_rotary_factor": 1.0,
}
# The settings that each type reads.
_SETTINGS: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": (
        "factor", "original_max_position_embeddings", "attention_factor", "beta_fast", "beta_slow", "mscale",
        "mscale_all_dim", "truncate",
    ),
}  # fmt: skip


def keys(values: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The config keys of rotary positions. `values`: of `config.json`, with the keys in `DEFAULTS`.

    Raises:
        InputError: a form that is not supported.
    """
    name = "rope_scaling" if values["rope_scaling"] else "rope_parameters"
    given = values[name] or {}
    if not isinstance(given, dict) or any(isinstance(value, dict) for value in given.values()):
        raise InputError(
            f"{source}: {name} = {json.dumps(given)}: only one set of settings for all layers is supported"
        )
    kind = given.get("rope_type", given.get("type", "default"))
    if kind not in [*_SETTINGS]:  # a list, as it may be anything
        known = ", ".join(_SETTINGS)
        raise InputError(f"{source}: {name}: rope_type = {json.dumps(kind)}: only these are supported: {known}")
    scaling = {setting: given[setting] for setting in _SETTINGS[kind] if given.get(setting) is not None}
    return {
        "pos_emb": "rotary",
        "rotary_emb_base": given.get("rope_theta", values["rope_theta"]),
        "rotary_pct": given.get("partial_rotary_factor", values["partial_rotary_factor"]),
        "rope_scaling": None if kind == "default" else {"rope_type": kind, **scaling},
    }


def values(model: ModelConfig) -> dict[str, Any]:
    """The keys of `config.json`, which both versions read."""
    scaling = model.rope_scaling
    found = None if scaling is None else scaling.model_dump(include={"rope_type", *_SETTINGS[scaling.rope_type]})
    return {
        "rope_theta": model.rotary_emb_base,
        "rope_scaling": found and {name: value for name, value in found.items() if value is not None},
    }
