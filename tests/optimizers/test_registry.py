"""Optimizers and schedules are found by the names that a config may give, and by no others."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from gpt_mesh.meshes.compat import mtf

import pytest

from gpt_mesh import optimizers
from gpt_mesh.config import OPTIMIZERS, SCHEDULES
from gpt_mesh.optimizers import registry, schedules
from tests.support.models import ONE_LAYER, make_engine, tiny_config


def test_each_file_of_an_optimizer_is_a_choice() -> None:
    [folder] = optimizers.__path__
    files = [path.stem for path in Path(folder).glob("*.py") if path.stem != "__init__"]
    found = [name for name in files if hasattr(import_module(f"gpt_mesh.optimizers.{name}"), "OPTIMIZER")]
    assert sorted(found) == sorted(OPTIMIZERS)
    assert [registry.find(name).name for name in OPTIMIZERS] == list(OPTIMIZERS)


def test_each_schedule_is_a_choice() -> None:
    assert tuple(schedules.SCHEDULES) == SCHEDULES


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_slots_are_told_from_weights(name: str) -> None:
    """Of a whole model: every weight has the slots that the optimizer declares, and nothing else is a slot."""
    config = tiny_config(**ONE_LAYER, opt_name=name)
    engine = make_engine(config, compiled=False)
    engine.create_variables(training=True)
    shapes = {name: variable.shape.as_list() for name, variable in engine.store.masters.items()}
    weights = {name: shape for name, shape in shapes.items() if name.startswith("gpt2/") and not registry.is_slot(name)}
    expected = {}
    for weight, sizes in weights.items():
        shape = mtf.Shape([mtf.Dimension(f"d{i}", size) for i, size in enumerate(sizes)])
        slots = registry.find(name).slot_shapes(config.optimizer, shape)
        expected.update({f"{weight}/{name}_{slot}": kept.to_integer_list for slot, kept in slots.items()})
    assert len(weights) > 10
    assert shapes.keys() == {*weights, *expected, "global_step"}
    assert {name: shape for name, shape in shapes.items() if registry.is_slot(name)} == expected
