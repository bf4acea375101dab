"""Training steps on a CPU in float32 and bfloat16, compiled or not, in turns in one process.

    python -m benchmarks.precision [--width 256] [--layers 4] [--heads 4] [--context 256] [--batch 8] [--rounds 5]

Prints milliseconds per step (median, lowest and highest round) and saves them in runs/benchmarks/. With
ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16 in the environment oneDNN, which does the uncompiled matmuls, does not use AMX.
"""

from __future__ import annotations

import argparse
import statistics
import time

from gpt_mesh.meshes.compat import mtf  # noqa: F401  (first: it quiets TensorFlow's start-up)

import numpy as np
import tensorflow as tf

from benchmarks import machine
from benchmarks.training_step import make_config
from gpt_mesh.engine.engine import DeviceEngine
from gpt_mesh.meshes.devices import MeshPlan

WAYS = {
    "float32, compiled": ("float32", True),
    "bfloat16, compiled": ("bfloat16", True),
    "bfloat16, not compiled": ("bfloat16", False),
}
STEPS = 2  # a round


class Way:
    """One way to compute a model's training step."""

    def __init__(self, keys: dict[str, int], precision: str, compiled: bool) -> None:
        config = make_config({**keys, "precision": precision})
        self._engine = DeviceEngine(config, MeshPlan({}, {}, ("/device:CPU:0",)), compiled=compiled)
        shape = (keys["train_batch_size"], keys["n_ctx"] + 1)
        tokens = np.random.default_rng(0).integers(0, keys["n_vocab"], shape)
        self._tokens: tf.Tensor = self._engine.stage(tokens)
        self.milliseconds: list[float] = []
        self._step()

    def _step(self) -> None:
        float(self._engine.train_step(self._tokens)["loss"])

    def round(self) -> None:
        begin = time.perf_counter()
        for _ in range(STEPS):
            self._step()
        self.milliseconds.append(1e3 * (time.perf_counter() - begin) / STEPS)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    sizes = {"width": 256, "layers": 4, "heads": 4, "context": 256, "batch": 8, "vocab": 8192, "rounds": 5}
    for name, default in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    keys = {"n_embd": args.width, "n_layer": args.layers, "n_head": args.heads, "n_ctx": args.context}
    keys |= {"train_batch_size": args.batch, "n_vocab": args.vocab}
    ways = {name: Way(keys, *way) for name, way in WAYS.items()}
    for way in ways.values():  # the first round of each is not counted
        way.round()
        way.milliseconds.clear()
    for _ in range(args.rounds):
        for way in ways.values():
            way.round()
    rows = {}
    for name, way in ways.items():
        found = way.milliseconds
        rows[name] = {"median": statistics.median(found), "low": min(found), "high": max(found), "times": found}
        print(f"{name:<24} {rows[name]['median']:>8.0f} ms ({min(found):.0f} - {max(found):.0f})")
    kept = machine.keep(f"precision_{args.width}", {"training step": rows}, unit="ms", rounds=args.rounds, sizes=keys)
    print(f"kept in {kept}")


if __name__ == "__main__":
    main()
