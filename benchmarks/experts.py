"""The speed of a mixture of experts that loses no token, compared with a dense layer of equal FLOPs, in turns.

    python -m benchmarks.experts            (on the CPU)
    python -m benchmarks.experts gpu large  (on the first GPU)

A step is a layer's forward and backward pass, with the gradients of its input and weights. The dense layer is a gated
feed-forward with as many hidden features as the experts of a token have together. Loads: `even` is that of random
gates; under `uneven` one expert is among the choices of every token. Prints milliseconds a step (median, lowest,
highest) and the ratio to the dense layer (median of rounds). The table is saved in runs/benchmarks/.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import Any

from gpt_mesh.meshes.compat import mtf

import numpy as np
import tensorflow as tf

from benchmarks import machine
from gpt_mesh import model_fns
from gpt_mesh.config import Config, parse_config
from gpt_mesh.engine.engine import DeviceEngine
from gpt_mesh.meshes.devices import MeshPlan, choose_devices
from gpt_mesh.models.context import Context
from gpt_mesh.models.experts.mixture import mixture_of_experts
from gpt_mesh.models.experts.network import shared_expert

SIZES: dict[str, dict[str, Any]] = {
    "cpu": {"n_embd": 256, "hidden": 512, "experts": 8, "batch": 8, "n_ctx": 256, "precision": "float32"},
    "gpu": {"n_embd": 768, "hidden": 2048, "experts": 8, "batch": 16, "n_ctx": 1024, "precision": "bfloat16"},
    "large": {"n_embd": 2048, "hidden": 7168, "experts": 8, "batch": 8, "n_ctx": 2048, "precision": "bfloat16"},
    "many": {"n_embd": 1024, "hidden": 512, "experts": 64, "batch": 16, "n_ctx": 1024, "precision": "bfloat16"},
}
CHOICES = {"many": 8}  # of a token; otherwise 2
SKEW = 100.0  # added to the logit of one expert


def config_of(size: str) -> Config:
    """A model whose only layer is the mixture, with a shared expert as its dense counterpart."""
    sizes, choices = SIZES[size], CHOICES.get(size, 2)
    keys = {
        "n_embd": sizes["n_embd"],
        "n_head": 1,
        "n_layer": 1,
        "n_ctx": sizes["n_ctx"],
        "n_vocab": 2048,
        "train_batch_size": sizes["batch"],
        "precision": sizes["precision"],
        "moe_layers": [0],
        "moe_activation": "silu",
        "moe_params": {
            "moe_gating": "top_k",
            "moe_top_k": choices,
            "moe_num_experts": sizes["experts"],
            "moe_hidden_size": sizes["hidden"],
            "moe_glu": True,
            "moe_dropless": True,
            "moe_shared_expert_size": sizes["hidden"] * choices,
        },
        "lr": 1e-3,
        "train_steps": 1,
        "datasets": ["demo"],
        "model_path": "unused",
    }
    return parse_config(keys, "benchmark.json")


class Layer:
    """A layer's step on one device."""

    def __init__(self, config: Config, device: str, *, dense: bool) -> None:
        alone = config.model.moe_params.model_copy(update={"moe_shared_expert_size": 0})
        model = config.model if dense else config.model.model_copy(update={"moe_params": alone})
        self.config, self.dense = dataclasses.replace(config, model=model), dense
        self.engine = DeviceEngine(self.config, MeshPlan({}, {}, tuple(choose_devices([device]))), compiled=True)
        self._run = self.engine.function(self._build)

    def _build(self, x: tf.Tensor) -> tuple[tf.Tensor, ...]:
        config, mesh_impl = self.config, self.engine.mesh_impl
        ctx = model_fns.make_context(config, mesh_impl, x.shape[0], x.shape[1])
        ctx = dataclasses.replace(ctx, seed=mtf.constant(ctx.mesh, 0, dtype=tf.int32))
        dims = ctx.dims
        x_in = mtf.import_tf_tensor(ctx.mesh, tf.cast(x, ctx.dtype), mtf.Shape([dims.batch, dims.sequence, dims.embd]))
        y = self._layer(ctx, x_in)
        weights = [weight.value for weight in ctx.mesh.graph.trainable_variables]
        total = mtf.reduce_mean(mtf.cast(mtf.square(y), tf.float32))
        gradients = mtf.gradients([total], [x_in, *weights])
        lowering = mtf.Lowering(ctx.mesh.graph, {ctx.mesh: mesh_impl}, autostack=False)
        return tuple(lowering.export_to_tf_tensor(t) for t in (total, *gradients) if t is not None)

    def _layer(self, ctx: Context, x: mtf.Tensor) -> mtf.Tensor:
        return shared_expert(ctx, x, "moe", "moe") if self.dense else mixture_of_experts(ctx, x, "moe", "moe")[0]

    def seconds(self, x: tf.Tensor, steps: int) -> float:
        """Of one step."""
        start = time.perf_counter()
        for _ in range(steps):
            found = self._run(x)
        float(found[0])
        return (time.perf_counter() - start) / steps


def measure(size: str, load: str, device: str, rounds: int, seconds: float) -> dict[str, dict[str, Any]]:
    """Milliseconds a step of both layers, in turns."""
    config = config_of(size)
    layers = {"dense": Layer(config, device, dense=True), "experts": Layer(config, device, dense=False)}
    rng, shape = np.random.default_rng(0), (SIZES[size]["batch"], SIZES[size]["n_ctx"], SIZES[size]["n_embd"])
    values = rng.standard_normal(shape).astype(np.float32)
    values[..., 0] = 1.0  # a constant feature, by which the gates can favour an expert
    with tf.device(device):
        x = tf.constant(values, tf.bfloat16 if config.training.precision == "bfloat16" else tf.float32)
    for layer in layers.values():
        layer.seconds(x, 1)
    gating = layers["experts"].engine.store.masters["gpt2/moe/gating/kernel"]
    kernel = 0.02 * rng.standard_normal(gating.shape).astype(np.float32)
    kernel[0] = 0.0
    kernel[0, 0] = {"even": 0.0, "uneven": SKEW}[load]
    gating.assign(kernel)
    steps = {name: max(1, int(seconds / layer.seconds(x, 2))) for name, layer in layers.items()}
    found: dict[str, list[float]] = {name: [] for name in layers}
    for _ in range(rounds):
        for name, layer in layers.items():
            found[name].append(1000 * layer.seconds(x, steps[name]))
    ratios = [experts / dense for experts, dense in zip(found["experts"], found["dense"], strict=True)]
    return {
        **{name: {"median": statistics.median(t), "low": min(t), "high": max(t)} for name, t in found.items()},
        "ratio": {"median": statistics.median(ratios), "low": min(ratios), "high": max(ratios)},
    }


def main(printed: Callable[[str], None] = print) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    gpus = tf.config.list_physical_devices("GPU")
    parser.add_argument("sizes", nargs="*", default=["gpu", "large"] if gpus else ["cpu"], help=", ".join(SIZES))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each layer in a round")
    args = parser.parse_args()
    device = "device:GPU:0" if gpus else "device:CPU:0"
    results = {}
    for size in args.sizes:
        for load in ("even", "uneven"):
            found = results[f"{size}, {load}"] = measure(size, load, device, args.rounds, args.seconds)
            for name, row in found.items():
                unit = "" if name == "ratio" else " ms"
                printed(f"{size}, {load}: {name} {row['median']:.2f}{unit} ({row['low']:.2f} to {row['high']:.2f})")
    machine.keep("experts", results, rounds=args.rounds, unit="ms")


if __name__ == "__main__":
    main()
