"""Peak memory of training with each memory saver, compared with the estimate that a run prints.

    python -m benchmarks.training_memory [--device GPU:0] [--steps 4] [--json results.json]

Each row trains one small GPT (124 million parameters on a GPU) for a few steps on random tokens, in a separate process.
On the CPU (Linux) the peak is that of resident memory from the second step on, minus what the process held before the
model was built; on a GPU it is TensorFlow's own count of the device's memory. Loss is that of the last step: the savers
change it by rounding only. Speed is the median step, relative to the plain row's in the same run.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from gpt_mesh.meshes.compat import mtf  # noqa: F401  (first: it quiets TensorFlow's start-up)

import numpy as np
import tensorflow as tf

from gpt_mesh.config import Config, parse_config
from gpt_mesh.engine.engine import DeviceEngine
from gpt_mesh.meshes.devices import MeshPlan
from gpt_mesh.planning.memory import training_memory
from gpt_mesh.planning.metrics import human_bytes

CPU_MODEL = {"n_layer": 6, "n_embd": 256, "n_head": 8, "n_ctx": 512, "n_vocab": 4096, "train_batch_size": 8}
GPU_MODEL = {"n_layer": 12, "n_embd": 768, "n_head": 12, "n_ctx": 1024, "n_vocab": 50304, "train_batch_size": 16}
SAVERS: dict[str, dict[str, Any]] = {
    "plain": {},
    "recompute_grad": {"recompute_grad": True},
    "2 sequences a microbatch": {"tokens_per_mb_per_replica": 2},
    "both": {"recompute_grad": True, "tokens_per_mb_per_replica": 2},
    "bfloat16": {"precision": "bfloat16"},
    "bfloat16 and both": {"precision": "bfloat16", "recompute_grad": True, "tokens_per_mb_per_replica": 2},
}


def make_config(model: dict[str, int], keys: dict[str, Any]) -> Config:
    """The model with a row's keys; microbatches are given in sequences."""
    if (sequences := keys.get("tokens_per_mb_per_replica")) is not None:
        keys = keys | {"tokens_per_mb_per_replica": sequences * model["n_ctx"]}
    values = {"lr": 1e-4, "train_steps": 100, "datasets": ["demo"], "model_path": "none", "scale_by_depth": True}
    return parse_config(values | model | keys, "benchmark.json")


class ProcessMemory:
    """Resident memory of this process at most, over what it was at first. Some hundred megabytes of it are what
    compiling leaves behind, whatever the model's size; what compiling takes for a while is not counted.
    """

    def __init__(self) -> None:
        self.before = self._status("VmRSS")

    def restart(self) -> None:
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far

    def peak(self) -> int:
        return self._status("VmHWM") - self.before

    @staticmethod
    def _status(key: str) -> int:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(key):
                return int(line.split()[1]) * 1024
        raise AssertionError(key)


class GpuMemory:
    """TensorFlow's own count of what it holds of a GPU's memory at most."""

    def __init__(self, device: str) -> None:
        self.device = device

    def restart(self) -> None:
        tf.config.experimental.reset_memory_stats(self.device)

    def peak(self) -> int:
        return int(tf.config.experimental.get_memory_info(self.device)["peak"])


def measure(model: dict[str, int], keys: dict[str, Any], device: str, steps: int) -> dict[str, Any]:
    """One row, in this process."""
    config = make_config(model, keys)
    memory = GpuMemory(device) if device.startswith("GPU") else ProcessMemory()
    engine = DeviceEngine(config, MeshPlan({}, {}, (f"/device:{device}",)))
    rng, seconds, loss = np.random.default_rng(0), [], 0.0
    for step in range(steps):
        if step == 1:
            memory.restart()
        tokens = rng.integers(0, model["n_vocab"], (model["train_batch_size"], model["n_ctx"] + 1)).astype(np.int32)
        start = time.perf_counter()
        loss = float(engine.train_step(tokens)["loss"])
        seconds.append(time.perf_counter() - start)
    estimate = sum(training_memory(config, engine.plan).values())
    return {"peak": memory.peak(), "estimate": estimate, "seconds": statistics.median(seconds[1:]), "loss": loss}


def in_own_process(arguments: list[str]) -> dict[str, Any]:
    """A row, measured by this file in another process."""
    child = subprocess.run(
        [sys.executable, "-m", "benchmarks.training_memory", *arguments], stdout=subprocess.PIPE, text=True, check=True
    )
    found: dict[str, Any] = json.loads(child.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--device", default="CPU:0", help="CPU:0 or GPU:0 (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=4, help="of each row, at least 2 (default: %(default)s)")
    parser.add_argument("--json", metavar="FILE", help="keep the results in a file")
    parser.add_argument("--row", choices=SAVERS, help="measure one row in this process and print it as JSON")
    flags = parser.parse_args()
    model = GPU_MODEL if flags.device.startswith("GPU") else CPU_MODEL
    if flags.row:
        print(json.dumps(measure(model, SAVERS[flags.row], flags.device, flags.steps)))
        return
    print(f"{json.dumps(model)}, {flags.device}, {os.cpu_count()} cores\n")
    print("| | peak | of plain | estimate | step time of plain's | loss |\n|---|---|---|---|---|---|", flush=True)
    results: dict[str, dict[str, Any]] = {}
    for name in SAVERS:
        row = results[name] = in_own_process(["--row", name, "--device", flags.device, "--steps", str(flags.steps)])
        plain = results["plain"]
        print(
            f"| {name} | {human_bytes(row['peak'])} | {row['peak'] / plain['peak']:.2f} | "
            f"{human_bytes(row['estimate'])} | {row['seconds'] / plain['seconds']:.2f} | {row['loss']:.5f} |",
            flush=True,
        )
    if flags.json:
        facts = {"model": model, "device": flags.device, "tensorflow": tf.__version__, "rows": results}
        Path(flags.json).write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    main()
