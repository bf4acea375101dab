"""Speed of reading and assembling training batches: tokens per second of `TrainingData.batches`.

    python -m benchmarks.input_speed [--documents 20000] [--batch_size 8] [--n_ctx 2048] [--seconds 10]

Writes a corpus of random ids below 50257 to a temporary folder, documents of log-normal length (median 512 tokens), and
reads it as documents_random. Prints a table, which is saved in runs/benchmarks/. On a busy machine, look at
tokens_per_cpu_second: the reader uses at most one core. Memory should not grow with --documents, except for 16 bytes
each.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path

from gpt_mesh.meshes.compat import mtf  # noqa: F401  (first: it quiets TensorFlow's start-up)

import numpy as np

from benchmarks import machine
from gpt_mesh.config import Config, parse_config
from gpt_mesh.data.tfrecords import write_records
from gpt_mesh.inputs import TrainingData

N_VOCAB = 50257
MEDIAN_LENGTH = 512
SHORTEST = 128
FILES = 8


def write_corpus(folder: Path, documents: int) -> None:
    """`documents` of random ids, spread over FILES files, and the dataset config that names them."""
    rng = np.random.default_rng(1)
    lengths = np.maximum(rng.lognormal(np.log(MEDIAN_LENGTH), 1.0, documents).astype(int), SHORTEST)
    for number, part in enumerate(np.array_split(lengths, FILES)):
        write_records(folder / f"part_{number}.tfrecords", (rng.integers(0, N_VOCAB, length) for length in part))
    (folder / "dataset_configs").mkdir()
    dataset = {"path": str(folder / "*.tfrecords"), "n_vocab": N_VOCAB, "eos_id": N_VOCAB - 1}
    (folder / "dataset_configs" / "random.json").write_text(json.dumps(dataset))


def config(folder: Path, n_ctx: int, batch_size: int) -> Config:
    """A model config over the corpus; of the model only n_ctx and n_vocab matter here."""
    values = {
        "n_head": 1,
        "n_embd": 8,
        "n_layer": 1,
        "n_ctx": n_ctx,
        "n_vocab": N_VOCAB,
        "lr": 1e-3,
        "train_batch_size": batch_size,
        "train_steps": 1,
        "model_path": str(folder / "run"),
        "datasets": [["random", -(-(n_ctx + 1) // SHORTEST), "documents_random", 1.0]],
    }
    return parse_config(values, str(folder / "model.json"), folder)


def measure(data: TrainingData, n_ctx: int, batch_size: int, seconds: float) -> dict[str, float]:
    """Read batches for so many seconds, after the first few."""
    with data.batches(0, batch_size) as batches:
        for _ in range(10):
            next(batches)
        count, start, cpu = 0, time.perf_counter(), time.process_time()
        while time.perf_counter() - start < seconds:
            next(batches)
            count += 1
        elapsed, cpu = time.perf_counter() - start, time.process_time() - cpu
    tokens = count * batch_size * n_ctx
    return {
        "tokens_per_second": tokens / elapsed,
        "tokens_per_cpu_second": tokens / cpu,
        "batches": count,
        "seconds": elapsed,
        "cores_used": cpu / elapsed,
    }


def resume_seconds(settings: Config, step: int, batch_size: int) -> float:
    """From the config to the batch of a later step, the indexes being there."""
    start = time.perf_counter()
    TrainingData(settings, progress=False).batch(step * batch_size, batch_size)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--documents", type=int, default=20_000)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--n_ctx", type=int, default=2048)
    parser.add_argument("--seconds", type=float, default=10.0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_corpus(folder, args.documents)
        start = time.perf_counter()
        settings = config(folder, args.n_ctx, args.batch_size)
        data = TrainingData(settings, progress=False)
        index_seconds = time.perf_counter() - start
        result = {
            "n_ctx": args.n_ctx,
            "batch_size": args.batch_size,
            "corpus_tokens": sum(int(source.corpus.n_tokens) for source in data._sources),
            "index_seconds": index_seconds,
            **measure(data, args.n_ctx, args.batch_size, args.seconds),
            "resume_seconds": resume_seconds(settings, 10_000, args.batch_size),
            "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        }
    print("\n".join(data.describe()))
    for key, value in result.items():
        shown = f"{value:,.2f}" if isinstance(value, float) else f"{value:,}"
        print(f"{key:>18}  {shown}")
    print(f"kept in {machine.keep('input_speed', {'input': {'ours': result}})}")


if __name__ == "__main__":
    main()
