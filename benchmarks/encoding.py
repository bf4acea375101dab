"""Speed and memory of create_tfrecords.py, compared with the `tokenizers` library alone.

    python -m benchmarks.encoding [--megabytes 20] [--repeats 5] [--memory 10 100 1000]

The corpus: Python sources of this interpreter, lines sampled into JSON documents of log-normal length (median 4 kB).
Speed: `Tokenizer.encode_batch` over the documents, in memory, on the same cores, compared with the whole script from a
.jsonl file to TFRecord files, without the start of its processes; in turns, so that both meet the same conditions. The
ratio of wall-clock speeds is meaningful only on an idle machine; the ratio of processor time (library / script, without
the script's start) also on a busy one. Memory: the peak sum of resident memory of the script and its processes, for
corpora of these numbers of megabytes. Prints a table; the results are saved in runs/benchmarks/.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import machine
from gpt_mesh.data.encoders import Encoder, load_encoder
from gpt_mesh.data.encoding import Recipe, encode_pieces
from gpt_mesh.data.manifest import SplitState
from gpt_mesh.data.reading import Piece, Selection, read_corpus
from gpt_mesh.data.shards import Documents, Split
from gpt_mesh.data.sources import file_sources
from gpt_mesh.data.train_tokenizer import save, train_tokenizer

ROOT = Path(__file__).resolve().parent.parent
MEDIAN_BYTES = 4096


def sources() -> list[Path]:
    found = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    return [path for path in found if b"coding" not in path.read_bytes()[:200]]


def documents(megabytes: int) -> Iterator[str]:
    """Runs of lines from random places of the sources."""
    draw = random.Random(1)
    lines = [line for path in sources() for line in path.read_text(encoding="utf-8").splitlines(keepends=True)]
    left = megabytes * 1_000_000
    while left > 0:
        size, start, parts = draw.lognormvariate(0, 1) * MEDIAN_BYTES, draw.randrange(len(lines)), list[str]()
        while size > 0:
            parts.append(lines[start % len(lines)])
            size -= len(parts[-1])
            start += 1
        text = "".join(parts)
        left -= len(text.encode())
        yield text


def write_corpus(path: Path, megabytes: int) -> None:
    with path.open("w") as file:
        for text in documents(megabytes):
            file.write(json.dumps({"text": text}) + "\n")


def processor_seconds() -> float:
    """Of this process and of those it started that have ended."""
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def library_seconds(encoder: Encoder, texts: list[str]) -> float:
    start = time.perf_counter()
    encoder.tokenizer.encode_batch(texts, add_special_tokens=False)
    return time.perf_counter() - start


def script_seconds(encoder: Encoder, corpus: Path, warm_up: Path, folder: Path, processes: int) -> float:
    """From `corpus` to files in `folder`. The processes start on `warm_up`; the clock starts when that has been read.

    (The last of it is still being encoded then, which counts against the script.)
    """
    recipe = Recipe(encoder)
    starts: list[float] = []

    def pieces() -> Iterator[Piece]:
        yield from read_corpus(file_sources([str(warm_up)]), Selection(), size=recipe.piece_size)
        starts.append(time.perf_counter())
        yield from read_corpus(file_sources([str(corpus)]), Selection(), size=recipe.piece_size)

    split = Split(str(folder), "x", Documents(), SplitState(), minimum_size=0, records_per_file=10_000)
    for document in encode_pieces(pieces(), recipe, processes=processes):
        split.add(document)
    split.finish()
    return time.perf_counter() - starts[0]


def peak_memory(corpus: Path, tokenizer: str, folder: Path, processes: int) -> int:
    """Bytes: the largest sum of resident memory of the script and its processes, looked at ten times a second."""
    script = [sys.executable, str(ROOT / "data" / "create_tfrecords.py"), "--input_dir", str(corpus), "--name", "x"]
    script += ["--output_dir", str(folder), "--encoder_path", tokenizer, "--processes", str(processes)]
    running = subprocess.Popen(script, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    peak = 0
    while running.poll() is None:
        peak = max(peak, sum(map(_resident, [running.pid, *_children(running.pid)])))
        time.sleep(0.1)
    assert running.returncode == 0
    return peak


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _resident(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--megabytes", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--memory", type=int, nargs="*", default=[10, 100, 1000], metavar="MEGABYTES")
    args = parser.parse_args()
    rows: dict[str, dict[str, Any]] = {}
    facts: dict[str, Any] = {"processes": args.processes, "megabytes": args.megabytes}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tokenizer = save(train_tokenizer(file_sources(map(str, sources()[:80])), 8192), name)
        encoder = load_encoder(tokenizer)
        if args.repeats:
            write_corpus(folder / "corpus.jsonl", args.megabytes)
            write_corpus(folder / "warm_up.jsonl", 2)
            texts = list(documents(args.megabytes))
            size = sum(len(text.encode()) for text in texts) / 1e6
            library, script, processor = [], [], []
            (folder / "empty.jsonl").touch()
            for repeat in range(args.repeats):
                used = [processor_seconds()]
                library.append(size / library_seconds(encoder, texts))
                used.append(processor_seconds())
                for part, name in (("start", "empty.jsonl"), ("all", "corpus.jsonl")):
                    (folder / f"{part}_{repeat}").mkdir()
                    inputs = folder / name, folder / "warm_up.jsonl", folder / f"{part}_{repeat}"
                    seconds = script_seconds(encoder, *inputs, args.processes)
                    used.append(processor_seconds())
                script.append(size / seconds)
                processor.append((used[1] - used[0]) / (used[3] - used[2] - (used[2] - used[1])))
                print(
                    f"{repeat}: tokenizers {library[-1]:.2f} MB/s, create_tfrecords {script[-1]:.2f} MB/s", flush=True
                )
            ratios = [mine / theirs for mine, theirs in zip(script, library, strict=True)]
            rows = {"ours": _row(script), "tokenizers.encode_batch": _row(library)}
            facts["ratio"], facts["processor_ratio"] = _row(ratios), _row(processor)
        for megabytes in args.memory:
            write_corpus(folder / "corpus.jsonl", megabytes)
            peak = peak_memory(folder / "corpus.jsonl", tokenizer, folder / f"memory_{megabytes}", args.processes)
            facts[f"peak_mib_{megabytes}_mb"] = round(peak / 2**20)
            print(f"{megabytes} MB: {peak / 2**20:.0f} MiB", flush=True)
    for key, value in {**rows, **facts}.items():
        if isinstance(value, dict):
            value = "  ".join(f"{word} {value[word]:.2f}" for word in ("median", "low", "high"))
        print(f"{key:>23}  {value}")
    print(f"kept in {machine.keep('encoding', {'encoding': rows}, unit='MB/s', **facts)}")


def _row(rates: list[float]) -> dict[str, Any]:
    return {"median": statistics.median(rates), "low": min(rates), "high": max(rates), "rates": rates}


if __name__ == "__main__":
    main()
