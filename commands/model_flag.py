"""What `--model` names."""

from __future__ import annotations

import os

from gpt_mesh.config import Config, load_config


def find_config(name: str) -> tuple[Config, str | None]:
    """The config, and the checkpoint if one is named, for a config's name or path, a run's directory, or a checkpoint.

    Raises:
        InputError: it is none of these, or the config cannot work.
    """
    path = os.path.expanduser(name)
    is_place = os.path.basename(path) != path and not path.endswith(".json")
    if is_place or os.path.isfile(os.path.join(path, "config.json")) or os.path.isfile(f"{path}.index"):
        from gpt_mesh.training import runs  # TensorFlow takes seconds

        return runs.find(path)
    return load_config(name), None
