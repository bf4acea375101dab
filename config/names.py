"""Aliases of keys, and unknown keys, with their remedies."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from gpt_mesh.config.messages import nearest, one_line, refuse, show
from gpt_mesh.errors import InputError

ALIASES = {"activation_fn": "activation_function"}
# An editor finds the JSON Schema of a file by this key.
SCHEMA_KEY = "$schema"
# The config whose keys a file takes where it has none of its own.
BASE_KEY = "base"

# Keys of older GPT-Neo configs and common slips, each with what to do instead.
RETIRED_KEYS = {
    "dataset_ids": "remove it: the ids stand in datasets",
    "n_heads": "use n_head",
    "n_layers": "use n_layer",
    "d_model": "use n_embd",
    "causal": "remove it: attention is causal unless mlm_training is true",
    "use_tpu": "remove it: devices come from --gpu_ids",
    "gpu_ids": "remove it: devices come from --gpu_ids",
    "num_cores": "remove it: the number of devices comes from mesh_shape",
    "steps_per_checkpoint": "remove it: it comes from --steps_per_checkpoint",
    "encoder_path": "name the tokenizer in the dataset config, as tokenizer_path",
    "stop_at_token": "remove it: generation stops at the dataset's eos_id",
}


def object_of_keys(values: Any, source: str) -> dict[str, Any]:
    """A copy of the JSON object that a file holds. Raises InputError for any other JSON value."""
    if not isinstance(values, Mapping):
        raise InputError(f"{one_line(source)}: must hold one JSON object of keys and values, not {show(values)}")
    return {name: value for name, value in values.items() if name != SCHEMA_KEY}


def without_aliases(values: Mapping[str, Any], source: str) -> dict[str, Any]:
    """`values` with aliases under their declared names. Raises InputError for a key given under both."""
    renamed = dict(values)
    for alias, name in ALIASES.items():
        if alias in renamed:
            if name in renamed:
                refuse(source, alias, renamed[alias], f"another name of {name}, which is given too; remove one")
            renamed[name] = renamed.pop(alias)
    return renamed


def check_known(
    values: Mapping[str, Any],
    known: Iterable[str],
    source: str,
    elsewhere: Iterable[str] = (),
    elsewhere_name: str = "",
) -> None:
    """Raises InputError for a key that is not `known`. `elsewhere` are the keys of the other kind of config."""
    known, elsewhere = list(known), list(elsewhere)
    for name, value in values.items():
        if name in known:
            continue
        if name in elsewhere:
            remedy = f"; it belongs in the {elsewhere_name}, move it there"
        elif name in RETIRED_KEYS:
            remedy = f"; {RETIRED_KEYS[name]}"
        else:
            remedy = nearest(str(name), [*known, *ALIASES]) or "; remove it: docs/parameters.md lists the keys"
        refuse(source, name, value, f"unknown key{remedy}")
