"""meshes.compat under the TensorFlow of this environment, each case in a fresh Python as users start one."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.tpu_env

REPOSITORY = Path(__file__).parents[2]


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `code` at the root of the repository, without TensorFlow's variables of whoever runs the tests."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("TF_", "CUDA_", "XLA_"))}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, env={**inherited, **environment}, capture_output=True, text=True
    )


# One step of gradient descent on w for sum(softmax(x·w) · c), the rows of x and c split over the devices.
DESCENT_STEP = """
import json
from gpt_mesh.meshes.compat import mtf
import tensorflow.compat.v1 as tf

n_devices, x, w, c = {arguments}
rows, inner, columns = mtf.Dimension("rows", 4), mtf.Dimension("inner", 3), mtf.Dimension("columns", 5)

with tf.Graph().as_default():
    graph = mtf.Graph()
    mesh = mtf.Mesh(graph, "mesh")
    x = mtf.import_tf_tensor(mesh, tf.constant(x), mtf.Shape([rows, inner]))
    c = mtf.import_tf_tensor(mesh, tf.constant(c), mtf.Shape([rows, columns]))
    w = mtf.get_variable(mesh, "w", mtf.Shape([inner, columns]), initializer=tf.constant_initializer(w))
    loss = mtf.reduce_sum(mtf.softmax(mtf.einsum([x, w], mtf.Shape([rows, columns])), columns) * c)
    [gradient] = mtf.gradients([loss], [w])
    step = mtf.assign_sub(w, 0.1 * gradient)
    lowering = mtf.Lowering(graph, {{mesh: mtf.placement_mesh_impl.PlacementMeshImpl(
        mtf.convert_to_shape([("all", n_devices)]), mtf.convert_to_layout_rules([("rows", "all")]),
        [f"/device:CPU:{{i}}" for i in range(n_devices)])}})
    [master] = [variable for variable in tf.global_variables() if variable.op.name == "w"]
    to_slices, to_masters = lowering.copy_masters_to_slices(), lowering.copy_slices_to_masters()

    with tf.Session(config=tf.ConfigProto(device_count={{"CPU": n_devices}})) as session:
        session.run(tf.global_variables_initializer())
        session.run(to_slices)
        loss, gradient = session.run([lowering.export_to_tf_tensor(loss), lowering.export_to_tf_tensor(gradient)])
        session.run(lowering.lowered_operation(step))
        session.run(to_masters)
        print(json.dumps([loss.tolist(), gradient.tolist(), session.run(master).tolist()]))
