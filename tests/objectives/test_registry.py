"""Objectives are found by the names that a config may give, and by no others."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from gpt_mesh import objectives
from gpt_mesh.config import OBJECTIVES
from gpt_mesh.errors import InputError
from gpt_mesh.objectives.registry import check_predicts_next, find, objective_of
from tests.support.models import tiny_config

MASKED = {"mlm_training": True, "mlm_mask_id": 3}


def test_each_file_of_an_objective_is_a_choice() -> None:
    [folder] = objectives.__path__
    files = [path.stem for path in Path(folder).glob("*.py") if path.stem != "__init__"]
    found = [name for name in files if hasattr(import_module(f"gpt_mesh.objectives.{name}"), "OBJECTIVE")]
    assert sorted(found) == sorted(OBJECTIVES)
    assert [find(name).name for name in OBJECTIVES] == list(OBJECTIVES)


@pytest.mark.parametrize(
    ("keys", "name"),
    [
        ({}, "next_token"),
        ({"objective": "next_token"}, "next_token"),
        (MASKED, "masked"),
        ({**MASKED, "objective": None}, "masked"),
        ({**MASKED, "objective": "masked"}, "masked"),
    ],
)
def test_the_config_chooses(keys: dict[str, Any], name: str) -> None:
    config = tiny_config(**keys)
    assert config.training.objective == objective_of(config).name == name


@pytest.mark.parametrize("keys", [{"objective": "masked"}, {**MASKED, "objective": "next_token"}])
def test_two_keys_that_disagree_are_refused(keys: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"objective = .*with mlm_training = (true|false); leave objective out"):
        tiny_config(**keys)


def test_only_what_predicts_the_next_token_makes_text() -> None:
    check_predicts_next(tiny_config())
    with pytest.raises(InputError, match=r"mlm_training = true: .* do not generate or score text"):
        check_predicts_next(tiny_config(**MASKED))
