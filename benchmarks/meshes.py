"""Training on meshes: speed and memory compared with one device, and with PyTorch if it is installed.

    python -m benchmarks.meshes --gpus 2 [--model 124M] [--torch "python3"]
    python -m benchmarks.meshes --cpus 8

On GPUs: one row a layout, each in a separate process, on random tokens: tokens/s of all devices together (median of
consecutive blocks of steps), the same per device relative to the one-device row, TensorFlow's count of a device's peak
memory, time to the first step. Batches grow with the devices that split them. PyTorch's rows
(benchmarks/peers/torch_gpt.py; DistributedDataParallel on several GPUs) run with the interpreter that --torch names.

On virtual CPU devices, which share one machine's cores: how the graph and the time to build it grow with the number of
devices. Prints a table and, as the last line, the same as JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shlex
import statistics
import subprocess
import sys
import time
from typing import Any

from gpt_mesh.meshes.compat import mtf  # noqa: F401  (first: it quiets TensorFlow's start-up)

import numpy as np
import tensorflow as tf

from gpt_mesh.config import parse_config
from gpt_mesh.engine.engine import DeviceEngine
from gpt_mesh.meshes.devices import MeshPlan, choose_devices

PEER = ("-m", "benchmarks.peers.torch_gpt")
MODELS: dict[str, dict[str, Any]] = {
    "tiny": {"n_layer": 2, "n_embd": 64, "n_head": 4, "n_ctx": 64, "n_vocab": 2048, "train_batch_size": 8},
    "124M": {"n_layer": 12, "n_embd": 768, "n_head": 12, "n_ctx": 1024, "n_vocab": 50304, "train_batch_size": 16},
    "1.3B": {"n_layer": 24, "n_embd": 2048, "n_head": 16, "n_ctx": 2048, "n_vocab": 50304, "train_batch_size": 4},
}
GPU_KEYS: dict[str, dict[str, Any]] = {
    "124M": {"precision": "bfloat16"},
    "1.3B": {"precision": "bfloat16", "recompute_grad": True, "tokens_per_mb_per_replica": 4096},
}
TENSOR = "heads:all,vocab:all,intermediate_expanded:all"
BLOCKS, STEPS = 5, 10
OURS = ("PYTHONPATH", "LD_LIBRARY_PATH")  # may be set for TensorFlow alone


def rows(model: str, count: int) -> dict[str, dict[str, Any]]:
    """Config keys of each row, by its name."""
    batch = MODELS[model]["train_batch_size"]
    mesh = {"mesh_shape": f"all:{count}"}
    return {
        "one device": {},
        f"batch over {count}": {**mesh, "layout": "batch:all", "train_batch_size": batch * count},
        f"batch over {count}, optimizer state split": {
            **mesh, "layout": "batch:all", "train_batch_size": batch * count, "split_optimizer_state": True,
        },
        f"weights over {count}": {**mesh, "layout": TENSOR},
    }  # fmt: skip


def make_engine(keys: dict[str, Any], kind: str) -> DeviceEngine:
    values = {"lr": 1e-4, "train_steps": 100, "datasets": ["demo"], "model_path": "none", "scale_by_depth": True}
    config = parse_config(values | keys, "benchmark.json")
    count = config.mesh.size
    devices = choose_devices([f"device:{kind}:{i}" for i in range(count)])
    return DeviceEngine(config, MeshPlan(config.mesh.shape, config.mesh.rules, tuple(devices)))


def batches(engine: DeviceEngine) -> list[np.ndarray]:
    rng, settings, model = np.random.default_rng(0), engine.config.training, engine.config.model
    shape = (settings.train_batch_size, model.n_ctx + 1)
    return [rng.integers(0, model.n_vocab, shape).astype(np.int32) for _ in range(4)]


def on_gpus(keys: dict[str, Any]) -> dict[str, Any]:
    """One row, in this process."""
    begin = time.perf_counter()
    engine = make_engine(keys, "GPU")
    data = batches(engine)
    first_loss = float(engine.train_step(data[0])["loss"])
    first = time.perf_counter() - begin
    tokens, rates = data[0].shape[0] * (data[0].shape[1] - 1), []
    for _ in range(BLOCKS):
        begin = time.perf_counter()
        for step in range(STEPS):
            loss = engine.train_step(data[step % len(data)])["loss"]
        last_loss = float(loss)
        rates.append(STEPS * tokens / (time.perf_counter() - begin))
    peaks = [tf.config.experimental.get_memory_info(d.removeprefix("/device:"))["peak"] for d in engine.plan.devices]
    return {
        "tokens_per_second": statistics.median(rates), "spread": [min(rates), max(rates)], "peak": max(peaks),
        "first_step": first, "devices": len(engine.plan.devices), "losses": [first_loss, last_loss],
    }  # fmt: skip


def on_cpus(keys: dict[str, Any]) -> dict[str, Any]:
    """One row, in this process: the size of the graph, in operations, and the time until the first step is done."""
    begin = time.perf_counter()
    engine = make_engine(keys, "CPU")
    data = batches(engine)
    function = engine._train.traced(tf.TensorSpec(data[0].shape, tf.int32))
    built = time.perf_counter() - begin
    definition = function.graph.as_graph_def()  # type: ignore[attr-defined]
    operations = len(definition.node) + sum(len(f.node_def) for f in definition.library.function)
    loss = float(engine.train_step(data[0])["loss"])
    return {
        "operations": operations, "build": built, "first_step": time.perf_counter() - begin, "loss": loss,
        "devices": len(engine.plan.devices),
    }  # fmt: skip


def in_own_process(kind: str, keys: dict[str, Any]) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.meshes", "--row", json.dumps({"kind": kind, "keys": keys})]
    child = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if child.returncode:
        return {"failed": child.returncode}
    found: dict[str, Any] = json.loads(child.stdout.splitlines()[-1])
    return found


def peer(command: str, model: str, count: int, compiled: bool) -> dict[str, Any]:
    sizes = MODELS[model]
    flags = {
        "layers": sizes["n_layer"], "width": sizes["n_embd"], "heads": sizes["n_head"], "context": sizes["n_ctx"],
        "vocab": sizes["n_vocab"], "batch": sizes["train_batch_size"], "gpus": count,
    }  # fmt: skip
    arguments = [part for name, value in flags.items() for part in (f"--{name}", str(value))]
    child = subprocess.run(
        [*shlex.split(command), *PEER, *arguments, *(["--compile"] if compiled else [])],
        stdout=subprocess.PIPE, text=True, env={k: v for k, v in os.environ.items() if k not in OURS},
    )  # fmt: skip
    if child.returncode:
        return {"failed": child.returncode}
    found: dict[str, Any] = json.loads(child.stdout.splitlines()[-1])
    return {**found, "devices": count}


def gpu_table(args: argparse.Namespace) -> dict[str, Any]:
    results: dict[str, Any] = {}
    chosen = rows(args.model, args.gpus)

    def wanted(name: str) -> bool:
        return not args.only or any(part in name for part in args.only)

    for name, keys in chosen.items():
        if not wanted(name):
            continue
        results[name] = in_own_process("GPU", {**MODELS[args.model], **GPU_KEYS[args.model], **keys})
        print_gpu_row(name, results[name], results.get("one device"))
    for count in (1, args.gpus) if args.torch else ():
        for compiled in (False, True):
            name = f"PyTorch{' compiled' if compiled else ''}, {count} GPU{'s' * (count > 1)}"
            if not wanted(name):
                continue
            results[name] = peer(args.torch, args.model, count, compiled)
            print_gpu_row(name, results[name], results.get(f"PyTorch{' compiled' if compiled else ''}, 1 GPU"))
    return results


def print_gpu_row(name: str, row: dict[str, Any], one: dict[str, Any] | None) -> None:
    if "failed" in row:
        print(f"{name:<42} failed with status {row['failed']}", flush=True)
        return
    efficiency = row["tokens_per_second"] / row["devices"] / (one or {}).get("tokens_per_second", math.inf)
    print(
        f"{name:<42} {row['tokens_per_second']:>10,.0f} tokens/s  {efficiency:>6.1%} of one device each  "
        f"{row['peak'] / 2**30:>6.2f} GiB  first step {row.get('first_step', 0):.0f} s  {row.get('losses', '')}",
        flush=True,
    )


def cpu_table(args: argparse.Namespace) -> dict[str, Any]:
    results: dict[str, Any] = {}
    print(f"{'devices':>8} {'operations':>11} {'build':>8} {'first step':>11}")
    counts = [n for n in (1, 2, 4, 8) if n <= args.cpus]
    for count in counts:
        keys = {"mesh_shape": f"all:{count}", "layout": "batch:all"} if count > 1 else {}
        row = results[str(count)] = in_own_process("CPU", {**MODELS["tiny"], **keys})
        print(
            f"{count:>8} {row['operations']:>11,} {row['build']:>6.1f} s {row['first_step']:>9.1f} s  "
            f"loss {row['loss']:.6f}",
            flush=True,
        )
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--gpus", type=int, default=0, help="how many GPUs to use")
    parser.add_argument("--cpus", type=int, default=0, help="up to how many virtual CPU devices")
    parser.add_argument("--model", choices=["124M", "1.3B"], default="124M")
    parser.add_argument("--only", nargs="*", help="rows whose names hold one of these words")
    parser.add_argument("--torch", help="command of an interpreter that has PyTorch")
    parser.add_argument("--row", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.row:
        row = json.loads(args.row)
        print(json.dumps(on_gpus(row["keys"]) if row["kind"] == "GPU" else on_cpus(row["keys"])))
        return
    print(json.dumps(gpu_table(args) if args.gpus else cpu_table(args)))


if __name__ == "__main__":
    main()
