"""Each model family at the demo's size, on the demo's data: held-out scores and speed, compared with the demo's model.

    python -m benchmarks.families [--steps 1000] [--only demo_linear demo_moe] [--json results.json]

Trains configs/demo.json and its variants with `main.py`, each in a separate process and a temporary folder, and
evaluates them on the demo's held-out text. The masked model is scored on masked tokens, not on the next token, and
cannot be compared with the others. Makes the demo's data first if it is missing.
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
from typing import Any

from benchmarks.demo_training import make_data
from examples.layout import read_json_lines, set_up
from examples.screen import REPOSITORY
from gpt_mesh.config import load_config
from gpt_mesh.models.shapes import weight_count

FAMILIES = {
    "demo": "global and local attention",
    "demo_linear": "linear in place of global attention",
    "demo_rotary": "rotary positions",
    "demo_moe": "mixture of 4 experts in 2 of 4 layers",
    "demo_par": "8 layers, 3 of them with attention",
    "demo_mlm": "masked tokens, seen from both sides",
}


def measure(name: str, steps: int, folder: Path) -> dict[str, Any]:
    """Train a config for so many steps and score it at the end."""
    values = json.loads((REPOSITORY / "configs" / f"{name}.json").read_text())
    values |= {"train_steps": steps, "lr_decay_end": steps, "eval_steps": 1000, "model_path": str(folder / name)}
    config = folder / f"{name}.json"
    config.write_text(json.dumps(values))
    command = [sys.executable, "main.py", "--model", str(config), "--steps_per_checkpoint", str(steps)]
    subprocess.run(command, cwd=REPOSITORY, check=True)
    rates = [row["tokens_per_second"] for row in read_json_lines(folder / name / "metrics.jsonl")]
    score = read_json_lines(folder / name / "eval.jsonl")[-1]
    found = {key: score[key] for key in ("nll", "accuracy", "bits_per_byte")}
    rate = statistics.median(rate for rate in rates if rate)
    return found | {"parameters": weight_count(load_config(str(config)).model), "tokens_per_second": rate}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--steps", type=int, default=1000, help="training steps (default: %(default)s)")
    parser.add_argument("--only", nargs="+", choices=FAMILIES, default=list(FAMILIES), help="default: all")
    parser.add_argument("--json", metavar="FILE", help="keep the results in a file")
    flags = parser.parse_args()
    make_data(set_up(REPOSITORY / "runs" / "demo", smoke=False))
    with tempfile.TemporaryDirectory() as folder:
        results = {name: measure(name, flags.steps, Path(folder)) for name in flags.only}
    print(f"\n{flags.steps} steps, {os.cpu_count()} cores\n")
    print("| config | what is different | parameters | nll | accuracy | bits per byte | tokens/s |")
    print("|---|---|---|---|---|---|---|")
    for name, row in results.items():
        bits = "–" if row["bits_per_byte"] is None else f"{row['bits_per_byte']:.3f}"
        print(
            f"| `{name}` | {FAMILIES[name]} | {row['parameters'] / 1e6:.2f} M | {row['nll']:.3f} | "
            f"{row['accuracy']:.1%} | {bits} | {row['tokens_per_second']:,.0f} |"
        )
    if flags.json:
        Path(flags.json).write_text(json.dumps({"steps": flags.steps, "rows": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
