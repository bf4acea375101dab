"""Every difference between TensorFlow versions, in one file.

The last release of mesh-tensorflow (0.1.21) was written against TensorFlow 2.8. Importing this module makes it import
and work under both versions that the project is tested with. No other file checks the version:

* TensorFlow 2.21 (Python 3.10-3.13): CPU and GPU. TPUEstimator left TensorFlow with 2.16.
* TensorFlow 2.15.1 with tensorflow-estimator 2.15.0 (Python 3.10-3.11): Cloud TPU through TPUEstimator.

Write `from gpt_mesh.meshes.compat import mtf` instead of `import mesh_tensorflow`, before any `import tensorflow`:
this module suppresses what TensorFlow prints while it loads.

Logging is quiet by default: TensorFlow's C++ messages below ERROR and mesh-tensorflow's messages (one per variable, at
every lowering) are hidden; errors are always shown. `TF_CPP_MIN_LOG_LEVEL=0` in the environment shows all messages of
TensorFlow, XLA and mesh-tensorflow.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import logging
import os
import re
import sys
import tempfile
import types
from collections.abc import Iterator
from typing import Any

from gpt_mesh.errors import InputError
from gpt_mesh.meshes import compiled_cache, processor, xla_flags

if importlib.util.find_spec("tensorflow") is None:
    raise InputError(f"{sys.executable}: has no TensorFlow; run `make venv`, then use .venv/bin/python instead")
if compiled_cache.tensorflow_version() > "2.16":  # 2.15 cannot read its own entries for CPUs
    if xla_flags.has_nvidia_driver():
        xla_flags.choose(os.environ)
    compiled_cache.switch_on(os.environ)  # after XLA_FLAGS is set, on which its folder depends
processor.limit_threads(os.environ)
# TensorFlow's levels: 0 shows everything, 1 hides INFO, 2 also WARNING, 3 also ERROR.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
_VERBOSE = os.environ["TF_CPP_MIN_LOG_LEVEL"].strip() == "0"

# Written by C++ code before it reads TF_CPP_MIN_LOG_LEVEL: INFO and WARNING lines ("I0000 00:00:17…"), and in 2.15
# three harmless ERRORs about CUDA libraries registered twice, which every installation prints.
_START_UP_NOISE = re.compile(
    rb"WARNING: All log messages before absl::InitializeLog|[IW]\d{4} |To enable the following instructions"
    rb"|.*: E external/.*Unable to register cu\w+ factory"
)
# Without an NVIDIA driver, listing devices prints an ERROR.
_NO_NVIDIA_NOISE = re.compile(_START_UP_NOISE.pattern + rb"|E\d{4} .*cuInit|.*: E external/.*cuInit")


@contextlib.contextmanager
def _without_stderr_lines(noise: re.Pattern[bytes]) -> Iterator[None]:
    """Buffer what is written to file descriptor 2, then write it without the lines that match `noise`.

    Redirecting `sys.stderr` would not help: C++ static initialisers write while a library loads.
    """
    try:
        original = os.dup(2)
    except OSError:  # standard error is closed, as in a daemon
        yield
        return
    with tempfile.TemporaryFile() as held:
        sys.stderr.flush()
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(original, 2)
            os.close(original)
            held.seek(0)
            for line in held:
                if not noise.match(line):
                    os.write(2, line)


@contextlib.contextmanager
def _without_keras() -> Iterator[None]:
    """Keep `import tensorflow` from importing Keras (0.6 s, and matplotlib with it), which is not used here.

    TensorFlow imports Keras eagerly only to register its optimizers for SavedModels, and ignores a failure. `tf.keras`
    is still loaded on first use.
    """
    if "keras" in sys.modules or "tensorflow" in sys.modules:
        yield
        return
    sys.modules["keras"] = None  # type: ignore[assignment]  # makes the import fail
    try:
        yield
    finally:
        del sys.modules["keras"]


def _import_tensorflow() -> types.ModuleType:
    if _VERBOSE:
        with _without_keras():
            return importlib.import_module("tensorflow")
    has_driver = xla_flags.has_nvidia_driver()
    with _without_stderr_lines(_START_UP_NOISE if has_driver else _NO_NVIDIA_NOISE), _without_keras():
        tensorflow = importlib.import_module("tensorflow")
        if not has_driver:
            # TensorFlow looks for the driver once per process; do that now, while its message is hidden. With a driver,
            # devices are not listed, so that importing this module never allocates a GPU.
            tensorflow.config.list_physical_devices("GPU")
    return tensorflow


def _restore_conversion_registry() -> None:
    """`mesh_tensorflow.tpu_variables` registers its variables through `ops`; the function moved in TensorFlow 2.13."""
    ops: Any = importlib.import_module("tensorflow.python.framework.ops")
    if hasattr(ops, "register_tensor_conversion_function"):
        return
    registry: Any = importlib.import_module("tensorflow.python.framework.tensor_conversion_registry")
    ops.register_tensor_conversion_function = registry.register_tensor_conversion_function


class _Removed:
    """Placeholder for a class that TensorFlow no longer has, for code that only names or subclasses it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise InputError(_NEEDS_TPU_ENVIRONMENT)


