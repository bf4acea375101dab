"""Time from the start to the end of the first training step: imports, graph, lowering, compilation.

    python -m benchmarks.start_up [--repeats 3]

Each row is a separate process: the demo's model with an empty cache of compiled programs, the same with a filled cache,
and the shipped model of 1.3 billion parameters, built and lowered only, without allocating anything. Prints wall-clock
and processor seconds (medians of the repeats); other work on the machine changes the latter less. The results are saved
in runs/benchmarks/.

"import" is Python and TensorFlow; "graph" is the mesh graph with gradients and optimizer, "lowering" its translation to
TensorFlow; "first step" is XLA's compilation, or reading its cache, and the step.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest import mock

PARTS = ("import", "graph", "lowering", "first step")
LARGE = "gpt_neo_1-3B"

Times = dict[str, dict[str, float]]


class Stopwatch:
    """Seconds by part, on the clock and of the processor."""

    def __init__(self) -> None:
        self.times: Times = {}

    @contextmanager
    def part(self, name: str, *, within: str | None = None) -> Iterator[None]:
        """Counts what the block takes under this name, and not under that of the part it lies within."""
        wall, processor = time.perf_counter(), time.process_time()
        yield
        found = {"wall": time.perf_counter() - wall, "processor": time.process_time() - processor}
        for part, sign in ((name, 1), (within, -1)) if within else ((name, 1),):
            sums = self.times.setdefault(str(part), {"wall": 0.0, "processor": 0.0})
            for clock, seconds in found.items():
                sums[clock] += sign * seconds


def start(name: str, *, run: bool) -> Times:
    """In this process: the training step of a config, built, and run once if asked to."""
    watch = Stopwatch()
    with watch.part("import"):
        from gpt_mesh.meshes.compat import mtf  # noqa: F401  (first: it quiets TensorFlow's start-up)

        import numpy as np
        import tensorflow as tf

        from gpt_mesh import model_fns
        from gpt_mesh.config import load_config
        from gpt_mesh.engine.engine import DeviceEngine
        from gpt_mesh.meshes.devices import MeshPlan
    lower = model_fns._lower

    def timed_lower(*arguments: Any) -> Any:
        with watch.part("lowering", within="graph"):
            return lower(*arguments)

    config = load_config(name)
    shape = (config.training.train_batch_size, config.model.n_ctx + 1)
    # In a graph of their own variables have a shape, and memory only when their values are computed.
    with nullcontext() if run else tf.Graph().as_default(), mock.patch.object(model_fns, "_lower", timed_lower):
        with watch.part("graph"):
            engine = DeviceEngine(config, MeshPlan({}, {}, ("/device:CPU:0",)))
            engine._train.traced(tf.TensorSpec(shape, engine.staged_type))
        if run:
            with watch.part("first step"):
                float(engine.train_step(np.zeros(shape, np.int32))["loss"])
    return watch.times


def measured(name: str, cache: str, *, run: bool) -> Times:
    """The same in a process of its own, whose start and end count as importing."""
    job = json.dumps({"name": name, "run": run})
    environment = {**os.environ, "GPT_MESH_CACHE": cache}
    begin = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.start_up", "--job", job],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    wall = time.perf_counter() - begin
    times: Times = json.loads(done.stdout.splitlines()[-1])
    times["import"]["wall"] += wall - sum(part["wall"] for part in times.values())
    return times


def medians(runs: list[Times]) -> Times:
    """Of each part and clock, and their sums."""
    found = {
        part: {clock: statistics.median(run[part][clock] for run in runs) for clock in ("wall", "processor")}
        for part in PARTS
        if part in runs[0]
    }
    sums = {clock: statistics.median(sum(p[clock] for p in run.values()) for run in runs) for clock in found["import"]}
    return {**found, "in all": sums}


def table(results: dict[str, Times]) -> list[str]:
    names = [*PARTS, "in all"]
    lines = [f"{'seconds, of the clock / processor':<34}" + "".join(f"{name:>16}" for name in names)]
    for title, times in results.items():
        cells = [f"{t['wall']:.1f} / {t['processor']:.1f}" if (t := times.get(name)) else "" for name in names]
        lines.append(f"{title:<34}" + "".join(f"{cell:>16}" for cell in cells))
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--job", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.job:
        job = json.loads(args.job)
        print(json.dumps(start(job["name"], run=job["run"])))
        return
    from benchmarks import machine

    runs: dict[str, list[Times]] = {"demo, nothing compiled before": [], "demo, compiled before": [], LARGE: []}
    for repeat in range(args.repeats):
        with tempfile.TemporaryDirectory() as cache:
            runs["demo, nothing compiled before"].append(measured("demo", cache, run=True))
            runs["demo, compiled before"].append(measured("demo", cache, run=True))
        runs[LARGE].append(measured(LARGE, "off", run=False))
        print(f"  {repeat + 1} of {args.repeats}", file=sys.stderr, flush=True)
    results = {title: medians(found) for title, found in runs.items()}
    print("\n".join(table(results)))
    print(f"kept in {machine.keep('start_up', results, repeats=args.repeats, unit='seconds')}")


if __name__ == "__main__":
    main()
