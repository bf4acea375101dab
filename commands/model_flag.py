"""What `--model` names."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from gpt_mesh.config import SUFFIXES, Config, load_config, with_settings
from gpt_mesh.errors import InputError


def find_config(given: Sequence[str], settings: Mapping[str, Any]) -> tuple[Config, str | None]:
    """The config, and the checkpoint if one is named.

    Args:
        given: the name or path of a config, a run's directory, or a checkpoint; or several configs, laid over each
            other.
        settings: keys above it (`--set`).

    Raises:
        InputError: it is none of these, or the config cannot work.
    """
    places = [name for name in given if _is_place(os.path.expanduser(name))]
    if places and len(given) > 1:
        raise InputError(f"--model {places[0]}: a run or a checkpoint stands alone; set single keys with --set")
    if places:
        from gpt_mesh.training import runs  # TensorFlow takes seconds

        config, checkpoint = runs.find(os.path.expanduser(places[0]))
        return with_settings(config, settings), checkpoint
    return load_config(*given, settings=settings), None


def _is_place(path: str) -> bool:
    """Whether this is the path of a run or of a checkpoint, and not a config."""
    is_path = os.path.basename(path) != path and not path.endswith(SUFFIXES)
    return is_path or os.path.isfile(os.path.join(path, "config.json")) or os.path.isfile(f"{path}.index")
