"""Objectives by their names in a config (`objective`): each is the file of that name in this folder."""

from __future__ import annotations

import importlib

from gpt_mesh.config import Config
from gpt_mesh.errors import InputError
from gpt_mesh.objectives.objective import Objective


def find(name: str) -> type[Objective]:
    """The objective of this name, one of `config.OBJECTIVES`."""
    found: type[Objective] = importlib.import_module(f"gpt_mesh.objectives.{name}").OBJECTIVE
    return found


def objective_of(config: Config) -> Objective:
    """The objective of a run."""
    return find(config.training.objective)(config)


def check_predicts_next(config: Config) -> None:
    """
    Raises:
        InputError: the model does not predict the next token, so it neither generates nor scores text.
    """
    objective = objective_of(config)
    if not objective.predicts_next:
        raise InputError(
            f"{config.source}: {objective.setting}: {objective.task}; they do not generate or score text; use a model "
            "trained without it"
        )


def check_has_logits(config: Config) -> None:
    """
    Raises:
        InputError: it is a reward model, which gives no logits.
    """
    if config.model.reward_head:
        objective = objective_of(config)
        raise InputError(f"{config.source}: {objective.setting}: {objective.task}, and no logits; use its rewards")
