"""Time of a training step on two processes of this machine, compared with one process on the same mesh.

    python -m benchmarks.several_hosts [--models tiny 4M] [--steps 20]

Both use the same virtual CPU devices, which share the machine's cores: the difference is the time that TensorFlow's
runtime takes to start operations in another process and to send tensors through gRPC, here over the loopback interface.
Random tokens; median and fastest of the steps after the first; then the time to save a checkpoint. Each row uses
separate processes.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
MODELS: dict[str, dict[str, Any]] = {
    "tiny": {"n_layer": 2, "n_embd": 64, "n_head": 4, "n_ctx": 64, "n_vocab": 2048, "train_batch_size": 8},
    "4M": {"n_layer": 4, "n_embd": 256, "n_head": 8, "n_ctx": 128, "n_vocab": 4096, "train_batch_size": 8},
}
MESHES = {
    "batch over 2": (1, {"mesh_shape": "x:2", "layout": "batch:x"}),
    "heads over 2": (1, {"mesh_shape": "x:2", "layout": "heads:x,vocab:x,intermediate_expanded:x"}),
    "batch and heads over 4": (
        2,
        {"mesh_shape": "x:2,y:2", "layout": "batch:x,heads:y,vocab:y,intermediate_expanded:y"},
    ),
}


def free_addresses() -> list[str]:
    with socket.create_server(("localhost", 0)) as first, socket.create_server(("localhost", 0)) as second:
        return [f"localhost:{one.getsockname()[1]}" for one in (first, second)]


def measure(model: str, mesh: str, hosts: int, steps: int) -> dict[str, float]:
    """Seconds a step and a save, and the last loss, in this process (and a worker's)."""
    from gpt_mesh.meshes.compat import mtf  # noqa: F401  (first: it quiets TensorFlow's start-up)

    import numpy as np

    from gpt_mesh.cluster.addresses import Cluster
    from gpt_mesh.cluster.chief import hosts_of
    from gpt_mesh.config import parse_config
    from gpt_mesh.engine.building import make_plan
    from gpt_mesh.engine.engine import DeviceEngine

    each, keys = MESHES[mesh]
    values = {"train_steps": 1000, "lr": 1e-3, "datasets": ["demo"], "model_path": "none", **MODELS[model], **keys}
    config = parse_config(values, "benchmark.json")
    rng, cluster = np.random.default_rng(1), None
    if hosts == 2:
        cluster = Cluster(tuple(free_addresses()))
        flags = ["--cluster", ",".join(cluster.addresses), "--worker", "1"]
        subprocess.Popen([sys.executable, str(ROOT / "main.py"), *flags], stderr=subprocess.DEVNULL)
    count = each if hosts == 2 else 2 * each
    with hosts_of(cluster, [f"CPU:{i}" for i in range(count)]) as found, tempfile.TemporaryDirectory() as folder:
        found.start()
        engine = DeviceEngine(config, make_plan(config, found, fit=False))
        took = []
        for _ in range(steps + 1):
            tokens = rng.integers(0, config.model.n_vocab, (config.training.train_batch_size, config.model.n_ctx + 1))
            begin = time.perf_counter()
            loss = float(engine.train_step(tokens.astype(np.int32))["loss"])
            took.append(time.perf_counter() - begin)
        begin = time.perf_counter()
        engine.save(folder, steps, {})
        saved = time.perf_counter() - begin
    # The worker ends with this process.
    return {"step": statistics.median(took[1:]), "fastest": min(took), "save": saved, "loss": loss}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--steps", type=int, default=20, help="default: %(default)s")
    parser.add_argument("--row", nargs=3, metavar=("MODEL", "MESH", "HOSTS"), help="measure one and print it as JSON")
    flags = parser.parse_args()
    if flags.row:
        print(json.dumps(measure(flags.row[0], flags.row[1], int(flags.row[2]), flags.steps)), flush=True)
        return
    print(f"{os.cpu_count()} cores\n\n| model | mesh | one process | two processes | save, one | save, two |")
    print("|---|---|---|---|---|---|", flush=True)
    for model in flags.models:
        for mesh in MESHES:
            found = []
            for hosts in (1, 2):
                command = [
                    sys.executable,
                    "-m",
                    "benchmarks.several_hosts",
                    "--steps",
                    str(flags.steps),
                    "--row",
                    model,
                    mesh,
                    str(hosts),
                ]
                child = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
                found.append(json.loads(child.stdout.splitlines()[-1]))
            one, two = found
            assert abs(one["loss"] - two["loss"]) <= 1e-4 * one["loss"], found
            print(
                f"| {model} | {mesh} "
                f"| {one['step'] * 1e3:.0f} ms, {one['fastest'] * 1e3:.0f} ms "
                f"| {two['step'] * 1e3:.0f} ms, {two['fastest'] * 1e3:.0f} ms "
                f"| {one['save']:.2f} s | {two['save']:.2f} s |",
                flush=True,
            )


if __name__ == "__main__":
    main()
