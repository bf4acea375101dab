"""Very small models on virtual CPU devices, with weights large enough that every part of them shows in the logits."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gpt_mesh.meshes.compat import mtf

import numpy as np
import tensorflow as tf

from gpt_mesh.config import Config, parse_config
from gpt_mesh.engine.engine import DeviceEngine
from gpt_mesh.meshes.devices import MeshPlan, choose_devices
from gpt_mesh.meshes.layouts import plan_mesh
from gpt_mesh.meshes.variables import VariableStore
from gpt_mesh.planning.graph import limits_of

Dim = mtf.Dimension
# Where one layer shows as much as two, in half the time.
ONE_LAYER: dict[str, Any] = {"n_layer": 1, "attention_types": [[["local"], 1]]}

# A block as Llama has it.
LLAMA: dict[str, Any] = {
    "pos_emb": "rotary",
    "norm": "rmsnorm",
    "norm_epsilon": 1e-6,
    "mlp_glu": True,
    "glu_columns": "separate",
    "activation_function": "silu",
    "intermediate_size": 24,
    "use_bias_in_mlp": False,
    "use_bias_in_attn_linear": False,
    "no_weight_tie": True,
}


def tiny_config(**keys: Any) -> Config:
    """A model of two layers, one global and one with a window of 5. keys: replace or join the flat keys given here."""
    values: dict[str, Any] = {
        "n_head": 4,
        "n_embd": 16,
        "n_layer": 2,
        "n_ctx": 16,
        "n_vocab": 64,
        "attention_types": [[["global", "local"], 1]],
        "local_attention_radius": 5,
        "lr": 0.01,
        "train_batch_size": 4,
        "train_steps": 100,
        "datasets": ["tiny"],
        "model_path": "unused",
    }
    return parse_config(values | keys, "tiny.json", Path(__file__).parent)


def cpu_names(count: int) -> list[str]:
    """Names of the first `count` CPU devices, as `--gpu_ids` takes them."""
    return [f"device:CPU:{i}" for i in range(count)]


def make_engine(config: Config, *, compiled: bool | None = None) -> DeviceEngine:
    """An engine on as many CPU devices as the config's mesh has."""
    devices = choose_devices(cpu_names(config.mesh.size))
    plan = plan_mesh(config, limits_of(config), devices, fit=False, chosen=True)
    return DeviceEngine(config, plan, compiled=compiled)


@contextmanager
def unoptimised_graphs() -> Iterator[None]:
    """For graphs that run a few times only: TensorFlow's own optimisation of them would take most of the time."""
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
    try:
        yield
    finally:
        tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": False})


def token_batch(config: Config, seed: int = 0, *, rows: int | None = None, width: int | None = None) -> np.ndarray:
    """Uniformly random int32 tokens [train_batch_size, n_ctx + 1], or [rows, width]."""
    shape = (rows or config.training.train_batch_size, width or config.model.n_ctx + 1)
    return np.random.default_rng(seed).integers(0, config.model.n_vocab, shape).astype(np.int32)


def train(engine: DeviceEngine, steps: int, seed: int = 0) -> list[float]:
    """The losses of training steps, each on its own batch."""
    return [float(engine.train_step(token_batch(engine.config, seed + i))["loss"]) for i in range(steps)]


def is_weight(name: str) -> bool:
    """Whether a variable is a trained one, not an optimizer slot or the step."""
    return name.startswith("gpt2/") and not re.search(r"/(adam|adafactor)_\w+$", name)


def weights_of(engine: DeviceEngine) -> dict[str, np.ndarray]:
    """The trained variables by name, without their prefix `gpt2/`; engines on several devices: `gather` first."""
    return {name[5:]: v.numpy() for name, v in engine.store.masters.items() if is_weight(name)}


def enlarge_weights(engine: DeviceEngine, seed: int = 0, scale: float = 0.3) -> None:
    """Give every existing variable random values under which scores, gains and biases all matter."""
    rng = np.random.default_rng(seed)
    for name, variable in sorted(engine.store.masters.items()):
        if is_weight(name):
            mean = 1.0 if name.endswith("/g") else 0.0
            variable.assign(mean + scale * rng.standard_normal(variable.shape.as_list()))
    engine.store.scatter()


def mesh_of(mesh_shape: str = "", layout: str = "", store: VariableStore | None = None) -> Any:
    """The mesh implementation of a `mesh_shape` and a `layout` in the config's form, on CPU devices."""
    shape = {name: int(size) for name, size in _pairs(mesh_shape)}
    count = int(np.prod(list(shape.values()), dtype=int))
    plan = MeshPlan(shape, dict(_pairs(layout)), tuple(f"/{name}" for name in cpu_names(count)))
    return plan.implementation(store or VariableStore("/device:CPU:0"))


def _pairs(text: str) -> list[tuple[str, str]]:
    return [(name, value) for name, _, value in (pair.partition(":") for pair in text.split(",") if pair)]


def on_mesh(
    build: Callable[..., Sequence[Any]],
    operands: Sequence[tuple[Any, Sequence[Any]]],
    mesh_shape: str = "",
    layout: str = "",
    *,
    compiled: bool = False,
) -> list[np.ndarray]:
    """What a mesh graph makes of arrays.

    build: takes one mesh tensor an operand, returns mesh tensors. operands: arrays with their mesh dimensions.
    """
    implementation = mesh_of(mesh_shape, layout)

    def run(*arrays: tf.Tensor) -> list[tf.Tensor]:
        graph = mtf.Graph()
        mesh = mtf.Mesh(graph, "mesh")
        dims = [mtf.Shape(list(dims)) for _, dims in operands]
        outputs = build(*[mtf.import_tf_tensor(mesh, a, d) for a, d in zip(arrays, dims, strict=True)])
        lowering = mtf.Lowering(graph, {mesh: implementation}, autostack=False)
        return [lowering.export_to_tf_tensor(output) for output in outputs]

    with tf.device("/device:CPU:0"):
        function = tf.function(run, autograph=False, jit_compile=compiled or None)
        return [x.numpy() for x in function(*[tf.constant(array) for array, _ in operands])]


def assert_all_close(
    found: Mapping[str, np.ndarray], wanted: Mapping[str, np.ndarray], *, rtol: float, atol: float = 0.0
) -> None:
    """Equal keys and close arrays; a failure names the key."""
    assert found.keys() == wanted.keys()
    for name, array in wanted.items():
        np.testing.assert_allclose(found[name], array, rtol=rtol, atol=atol, err_msg=name)