def _restore_estimator(tf: Any) -> None:
    """Put back the names under `tf.estimator` that mesh-tensorflow and gin need at import.

    `mesh_tensorflow.ops` subclasses two hook classes, which are still in `tf.compat.v1.train`. `gin.tf` (used by
    `mesh_tensorflow.transformer`) subclasses `tf.estimator.SessionRunHook`. The transformer compares with `ModeKeys`,
    and imports two modules of `tensorflow.python.tpu`.
    """
    v1 = tf.compat.v1
    if hasattr(v1, "estimator"):
        return

    class ModeKeys:
        TRAIN = "train"
        EVAL = "eval"
        PREDICT = "infer"

    class Estimator(_Removed):
        pass

    class EstimatorSpec(_Removed):
        pass

    estimator: Any = types.ModuleType("tensorflow.compat.v1.estimator")
    estimator.ModeKeys = ModeKeys
    estimator.Estimator = Estimator
    estimator.EstimatorSpec = EstimatorSpec
    hooks = ("SessionRunHook", "CheckpointSaverListener", "CheckpointSaverHook", "LoggingTensorHook", "StopAtStepHook")
    for name in hooks:
        setattr(estimator, name, getattr(v1.train, name))
    v1.estimator = tf.estimator = estimator
    sys.modules["tensorflow.compat.v1.estimator"] = estimator

    tpu = importlib.import_module("tensorflow.python.tpu")
    for name in ("tpu_config", "tpu_estimator"):
        module = types.ModuleType(f"tensorflow.python.tpu.{name}")
        sys.modules[module.__name__] = module
        setattr(tpu, name, module)


class _MeshTensorFlowRemarks(logging.Filter):
    """Drops mesh-tensorflow's log records below ERROR: the size of every variable, "not cloning random operation", …

    mesh-tensorflow uses TensorFlow's logger, so its records are recognised by their file; the logger's level and all
    other records are unaffected. TensorFlow's deprecation warnings about calls in mesh-tensorflow name that file in the
    message.
    """

    def __init__(self, directory: str) -> None:
        super().__init__()
        self._directory = directory

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno >= logging.ERROR:
            return True
        from_it = record.pathname.startswith(self._directory)
        return not from_it and f"From {self._directory}" not in record.getMessage()


def _import_mesh_tensorflow() -> types.ModuleType:
    module = importlib.import_module("mesh_tensorflow")
    logger = logging.getLogger("tensorflow")
    if not _VERBOSE and not any(isinstance(f, _MeshTensorFlowRemarks) for f in logger.filters):
        logger.addFilter(_MeshTensorFlowRemarks(os.path.dirname(str(module.__file__)) + os.sep))
    return module


_tf: Any = _import_tensorflow()

HAS_TPU_ESTIMATOR: bool = hasattr(_tf.compat.v1, "estimator") and hasattr(_tf.compat.v1.estimator, "tpu")

_NEEDS_TPU_ENVIRONMENT = (
    f"--tpu needs TPUEstimator, which TensorFlow {_tf.__version__} no longer has: run `make tpu-env` "
    "(TensorFlow 2.15.1; Python 3.10 or 3.11), then use .venv-tpu/bin/python"
)

_restore_conversion_registry()
_restore_estimator(_tf)
mtf: Any = _import_mesh_tensorflow()


def tpu_estimator() -> types.ModuleType:
    """The module with `TPUEstimator`, `TPUEstimatorSpec`, `TPUConfig` and `RunConfig`.

    Raises:
        InputError: this version of TensorFlow has no TPUEstimator; the message says what to install.
    """
    if not HAS_TPU_ESTIMATOR:
        raise InputError(_NEEDS_TPU_ENVIRONMENT)
    module: types.ModuleType = _tf.compat.v1.estimator.tpu
    return module


def tensorflow_version() -> tuple[int, int]:
    """(major, minor) of TensorFlow, for reports; other modules do not branch on it."""
    major, minor = _tf.__version__.split(".")[:2]
    return int(major), int(minor)


XLA_HAS_CUDNN_ATTENTION: bool = tensorflow_version() >= (2, 21)


def call_function(function: Any, arguments: list[Any], captured: list[Any]) -> Any:
    """Call a concrete function with captured tensors other than those it was traced with.

    All versions of TensorFlow have this, but without a public name.
    """
    return function._call_flat(arguments, captured)


def xla_call_module(module: str, arguments: list[Any], results: list[Any], platform: str = "CUDA") -> list[Any]:
    """Run StableHLO text that has a function `main`, inside an XLA-compiled function; `results`: the specs."""
    operations: Any = importlib.import_module("tensorflow.compiler.tf2xla.ops.gen_xla_ops")
    called: list[Any] = operations.xla_call_module(
        arguments,
        version=9,
        module=module,
        Sout=[result.shape for result in results],
        Tout=[result.dtype for result in results],
        platforms=[platform],
        dim_args_spec=[],
        function_list=[],
        has_token_input_output=False,
    )
    return called


def optimization_barrier(values: list[Any]) -> list[Any]:
    """The same values behind a barrier for XLA's optimisations; for use inside an XLA-compiled function."""
    operations: Any = importlib.import_module("tensorflow.compiler.tf2xla.ops.gen_xla_ops")
    passed: list[Any] = operations.xla_optimization_barrier(values)
    return passed


@contextlib.contextmanager
def quiet_estimator() -> Iterator[None]:
    """Hide TensorFlow's messages below ERROR, such as TPUEstimator's deprecation warnings."""
    logger = logging.getLogger("tensorflow")
    before = logger.level
    if not _VERBOSE:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
