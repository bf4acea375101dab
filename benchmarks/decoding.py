"""Generation speed compared with Hugging Face's GPT-Neo or Llama, in turns on the same machine with the same weights.

    python -m benchmarks.decoding --peers .venv-peers/bin/python [--size llama-124M] [--rounds 5] [--only "batch 1"]

Greedy decoding of `--tokens` tokens after prompts of 32, at batch 1 and 8; and prefill of a prompt of 512 tokens.
Weights are random; GPT-Neo's layers alternate between global and local attention. Hugging Face's `generate` runs
eagerly and, with `--compiled`, under torch.compile. Each program is a separate process; they take turns, and a ratio
compares calls of the same round. All must produce the same tokens. The table is saved in runs/benchmarks/.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

from gpt_mesh.meshes.compat import mtf  # noqa: F401  (first: it quiets TensorFlow's start-up)

import numpy as np

from benchmarks import machine
from benchmarks.training_step import LLAMA
from benchmarks.turns import Competitor, contest, take_turns
from gpt_mesh.config import Config, parse_config
from gpt_mesh.engine.engine import DeviceEngine
from gpt_mesh.generation.decoder import Decoder
from gpt_mesh.meshes.devices import choose_devices
from gpt_mesh.meshes.layouts import plan_mesh
from gpt_mesh.planning.graph import limits_of
from gpt_mesh.sample import Row

GPT = {"n_embd": 768, "n_head": 12, "n_layer": 12, "n_ctx": 2048, "n_vocab": 50257}
TINY = {"n_embd": 64, "n_head": 4, "n_layer": 2, "n_ctx": 1024, "n_vocab": 2048}
SIZES: dict[str, dict[str, Any]] = {
    "124M": {**GPT, "attention_types": [[["global", "local"], 6]]},
    "llama-124M": {**GPT, **LLAMA, "num_kv_heads": 4, "intermediate_size": 2048},
    "llama-1.3B": {
        **GPT, **LLAMA, "n_embd": 2048, "n_head": 16, "n_layer": 24, "num_kv_heads": 8, "intermediate_size": 5504,
    },
    "tiny": {**TINY, "attention_types": [[["global", "local"], 1]]},
    "llama-tiny": {**TINY, **LLAMA, "num_kv_heads": 2, "intermediate_size": 176},
}  # fmt: skip
PEER = ("-m", "benchmarks.peers.torch_decoding")


def make_config(size: str) -> Config:
    keys: dict[str, Any] = {
        **SIZES[size], "lr": 1e-4, "train_steps": 1, "train_batch_size": 1, "datasets": ["demo"], "model_path": "none",
    }  # fmt: skip
    return parse_config(keys, "benchmark.json")


def make_engine(config: Config) -> DeviceEngine:
    plan = plan_mesh(config, limits_of(config), choose_devices(None)[:1], fit=True, chosen=False)
    engine = DeviceEngine(config, plan)
    engine.create_variables(training=False)
    return engine


def write_weights(config: Config, path: str) -> None:
    """Weights of some size, so that attention is not even and the text no single token: an .npz by our names."""
    rng = np.random.default_rng(0)
    found = {}
    for name, variable in sorted(make_engine(config).store.masters.items()):
        if name.startswith("gpt2/"):
            mean = 1.0 if name.endswith("/g") else 0.0
            found[name[5:]] = (mean + 0.05 * rng.standard_normal(variable.shape.as_list())).astype(np.float32)
    np.savez(path, **found)


def prompts(job: dict[str, Any], config: Config) -> list[list[int]]:
    shape = (job["batch"], job["prompt"])
    return np.random.default_rng(1).integers(0, config.model.n_vocab, shape).tolist()


def run_ours(job: dict[str, Any]) -> None:
    """A competitor's side: one call a block; its rate is in tokens a second, of text or of prompt."""
    config = make_config(job["size"])
    engine = make_engine(config)
    with np.load(job["weights"]) as weights:
        for name, value in weights.items():
            engine.store.masters[f"gpt2/{name}"].assign(value)
    decoder, rows = Decoder(engine, ()), prompts(job, config)
    requests = [Row(row, job["tokens"], 0, temperature=0.0) for row in rows]

    def call() -> list[list[int]]:
        return decoder.start(requests).finish()

    measure(call, job)


def measure(call: Callable[[], list[list[int]]], job: dict[str, Any]) -> None:
    begin = time.perf_counter()
    written = call()
    facts = {"first_call": time.perf_counter() - begin, "written": written}
    count = job["batch"] * (job["tokens"] if job["tokens"] > 1 else job["prompt"])

    def block() -> float:
        begin = time.perf_counter()
        call()
        return count / (time.perf_counter() - begin)

    take_turns(block, lambda: facts)


def table(title: str, found: list[Competitor]) -> list[str]:
    """The rows of one contest. Ratios are medians over rounds."""
    ours = found[0]
    lines = [f"{title:<34} {'tokens/s':>9} {'(low - high)':>15} {'ours is':>8} {'first call':>11}"]
    for one in found:
        if one.failed:
            lines.append(f"  {one.name:<32} {one.failed}")
            continue
        line = f"  {one.name:<32} {one.median:>9,.1f} {f'({min(one.rates):,.1f} - {max(one.rates):,.1f})':>15}"
        if not ours.failed:
            line += f" {statistics.median(a / b for a, b in zip(ours.rates, one.rates, strict=True)):>7.2f}x"
            same = one.facts["written"] == ours.facts["written"]
            line += f" {one.facts['first_call']:>9.1f} s{'' if same else '  OTHER TOKENS'}"
        lines.append(line)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--size", choices=list(SIZES), default="124M")
    parser.add_argument("--peers", help="command of an interpreter that has PyTorch and transformers")
    parser.add_argument("--compiled", action="store_true", help="Hugging Face under torch.compile too")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--only", help="contests whose titles hold this")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.job:
        return run_ours(json.loads(args.job))
    of = "" if args.size == parser.get_default("size") else f", {args.size}"
    contests = {
        f"decoding{of}, batch 1": {"batch": 1, "prompt": 32, "tokens": args.tokens},
        f"decoding{of}, batch 8": {"batch": 8, "prompt": 32, "tokens": args.tokens},
        f"prompt of 512{of}": {"batch": 1, "prompt": 512, "tokens": 1},
    }
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        weights = f"{folder}/weights.npz"
        config = make_config(args.size)
        write_weights(config, weights)
        for title, sizes in contests.items():
            if args.only and args.only not in title:
                continue
            job = {**sizes, "size": args.size, "weights": weights}
            found = [Competitor("ours", [sys.executable, "-m", "benchmarks.decoding", "--job", json.dumps(job)])]
            peer_job = json.dumps({**job, "model": SIZES[args.size], "prompts": prompts(job, config)})
            for compiled in [False, True][: 1 + args.compiled] if args.peers else []:
                command = [*shlex.split(args.peers), *PEER, peer_job, *["--compile"] * compiled]
                found.append(Competitor(f"Hugging Face{', compiled' if compiled else ''}", command, peer=True))
            contest(found, args.rounds)
            print("\n".join(table(title, found)), flush=True)
            results[title] = {one.name: one.row() for one in found}
    for rows in results.values():
        for row in rows.values():
            row.pop("written", None)
    print(f"kept in {machine.keep(f'decoding_{args.size}', results, rounds=args.rounds, unit='tokens/s')}")


if __name__ == "__main__":
    main()
