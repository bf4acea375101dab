"""The speed of fine-tuning on packed windows, compared with one sample a window, in turns.

    python -m benchmarks.packing                 (on the CPU)
    python -m benchmarks.packing llama-124M      (on the first GPU)

Samples of log-normal lengths (median a sixth of the context). A step trains on one batch of windows; counted are the
tokens of samples, and not padding. Prints tokens/s (median, lowest, highest) and the ratio to padded windows (median of
rounds). The table is saved in runs/benchmarks/.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

from gpt_mesh.meshes.compat import mtf  # noqa: F401  (first: it quiets TensorFlow's start-up)

import numpy as np
import tensorflow as tf

from benchmarks import machine
from benchmarks.training_step import SIZES, make_config
from gpt_mesh.data.marks import beginning
from gpt_mesh.data.packing import Packing, one_each, packed
from gpt_mesh.engine.engine import DeviceEngine
from gpt_mesh.meshes.devices import MeshPlan, choose_devices

SAMPLES = 4000
MODES = {"padded": "documents_padded", "packed": "documents_packed"}


def sample_lengths(n_ctx: int) -> np.ndarray:
    """Lengths of samples, int64 [SAMPLES], from 8 tokens to the context's."""
    drawn = np.random.default_rng(0).lognormal(np.log(n_ctx / 6), 0.8, SAMPLES)
    return np.clip(drawn, 8, n_ctx + 1).astype(np.int64)


class Contestant:
    """An engine and batches of one kind of window."""

    def __init__(self, keys: dict[str, Any], name: str, device: str) -> None:
        config = make_config({**keys, "objective": "sft", "datasets": [["demo", 1, MODES[name], 1.0]]})
        self._n_vocab, self._rng = config.model.n_vocab, np.random.default_rng(1)
        self._engine = DeviceEngine(config, MeshPlan({}, {}, tuple(choose_devices([device]))))
        lengths, width = sample_lengths(config.model.n_ctx), config.model.n_ctx + 1
        packing = packed(lengths, width, "some", 0) if name == "packed" else one_each(lengths)
        self.share = float(lengths.sum() / (packing.n_windows * width))
        size = config.training.train_batch_size
        made = [self._batch(packing, lengths, width, start, size) for start in (0, size, 2 * size, 3 * size)]
        self._batches = [(self._engine.stage(tokens), count) for tokens, count in made]

    def _batch(
        self, packing: Packing, lengths: np.ndarray, width: int, start: int, size: int
    ) -> tuple[np.ndarray, int]:
        """Windows evenly spread over the packing, int32 [size, width], and the tokens of their samples."""
        tokens, count = np.full((size, width), -1, np.int32), 0
        for row in range(size):
            window = (start + row) * packing.n_windows // (4 * size)
            for place in range(packing.first[window], packing.first[window + 1]):
                begin, length = packing.columns[place], lengths[packing.documents[place]]
                tokens[row, begin : begin + length] = self._rng.integers(0, self._n_vocab, length)
                tokens[row, begin : begin + 1] = beginning(tokens[row, begin : begin + 1])
                end = slice(begin + length, begin + length + 1)
                tokens[row, end] = beginning(tokens[row, end])
                count += int(length)
        return tokens, count

    def rate(self, steps: int) -> float:
        """Tokens of samples a second."""
        start, tokens = time.perf_counter(), 0
        for step in range(steps):
            batch, count = self._batches[step % len(self._batches)]
            loss, tokens = self._engine.train_step(batch)["loss"], tokens + count
        float(loss)
        return tokens / (time.perf_counter() - start)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    gpus = tf.config.list_physical_devices("GPU")
    parser.add_argument("size", nargs="?", default="llama-124M" if gpus else "llama-cpu", help=", ".join(SIZES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=8)
    args = parser.parse_args()
    keys = {"precision": "bfloat16" if gpus else "float32", **SIZES[args.size]}
    device = "device:GPU:0" if gpus else "device:CPU:0"
    contestants = {name: Contestant(keys, name, device) for name in MODES}
    for one in contestants.values():
        one.rate(2)
    found: dict[str, list[float]] = {name: [] for name in MODES}
    for _ in range(args.rounds):
        for name, one in contestants.items():
            found[name].append(one.rate(args.steps))
    ratios = [new / old for new, old in zip(found["packed"], found["padded"], strict=True)]
    rows: dict[str, Any] = {}
    for name, values in found.items():
        share = contestants[name].share
        rows[name] = {"median": statistics.median(values), "low": min(values), "high": max(values), "filled": share}
        print(f"{name}: {statistics.median(values):,.0f} tokens/s ({min(values):,.0f} to {max(values):,.0f}), "
              f"windows {share:.0%} full")  # fmt: skip
    rows["ratio"] = {"median": statistics.median(ratios), "low": min(ratios), "high": max(ratios)}
    print(f"packed: {statistics.median(ratios):.2f} x padded ({min(ratios):.2f} to {max(ratios):.2f})")
    machine.keep(f"packing_{args.size}", {f"packing, {args.size}": rows}, rounds=args.rounds)


if __name__ == "__main__":
    main()
