"""The layouts that are suggested are legal, the least of all, and write configs that can be used."""

from __future__ import annotations

import itertools
import json
import re
import shutil

import pytest

from gpt_mesh.config import CONFIG_DIRECTORY, load_config
from gpt_mesh.errors import InputError
from gpt_mesh.meshes.devices import MeshPlan
from gpt_mesh.meshes.layouts import plan_mesh
from gpt_mesh.meshes.limits import layout_text, shape_text
from gpt_mesh.planning.graph import limits_of
from gpt_mesh.planning.layout_report import find_layouts, report, write_applied
from gpt_mesh.planning.layout_search import TOLERANCE, best_layouts, candidate, layouts, mesh_shapes
from gpt_mesh.planning.memory import training_memory
from tests.support.models import tiny_config
from tests.test_config import SHIPPED

MIXTURE = {"moe_layers": [0], "moe_params": {"moe_num_experts": 4}}


def test_layouts_are_all_that_the_limits_allow():
    limits = limits_of(tiny_config(**MIXTURE))
    sizes = {"a": 2, "b": 4}
    names = list(limits.splittable)
    every = ({n: axis for n, axis in zip(names, axes, strict=True) if axis} for axes in
             itertools.product(("", "a", "b"), repeat=len(names)))  # fmt: skip
    wanted = {layout_text(rules) for rules in every if limits.allow(sizes, rules)}
    found = {layout_text(rules) for rules in layouts(limits, sizes)}
    idle = wanted - found
    assert found <= wanted and len(found) > 50
    for text in idle:  # what is left out splits nothing but positions along one of them
        axes = [
            {name for name, _, axis in (rule.partition(":") for rule in text.split(",")) if axis == a} for a in "ab"
        ]
        assert {"embed_sequence"} in axes


def test_the_first_takes_the_least_memory_of_all():
    config = tiny_config(train_batch_size=8)
    limits = limits_of(config)
    meshes = mesh_shapes(4)
    assert meshes == [{"x": 4}, {"x": 2, "y": 2}]
    every = [candidate(config, limits, sizes, rules) for sizes in meshes for rules in layouts(limits, sizes)]
    best = best_layouts(config, meshes)
    assert best[0].bytes <= TOLERANCE * min(each.bytes for each in every)
    assert best[0].bytes == sum(training_memory(config, best[0].plan).values())
    seconds = [each.cost.seconds for each in best]
    assert seconds == sorted(seconds, reverse=True), "what takes more memory takes less time"
    assert min(seconds) <= 1.25 * min(each.cost.seconds for each in every)


def test_meshes_have_up_to_three_dimensions():
    assert mesh_shapes(6) == [{"x": 6}, {"x": 3, "y": 2}]
    assert mesh_shapes(8) == [{"x": 8}, {"x": 4, "y": 2}, {"x": 2, "y": 2, "z": 2}]
    for devices in (2, 7, 24, 256):
        shapes = [tuple(shape.values()) for shape in mesh_shapes(devices)]
        assert len(set(shapes)) == len(shapes)
        factors = range(1, devices + 1)
        three = {tuple(sorted((a, b, devices // a // b), reverse=True))
                 for a in factors if devices % a == 0 for b in factors if devices // a % b == 0}  # fmt: skip
        assert {(*shape, 1, 1)[:3] for shape in shapes} == three


@pytest.mark.slow
def test_no_slower_than_now_is_among_them():
    config = load_config("gpt3_13B_256")
    found = find_layouts(config, 256, keep_mesh=False)
    now = MeshPlan(config.mesh.shape, config.mesh.rules, ("",))
    assert found[0].bytes < sum(training_memory(config, now).values()) / 4
    text = "\n".join(report(config, 256, found))
    assert re.search(r"^now +14\.6 GiB", text, re.MULTILINE) and "Least memory: " in text
    assert f'"mesh_shape": "{shape_text(found[0].plan.shape)}"' in text


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "gpt2_small" else pytest.mark.slow) for name in sorted(SHIPPED)]
)
def test_every_shipped_config_gets_layouts_that_it_may_use(name):
    config = load_config(name)
    devices = config.mesh.size if config.mesh.size > 1 else 8
    for keep_mesh in (True, False):
        found = find_layouts(config, devices, keep_mesh=keep_mesh)
        for each in found:
            mesh = type(config.mesh)(mesh_shape=shape_text(each.plan.shape), layout=layout_text(each.plan.rules))
            applied = type(config)(**{**vars(config), "mesh": mesh})
            names = [f"/device:CPU:{i}" for i in range(devices)]
            assert plan_mesh(applied, limits_of(applied), names, fit=False, chosen=True).shape == each.plan.shape
        assert all("{" not in line for line in report(config, devices, found))


def test_what_cannot_be_asked_for():
    meshed = tiny_config(mesh_shape="a:2,b:2", layout="batch:a,heads:b")
    with pytest.raises(InputError, match=r"is for 4 devices and --auto_layout keeps it; for 8 use"):
        find_layouts(meshed, 8, keep_mesh=True)
    with pytest.raises(InputError, match=r"no dimension of the model divides by 11 devices; ask for another number"):
        find_layouts(meshed, 11, keep_mesh=False)


def test_a_layout_that_cannot_work_is_said_to_be_that_and_replaced():
    config = tiny_config(mesh_shape="a:4", layout="batch:a,heads:a")
    found = find_layouts(config, 4, keep_mesh=True)
    text = "\n".join(report(config, 4, found))
    assert "cannot work: queries" in text and "\nnow" not in text


@pytest.mark.parametrize(("heads", "whole"), [(1, True), (2, False), (4, False)])
def test_the_report_says_which_keys_and_values_are_whole(heads, whole):
    config = tiny_config(mesh_shape="a:2", layout="heads:a", num_kv_heads=heads)
    limits = limits_of(config)
    lines = report(config, 2, [candidate(config, limits, config.mesh.shape, config.mesh.rules)])
    (effect,) = [line for line in lines if line.startswith("    heads:a")]
    assert effect.endswith("; keys and values, of one head, are whole on each device") == whole


def test_apply_writes_a_shipped_config_into_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = load_config("gpt3_small_256")
    path = write_applied(config, find_layouts(config, 8, keep_mesh=False)[0], replace=False)
    assert path == "configs/gpt3_small_256_auto.json"
    assert load_config("gpt3_small_256_auto").source == str(tmp_path / path)


def test_apply_writes_the_config_with_the_layout_alone_changed(tmp_path):
    shutil.copy(CONFIG_DIRECTORY / "gpt3_small_256.json", tmp_path / "mine.json")
    config = load_config(str(tmp_path / "mine.json"))
    found = find_layouts(config, 8, keep_mesh=False)
    path = write_applied(config, found[0], replace=False)
    assert path == str(tmp_path / "mine_auto.json")
    before, after = (json.loads((tmp_path / name).read_text()) for name in ("mine.json", "mine_auto.json"))
    assert {key for key in after if after[key] != before.get(key)} == {"mesh_shape", "layout"}
    applied = load_config(path)
    assert applied.mesh.shape == dict(found[0].plan.shape) and applied.mesh.rules == dict(found[0].plan.rules)
    assert write_applied(config, found[0], replace=False) == path, "the same again"
    other = find_layouts(config, 4, keep_mesh=False)[0]
    with pytest.raises(InputError, match=r"mine_auto.json already exists; add --yes to replace it"):
        write_applied(config, other, replace=False)
    assert load_config(path).mesh == applied.mesh
    write_applied(config, other, replace=True)
    assert load_config(path).mesh != applied.mesh
