"""Finding a TPU, and the mesh over its cores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gpt_mesh.meshes.compat import HAS_TPU_ESTIMATOR, mtf

import numpy as np
import pytest
import tensorflow as tf

from gpt_mesh import main
from gpt_mesh.errors import InputError
from gpt_mesh.planning.graph import limits_of
from gpt_mesh.tpu import devices as tpu
from gpt_mesh.tpu.simd import bfloat16_parts, logical_to_physical
from tests.support.models import tiny_config
from tests.support.tpu import V3_4, V3_8, V3_32, V3_256, assign

pytestmark = pytest.mark.tpu_env
needs_estimator = pytest.mark.skipif(not HAS_TPU_ESTIMATOR, reason="TensorFlow 2.15 has TPUEstimator: make test-tpu")
MESH = {"mesh_shape": "x:4,y:2", "layout": "batch:x,heads:y"}


def error_of(capsys: pytest.CaptureFixture[str], *flags: object) -> str:
    """The one line that the command line ends with."""
    capsys.readouterr()
    assert main.main([str(flag) for flag in flags]) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith("error: ") and "Traceback" not in lines
    return lines[-1]


@pytest.mark.skipif(HAS_TPU_ESTIMATOR, reason="this environment has it")
@pytest.mark.parametrize("flags", [[], ["--new", "--yes"]])
def test_without_tpu_estimator_it_says_at_once_what_to_install(
    workspace: Any, capsys: pytest.CaptureFixture[str], flags: list[str]
) -> None:
    config = workspace.config("no_estimator", datasets=[["tiny", 2, "documents_random", 1.0]])
    line = error_of(capsys, "--model", config, "--tpu", "any", *flags)
    assert "make tpu-env" in line and "TensorFlow 2.15.1" in line
    assert not (workspace.root / "no_estimator").exists()  # nothing was begun


@needs_estimator
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("local", "this machine has no TPU that TensorFlow can use"),
        ("colab", "this machine has no TPU that TensorFlow can use"),
        ("grpc://127.0.0.1:1", "grpc://127.0.0.1:1 does not answer (["),
    ],
)
def test_a_tpu_that_is_not_there_is_an_error(
    workspace: Any, capsys: pytest.CaptureFixture[str], name: str, said: str
) -> None:
    line = error_of(capsys, "--model", workspace.config("no_tpu"), "--tpu", name)
    assert line.startswith(f"error: --tpu {name}: ") and said in line


@needs_estimator
@pytest.mark.parametrize(
    "reason",
    [
        ValueError("Could not lookup TPU metadata from name 'mine'. Please doublecheck\nmore"),
        RuntimeError("Missing runtime dependency on the Google API client. Run `pip install cloud-tpu-client` to fix."),
        OSError("Could not automatically determine credentials."),
    ],
)
def test_a_name_that_google_does_not_know_or_tell_is_an_error(
    workspace: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, reason: Exception
) -> None:
    def refuse(name: str) -> None:
        raise reason

    monkeypatch.setattr(tf.distribute.cluster_resolver, "TPUClusterResolver", refuse)
    line = error_of(capsys, "--model", workspace.config("no_tpu"), "--tpu", "mine")
    assert str(reason).splitlines()[0] in line and "gcloud compute tpus list" in line and "more" not in line


def test_colab_tells_where_its_tpu_is(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    class Resolver:
        def __init__(self, name: str) -> None:
            asked.append(name)

        def master(self) -> str:
            return "grpc://10.0.0.2:8470"

    monkeypatch.setattr(tf.distribute.cluster_resolver, "TPUClusterResolver", Resolver)
    monkeypatch.setenv("COLAB_TPU_ADDR", "10.0.0.2:8470")
    tpu._resolver("colab")
    assert asked == ["grpc://10.0.0.2:8470"]


def test_the_mesh_has_to_be_as_large_as_the_tpu_to_train() -> None:
    config = tiny_config(train_batch_size=12, **MESH)
    limits = limits_of(config)
    small = tpu.Tpu("mine", 4, resolver=object())
    with pytest.raises(InputError) as caught:
        small.plan(config, limits, training=True)
    assert str(caught.value) == (
        'tiny.json: "mesh_shape": "x:4,y:2" is for 8 cores, but TPU mine has 4; set "mesh_shape": "all:4", '
        '"layout": "batch:all", add --fit_mesh, or name another TPU'
    )
    assert small.plan(config, limits, training=True, fit=True).shape == {"x": 2, "y": 2}
    assert small.plan(config, limits).shape == {"x": 2, "y": 2}  # to evaluate, whatever it was made for
    with pytest.raises(InputError, match="and train_batch_size to a multiple of 32"):
        tpu.Tpu("mine", 32, resolver=object()).plan(config, limits, training=True)


def test_a_layout_that_cannot_work_is_refused() -> None:
    config = tiny_config(mesh_shape="x:8", layout="heads:x")
    with pytest.raises(InputError, match=r"heads"):
        tpu.Tpu("mine", 8, object()).plan(config, limits_of(config), training=True)


def test_cores_that_a_layout_has_no_use_for_do_as_others() -> None:
    config = tiny_config()
    plan = tpu.Tpu("mine", 8, object()).plan(config, limits_of(config))
    assert np.prod(list(plan.shape.values())) == 8 and len(plan.devices) == 8


@pytest.mark.parametrize(
    ("chips", "shape"),
    [
        (V3_4, "all:4"),
        (V3_8, "x:4,y:2"),
        (V3_8, "all:8"),
        (V3_32, "x:4,y:8"),
        (V3_256, "x:64,y:4"),
        (V3_256, "x:16,y:16"),
    ],
)
def test_places_of_the_mesh_are_cores_that_are_near_each_other(chips: tuple[int, int], shape: str) -> None:
    """Neighbours along the last mesh dimension are on one chip or on chips side by side, which the first are not."""
    assignment = assign(chips)
    mesh = mtf.convert_to_shape(shape)
    order = logical_to_physical(mesh, assignment)
    assert sorted(order) == list(range(mesh.size))
    places = [assignment.core_assignment[replica, 0] for replica in order]

    def longest_way(mesh_axis: int) -> int:
        """Between neighbours along it, in chips, round the torus where that is shorter."""
        ways = []
        for pnum, place in enumerate(places):
            coordinates = mtf.pnum_to_processor_coordinates(mesh, pnum)
            coordinates[mesh_axis] = (coordinates[mesh_axis] + 1) % mesh.dims[mesh_axis].size
            other = places[mtf.processor_coordinates_to_pnum(mesh, coordinates)]
            apart = [abs(int(a) - int(b)) for a, b in zip(place[:2], other[:2], strict=True)]
            ways.append(sum(min(way, size - way) for way, size in zip(apart, chips, strict=True)))
        return max(ways)

    assert longest_way(len(mesh.dims) - 1) <= 1 + (shape == "x:64,y:4")


def test_three_bfloat16_numbers_hold_a_float32() -> None:
    values = np.random.default_rng(0).standard_normal(10_000) * 10.0 ** np.arange(-10, 10).repeat(500)
    values = np.concatenate([values, [0.0, 1.0, -1e-30, np.pi]]).astype(np.float32)
    high, middle, low = (tf.cast(part, tf.float32).numpy() for part in bfloat16_parts(tf.constant(values)))
    assert np.array_equal(high + (middle + low), values)
    assert not np.array_equal(high + middle, values)  # two would not do


def test_nothing_but_training_evaluation_and_prediction_uses_a_tpu(
    workspace: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    config = workspace.config("no_tpu")
    for flags in (["--check_dataset"], ["--score", str(tmp_path / "x.txt")], ["--gpu_ids", "device:CPU:0"]):
        with pytest.raises(SystemExit) as caught:
            main.main(["--model", str(config), "--tpu", "mine", *flags])
        assert caught.value.code == 2 and "--tpu goes with" in capsys.readouterr().err
