"""The speed of a training step compared with PyTorch and Hugging Face, in turns on the same machine.

    python -m benchmarks.training_step cpu --peers .venv-peers/bin/python
    python -m benchmarks.training_step 124M --peers python3           (one GPU; also llama-124M, 1.3B, …)

Each competitor is a separate process that trains on random tokens; they take turns of one block of steps each, and a
ratio compares blocks of the same round. Prints tokens/s (median, lowest and highest block), the ratio to ours (median
of rounds), the model's FLOPs (counted by planning/graph.py) as a share of the measured matmul peak and of a known GPU's
data sheet (MFU), the time to the first step, and on a GPU the peak memory. The table is saved in runs/benchmarks/.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

from gpt_mesh.meshes.compat import mtf  # noqa: F401  (first: it quiets TensorFlow's start-up)

import numpy as np
import tensorflow as tf

from benchmarks import machine
from benchmarks.turns import Competitor, contest, take_turns
from gpt_mesh.config import Config, parse_config
from gpt_mesh.engine.engine import DeviceEngine
from gpt_mesh.meshes.devices import MeshPlan, choose_devices
from gpt_mesh.planning.metrics import device_peak, flops_per_token

GPT = {"n_embd": 768, "n_head": 12, "n_layer": 12, "n_ctx": 1024, "n_vocab": 50304, "train_batch_size": 16}
XL = {"n_embd": 2048, "n_head": 16, "n_layer": 24, "n_ctx": 2048, "n_vocab": 50304, "train_batch_size": 8}
LLAMA = {
    "norm": "rmsnorm", "pos_emb": "rotary", "mlp_glu": True, "glu_columns": "separate", "activation_function": "silu",
    "use_bias_in_attn_linear": False, "use_bias_in_mlp": False, "scale_attn_weights": True,
}  # fmt: skip
CPU = {"n_embd": 256, "n_head": 4, "n_layer": 4, "n_ctx": 256, "n_vocab": 8192, "train_batch_size": 8}
SIZES: dict[str, dict[str, Any]] = {
    "cpu": CPU,
    "llama-cpu": {**CPU, **LLAMA, "num_kv_heads": 2, "intermediate_size": 704},
    "124M": GPT,
    "124M-4096": {**GPT, "n_ctx": 4096, "train_batch_size": 4},
    "local": {**GPT, "n_ctx": 4096, "train_batch_size": 4},
    "local-16384": {**GPT, "n_ctx": 16384, "train_batch_size": 1},
    "local-float32": {**GPT, "n_ctx": 4096, "train_batch_size": 4, "precision": "float32"},
    "local-cpu": {"n_embd": 256, "n_head": 4, "n_layer": 4, "n_ctx": 4096, "n_vocab": 8192, "train_batch_size": 1},
    "llama-124M": {**GPT, **LLAMA, "num_kv_heads": 4, "intermediate_size": 2048},
    "1.3B": XL,
    "llama-1.3B": {**XL, **LLAMA, "num_kv_heads": 8, "intermediate_size": 5504},
    "2.7B": {  # as published, but for the vocabulary's padding
        **XL,
        "n_embd": 2560,
        "n_head": 20,
        "n_layer": 32,
        "train_batch_size": 4,
        "recompute_grad": True,
        "attention_types": [[["global", "local"], 16]],
    },
}


def _with_window(layers: int) -> dict[str, dict[str, Any]]:
    """Rows of ours with all layers global, and with all local."""
    return {"ours": {}, "ours, window 256": {"attention_types": [[["local"], layers]], "local_attention_radius": 256}}


OURS: dict[str, dict[str, dict[str, Any]]] = {  # rows of ours beside the first, by the keys that they change
    "cpu": {"ours": {}, "ours, bfloat16": {"precision": "bfloat16"}},
    "1.3B": {"ours": {}, "ours, recomputed": {"recompute_grad": True}},
    "local": _with_window(12),
    "local-16384": _with_window(12),
    "local-float32": _with_window(12),
    "local-cpu": _with_window(4),
}
PEER = ("-m", "benchmarks.peers.torch_training")


def make_config(keys: dict[str, Any]) -> Config:
    values = {"lr": 1e-4, "train_steps": 100, "datasets": ["demo"], "model_path": "none", "scale_by_depth": True}
    values |= {"embed_dropout": 0.0, "res_dropout": 0.0, "attn_dropout": 0.0}
    return parse_config(values | keys, "benchmark.json")


def run_ours(keys: dict[str, Any], device: str, steps: int) -> None:
    """A competitor: our engine, compiled."""
    config = make_config(keys)
    begin = time.perf_counter()
    engine = DeviceEngine(config, MeshPlan({}, {}, tuple(choose_devices([device]))))
    rng, settings, model = np.random.default_rng(0), config.training, config.model
    shape = (settings.train_batch_size, model.n_ctx + 1)
    # On the device before the clock runs, as in training, and as the peers' are.
    batches = [engine.stage(rng.integers(0, model.n_vocab, shape).astype(np.int32)) for _ in range(4)]
    float(engine.train_step(batches[0])["loss"])
    first = time.perf_counter() - begin
    float(engine.train_step(batches[0])["loss"])

    def block() -> float:
        begin = time.perf_counter()
        for step in range(steps):
            loss = engine.train_step(batches[step % len(batches)])["loss"]
        float(loss)
        return steps * settings.train_batch_size * model.n_ctx / (time.perf_counter() - begin)

    def facts() -> dict[str, Any]:
        found: dict[str, Any] = {"first_step": first, "flops_per_token": flops_per_token(config)}
        if "GPU" in device:
            found["data_sheet_flops"] = device_peak(list(engine.plan.devices), config.training.precision)
            found["peak"] = tf.config.experimental.get_memory_info(device.removeprefix("device:"))["peak"]
        return found

    take_turns(block, facts)


def run_peaks(device: str, precision: str) -> None:
    """A competitor: a product of two square matrices, in FLOP/s; and, as a fact, a copy in bytes/s."""
    size = 8192 if "GPU" in device else 2048
    with tf.device(device):
        x = tf.random.normal([size, size], dtype=tf.as_dtype(precision))
        product: Callable[[tf.Tensor], tf.Tensor] = lambda x: tf.reduce_max(tf.matmul(x, x))  # noqa: E731

    def seconds(work: Callable[[], Any]) -> float:
        begin = time.perf_counter()
        float(work())
        return time.perf_counter() - begin

    def matmul() -> float:
        with tf.device(device):
            return 2.0 * size**3 / min(seconds(lambda: product(x)) for _ in range(5))

    def copy() -> float:
        with tf.device(device):
            y = tf.zeros([2**26])
            add = tf.function(lambda y: (y + 1.0, y[0] + 1.0))
            return 2.0 * 4 * 2**26 / min(seconds(lambda: add(y)[1]) for _ in range(5))

    matmul()
    take_turns(matmul, lambda: {"copy": copy()})


def competitors(name: str, peers: str | None, device: str, steps: int) -> list[Competitor]:
    """Everyone who takes part; the first is ours, the last measures the peak."""
    on_gpu = "GPU" in device
    base = {"precision": "bfloat16" if on_gpu else "float32", **SIZES[name]}
    found = []
    for row, keys in OURS.get(name, {"ours": {}}).items():
        job = json.dumps({"keys": {**base, **keys}, "device": device, "steps": steps})
        found.append(Competitor(row, [sys.executable, "-m", "benchmarks.training_step", "--job", job]))
    sizes = {"layers": "n_layer", "width": "n_embd", "heads": "n_head", "context": "n_ctx", "vocab": "n_vocab"}
    flags = [part for flag, key in sizes.items() for part in (f"--{flag}", str(base[key]))]
    flags += ["--batch", str(base["train_batch_size"]), "--steps", str(steps), "--precision", base["precision"]]
    flags += ["--device", "cuda" if on_gpu else "cpu"]
    models = [("gpt", "compact PyTorch"), ("hf", "Hugging Face")]
    if "num_kv_heads" in base:
        models = [("llama", "compact PyTorch"), ("hf-llama", "Hugging Face")]
        flags += ["--kv_heads", str(base["num_kv_heads"]), "--intermediate", str(base["intermediate_size"])]
    for model, label in models if peers else ():
        for compiled in (False, True):
            command = [*shlex.split(peers or ""), *PEER, *flags, "--model", model, *["--compile"] * compiled]
            found.append(Competitor(f"{label}{', compiled' if compiled else ''}", command, peer=True))
    job = json.dumps({"peaks": base["precision"], "device": device})
    return [*found, Competitor("matmul peak", [sys.executable, "-m", "benchmarks.training_step", "--job", job])]


def table(found: list[Competitor]) -> list[str]:
    ours, peak = found[0], found[-1]
    data_sheet = ours.facts.get("data_sheet_flops")
    head = f"{'':<24} {'tokens/s':>10} {'(low - high)':>19} {'ours is':>8} {'of peak':>8}"
    lines = [f"{head}{'    MFU' if data_sheet else ''} {'first step':>11}"]
    for one in found[:-1]:
        if one.failed:
            lines.append(f"{one.name:<24} {one.failed}")
            continue
        flops = one.facts.get("flops_per_token", ours.facts.get("flops_per_token", 0.0))  # a window makes it less
        line = f"{one.name:<24} {one.median:>10,.0f} {f'({min(one.rates):,.0f} - {max(one.rates):,.0f})':>19}"
        line += f" {_ratio(ours, one):>7.2f}x" if not ours.failed else ""
        line += f" {one.median * flops / peak.median:>8.1%}" if not peak.failed else ""
        line += f" {one.median * flops / data_sheet:>6.1%}" if data_sheet else ""
        line += f" {one.facts['first_step']:>9.1f} s"
        lines.append(line + (f" {one.facts['peak'] / 2**30:>7.2f} GiB" if "peak" in one.facts else ""))
    if not peak.failed:
        copied = peak.facts["copy"] / 1e9
        lines.append(f"measured peaks: matmul {peak.median / 1e12:.3f} TFLOP/s, copy {copied:,.1f} GB/s")
    return lines


def _ratio(ours: Competitor, other: Competitor) -> float:
    return statistics.median(a / b for a, b in zip(ours.rates, other.rates, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("size", nargs="?", choices=list(SIZES), default="cpu")
    parser.add_argument("--peers", help="command of an interpreter that has PyTorch and transformers")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, help="in a block; default: 4 on a CPU, 10 on a GPU")
    parser.add_argument("--only", nargs="*", help="competitors whose names hold one of these words, beside ours")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.job:
        job = json.loads(args.job)
        if "peaks" in job:
            return run_peaks(job["device"], job["peaks"])
        return run_ours(job["keys"], job["device"], job["steps"])
    device = "device:CPU:0" if args.size.endswith("cpu") else "device:GPU:0"
    found = competitors(args.size, args.peers, device, args.steps or (10 if "GPU" in device else 4))
    if args.only is not None:
        found = [one for one in found if one in (found[0], found[-1]) or any(w in one.name for w in args.only)]
    contest(found, args.rounds, together="CPU" in device)
    print("\n".join(table(found)))
    results = {f"training, {args.size}": {one.name: one.row() for one in found}}
    print(f"kept in {machine.keep(f'training_step_{args.size}', results, rounds=args.rounds, unit='tokens/s')}")


if __name__ == "__main__":
    main()
