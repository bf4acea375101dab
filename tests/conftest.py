"""Eight CPU devices for every test, so that tests in this process can lay models over meshes; and what tests share."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile

if "GPT_MESH_CACHE" not in os.environ:  # what tests compile is shared by all processes of these tests, and only by them
    os.environ["GPT_MESH_CACHE"] = tempfile.mkdtemp(prefix="gpt-mesh-tests-")
    atexit.register(shutil.rmtree, os.environ["GPT_MESH_CACHE"], ignore_errors=True)

from gpt_mesh.meshes.compat import mtf  # noqa: F401  (first: it quiets TensorFlow's start-up)

import pytest
import tensorflow as tf

from gpt_mesh import main
from tests.support.runs import Run, Trained, Workspace, shared_workspace, trained_run

# Before anything runs: TensorFlow fixes its devices when it first computes.
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 8
)


@pytest.fixture(scope="session")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A folder with a tokenizer and data. What a test adds to it has a name of its own."""
    return shared_workspace(tmp_path_factory)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A run of 120 steps, which tests leave as it is."""
    return trained_run(tmp_path_factory)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """main.py in this process: status, standard output, standard error."""

    def run(*flags: object) -> tuple[int, str, str]:
        capsys.readouterr()
        status = main.main([str(flag) for flag in flags])
        out, err = capsys.readouterr()
        return status, out, err

    return run
