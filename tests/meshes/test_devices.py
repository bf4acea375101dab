"""Names of devices, and the mesh over them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from gpt_mesh.meshes.compat import mtf

import pytest

from gpt_mesh.errors import InputError
from gpt_mesh.meshes.devices import MeshPlan, choose_devices, visible_devices
from gpt_mesh.meshes.variables import VariableStore


def refusal(*names):
    with pytest.raises(InputError) as caught:
        choose_devices(names)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("text", ["device:CPU:1", "/device:CPU:1", "CPU:1", "cpu:1", "device:cpu:01"])
def test_ways_to_name_a_device(text):
    assert choose_devices([text]) == ["/device:CPU:1"]


def test_devices_keep_the_order_given():
    assert choose_devices(["device:CPU:3", "device:CPU:0"]) == ["/device:CPU:3", "/device:CPU:0"]


@pytest.mark.parametrize(
    "text", ["0", "gpu", "GPU", "GPU:", "device:GPU", "device:TPU:0", "device:CPU:-1", "CPU:0,CPU:1", ""]
)
def test_what_is_no_name_of_a_device(text):
    assert refusal(text) == (
        f"--gpu_ids {text}: not a device name; write device:GPU:0, device:GPU:1, … or device:CPU:0"
    )


def test_an_absent_device_is_refused_with_those_that_are_there():
    message = refusal("device:GPU:63")
    assert message.startswith("--gpu_ids device:GPU:63: no such device; visible here: device:CPU:0, device:CPU:1")
    assert all(name in message for name in visible_devices())


def test_a_device_named_twice():
    assert refusal("CPU:1", "device:cpu:1") == (
        "--gpu_ids CPU:1 device:cpu:1: a device is named twice; name each device once"
    )


def test_a_cpu_that_has_started_is_not_split_further():
    assert visible_devices().count("device:CPU:7") == 1
    assert "no such device; visible here" in refusal("device:CPU:8")


def test_none_named_means_every_gpu_else_one_cpu():
    gpus = [f"/{name}" for name in visible_devices() if "GPU" in name]
    assert choose_devices(None) == choose_devices([]) == (gpus or ["/device:CPU:0"])


def test_a_fresh_process_splits_its_cpu_as_asked():
    code = (
        "from gpt_mesh.meshes.devices import choose_devices\n"
        "print(choose_devices(['device:CPU:2', 'device:CPU:0']), choose_devices(['CPU:1']))\n"
    )
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[2], env=environment, capture_output=True, text=True
    )
    assert result.stdout == "['/device:CPU:2', '/device:CPU:0'] ['/device:CPU:1']\n", result.stderr


def test_the_mesh_of_a_plan():
    plan = MeshPlan({"x": 2, "y": 3}, {"batch": "x", "sequence": "y"}, tuple(f"/device:CPU:{i}" for i in range(6)))
    store = VariableStore(plan.master_device)
    batch, sequence = mtf.Dimension("batch", 4), mtf.Dimension("sequence", 9)
    whole = plan.implementation(store)
    assert whole.slice_shape(mtf.Shape([batch, sequence])) == [2, 3]
    unsplit = plan.implementation(store, unsplit=("sequence",))
    assert unsplit.slice_shape(mtf.Shape([batch, sequence])) == [2, 9]
    assert list(whole.devices) == list(plan.devices)
