"""Optimizers by their names in a config (`opt_name`): each is the file of that name in this folder."""

from __future__ import annotations

import importlib

from gpt_mesh.config import OPTIMIZERS
from gpt_mesh.optimizers.optimizer import Optimizer


def find(name: str) -> type[Optimizer]:
    """The optimizer of this name, one of `config.OPTIMIZERS`."""
    found: type[Optimizer] = importlib.import_module(f"gpt_mesh.optimizers.{name}").OPTIMIZER
    return found


def is_slot(variable: str) -> bool:
    """Whether a variable is a slot of an optimizer, by its name: `<weight>/<optimizer>_<slot>`."""
    return variable.rpartition("/")[2].startswith(tuple(f"{name}_" for name in OPTIMIZERS))