"""


@pytest.mark.parametrize("n_devices", [1, 2])
def test_a_descent_step_has_the_numbers_of_numpy(n_devices):
    random = np.random.default_rng(0)
    x, w, c = (random.standard_normal(shape).astype("float32") for shape in [(4, 3), (3, 5), (4, 5)])
    exponentials = np.exp(x @ w)
    softmax = exponentials / exponentials.sum(axis=1, keepdims=True)
    loss = (softmax * c).sum()
    gradient = x.T @ (softmax * (c - (softmax * c).sum(axis=1, keepdims=True)))

    result = run_python(DESCENT_STEP.format(arguments=[n_devices, x.tolist(), w.tolist(), c.tolist()]))

    assert result.returncode == 0, result.stderr
    assert result.stderr == "", "a mesh graph is built and lowered without a word"
    mesh_loss, mesh_gradient, mesh_w = json.loads(result.stdout)
    np.testing.assert_allclose(mesh_loss, loss, rtol=1e-5)
    np.testing.assert_allclose(mesh_gradient, gradient, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(mesh_w, w - 0.1 * gradient, rtol=1e-5, atol=1e-6)


def test_importing_is_quiet_and_leaves_keras_and_the_devices_alone():
    result = run_python(
        "import sys, importlib, meshes.compat\n"
        "importlib.reload(meshes.compat)\n"
        "keras = any(name.split('.')[0] in ('keras', 'matplotlib') for name in sys.modules)\n"
        "assert not keras or meshes.compat.HAS_TPU_ESTIMATOR, 'only TPUEstimator is built on Keras'\n"
        "import tensorflow as tf\n"
        "cpu = tf.config.list_physical_devices('CPU')[0]\n"
        "tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 3)\n"
        "assert len(tf.config.list_logical_devices('CPU')) == 3\n"
        "assert tf.keras.layers.Dense(2)(tf.zeros([1, 3])).shape == (1, 2)\n"
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_one_variable_brings_every_message_back():
    code = (
        "from gpt_mesh.meshes.compat import mtf; import tensorflow as tf\n"
        "graph = mtf.Graph(); mesh = mtf.Mesh(graph, 'mesh')\n"
        "with tf.Graph().as_default(): mtf.get_variable(mesh, 'w', mtf.Shape([mtf.Dimension('d', 2)]))\n"
    )
    remark = "Using default tf glorot_uniform_initializer for variable w"
    assert remark not in run_python(code).stderr
    verbose = run_python(code, TF_CPP_MIN_LOG_LEVEL="0").stderr
    assert remark in verbose
    assert "oneDNN" in verbose or "CPU instructions" in verbose, "the start-up lines of TensorFlow's C++ side"


def test_a_users_own_warnings_are_shown():
    result = run_python("import gpt_mesh.meshes.compat, tensorflow as tf; tf.get_logger().warning('from the user')")
    assert "from the user" in result.stderr


def test_what_is_no_noise_passes_through_the_start_up_filter():
    result = run_python(
        "import os, meshes.compat as compat\n"
        "with compat._without_stderr_lines(compat._START_UP_NOISE):\n"
        "    os.write(2, b'I0000 00:00:1 port.cc:1] noise\\nE0000 00:00:1 real trouble\\nplain words\\n')\n"
    )
    assert result.stderr == "E0000 00:00:1 real trouble\nplain words\n"


def test_an_import_that_fails_says_why(tmp_path):
    package = tmp_path / "tensorflow"
    package.mkdir()
    (package / "__init__.py").write_text(
        "import os\nos.write(2, b'libfoo is missing\\n')\nraise ImportError('broken')\n"
    )
    result = run_python("import gpt_mesh.meshes.compat", PYTHONPATH=str(tmp_path))
    assert result.returncode == 1
    assert "libfoo is missing" in result.stderr and "ImportError: broken" in result.stderr


def test_tpu_estimator_is_there_or_the_error_names_the_remedy():
    result = run_python(
        "from gpt_mesh.meshes import compat\n"
        "from gpt_mesh.errors import InputError\n"
        "major, minor = compat.tensorflow_version()\n"
        "assert compat.HAS_TPU_ESTIMATOR == ((major, minor) < (2, 16))\n"
        "try:\n"
        "    module = compat.tpu_estimator()\n"
        "except InputError as error:\n"
        "    assert not compat.HAS_TPU_ESTIMATOR\n"
        "    assert 'make tpu-env' in str(error) and '\\n' not in str(error)\n"
        "else:\n"
        "    assert module.TPUEstimator and module.TPUEstimatorSpec and module.TPUConfig and module.RunConfig\n"
    )
    assert (result.returncode, result.stderr) == (0, "")


REMEDY = "run `make venv`, then use .venv/bin/python instead"


def test_an_interpreter_without_tensorflow_is_told_which_to_take() -> None:
    command = [sys.executable, "-S", "main.py", "--model", "demo"]  # -S: without installed packages
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(rf"error: {re.escape(sys.executable)}: has no \w+; {re.escape(REMEDY)}\n", done.stderr)

    hidden = "import sys; sys.modules['tensorflow'] = None"
    result = run_python(f"{hidden}; from gpt_mesh.main import main; sys.exit(main(['--model', 'demo']))")
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == f"error: {sys.executable}: has no TensorFlow; {REMEDY}\n"
