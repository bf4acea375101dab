"""How training grows with the context: peak memory and time per step of linear and global attention.

    python -m benchmarks.long_context [--contexts 1024 2048 4096 8192 16384] [--global_limit 4096] [--json results.json]

A model of two layers of width 64, one sequence of random tokens a step; each row in a separate process. Global
attention stores weights for each pair of positions and is skipped above --global_limit. Memory is measured as in
benchmarks/training_memory.py.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.training_memory import measure
from gpt_mesh.planning.metrics import human_bytes

STEPS = 4


def row(kind: str, context: int) -> dict[str, Any]:
    """One row, in this process."""
    model = {"n_layer": 2, "n_embd": 64, "n_head": 2, "n_ctx": context, "n_vocab": 2048, "train_batch_size": 1}
    return measure(model, {"attention_types": [[[kind], 2]]}, "CPU:0", STEPS)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--contexts", type=int, nargs="+", default=[1024, 2048, 4096, 8192, 16384])
    parser.add_argument("--global_limit", type=int, default=4096, help="default: %(default)s")
    parser.add_argument("--json", metavar="FILE", help="keep the results in a file")
    parser.add_argument("--row", nargs=2, metavar=("KIND", "CONTEXT"), help="measure one row and print it as JSON")
    flags = parser.parse_args()
    if flags.row:
        print(json.dumps(row(flags.row[0], int(flags.row[1]))))
        return
    print(f"{os.cpu_count()} cores\n\n| attention | context | peak | seconds a step |\n|---|---|---|---|", flush=True)
    results = []
    for kind in ("linear", "global"):
        for context in flags.contexts:
            if kind == "global" and context > flags.global_limit:
                continue
            command = [sys.executable, "-m", "benchmarks.long_context", "--row", kind, str(context)]
            child = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            found = json.loads(child.stdout.splitlines()[-1])
            results.append({"kind": kind, "context": context, **found})
            print(f"| {kind} | {context} | {human_bytes(found['peak'])} | {found['seconds']:.2f} |", flush=True)
    if flags.json:
        Path(flags.json).write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
