"""Training speed and peak memory of the demo, on an otherwise idle machine.

    python -m benchmarks.demo_training [--steps 60]

Trains the model of configs/demo.json with `main.py`, in a separate process and a temporary folder, without evaluation.
Makes the demo's data first if it is missing. Memory is the process's peak resident set, compared with that of a process
which only imports the library. The training loop measures tokens per second every INTERVAL steps, without compilation.
Prints a table and, as the last line, the same as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from examples.demo import collect_text, encode, train_tokenizer
from examples.layout import Demo, read_json_lines, set_up
from examples.screen import REPOSITORY

INTERVAL = 5


def make_data(demo: Demo) -> None:
    collect_text(demo, None)
    train_tokenizer(demo)
    for part in ("train", "held_out"):
        encode(demo, part)


def peak_memory(*arguments: str) -> int:
    """Bytes of resident memory that Python held at most while it ran with these arguments, in the repository."""
    child = subprocess.Popen([sys.executable, *arguments], cwd=REPOSITORY)
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"error: {' '.join(arguments)} ended with status {child.returncode}")
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def measure(demo: Demo, steps: int) -> dict[str, float]:
    """Train for so many steps; megabytes are 10^6 bytes."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # Dataset configs are looked for in the repository where the model config has none beside it.
        values = demo.values | {"train_steps": steps, "lr_decay_end": demo.steps, "iterations": INTERVAL}
        values |= {"eval_steps": 0, "model_path": str(folder / "model")}
        (folder / "demo.json").write_text(json.dumps(values))
        peak = peak_memory("main.py", "--model", str(folder / "demo.json"))
        rates = [row["tokens_per_second"] for row in read_json_lines(folder / "model" / "metrics.jsonl")]
    imported = peak_memory("-c", "from gpt_mesh import api")
    low, median, high = statistics.quantiles([rate for rate in rates if rate], n=4)
    return {
        "peak_megabytes": peak / 1e6,
        "import_megabytes": imported / 1e6,
        "training_megabytes": (peak - imported) / 1e6,
        "tokens_per_second": median,
        "tokens_per_second_low": low,
        "tokens_per_second_high": high,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--steps", type=int, default=60, help="training steps, at least 15 (default: %(default)s)")
    flags = parser.parse_args()
    if flags.steps < 3 * INTERVAL:
        parser.error(f"--steps {flags.steps}: too few to measure; give {3 * INTERVAL} or more")
    demo = set_up(REPOSITORY / "runs" / "demo", smoke=False)
    make_data(demo)
    load = os.getloadavg()[0]  # of others: before the work
    found = measure(demo, flags.steps)
    print(f"\nTraining of {demo.config.name}, {flags.steps} steps, {os.cpu_count()} cores, load {load:.1f} before\n")
    print(f"peak memory           {found['peak_megabytes']:7,.0f} MB")
    print(f"  import alone        {found['import_megabytes']:7,.0f} MB")
    print(f"  training adds       {found['training_megabytes']:7,.0f} MB")
    print(
        f"tokens per second     {found['tokens_per_second']:7,.0f}    "
        f"(quartiles {found['tokens_per_second_low']:,.0f} to {found['tokens_per_second_high']:,.0f})\n"
    )
    facts = {"benchmark": "demo_training", "cpus": os.cpu_count(), "load": load, "steps": flags.steps}
    print(json.dumps(facts | found))


if __name__ == "__main__":
    main()
