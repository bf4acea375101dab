"""The machine and the versions of a benchmark, and the file that holds its results."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
RESULTS = REPOSITORY / "benchmarks" / "results"


def describe() -> dict[str, Any]:
    """Processor, GPUs and their driver, cores, load by others, versions and commit ("+": with changes).

    `BENCHMARK_COMMIT` in the environment says the commit where the sources came without their history.
    """
    packages = ("tensorflow", "mesh-tensorflow", "numpy")
    commit = _output("git", "rev-parse", "--short", "HEAD")
    changed = _output("git", "status", "--porcelain", "-uno") not in (None, "")
    return {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "gpus": _gpus(),
        "load": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in packages},
        "commit": os.environ.get("BENCHMARK_COMMIT") or (f"{commit}{'+' * changed}" if commit else "unknown"),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _gpus() -> list[str]:
    """ "NVIDIA H100 80GB HBM3, driver 550.54", one for each; none without NVIDIA's tools."""
    listed = _output("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader") or ""
    return [", driver ".join(line.split(", ")) for line in listed.splitlines()]


def _output(*command: str) -> str | None:
    """What a command prints; None if there is none or it fails."""
    try:
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def keep(name: str, results: Mapping[str, Mapping[str, Any]], **facts: Any) -> Path:
    """Write a benchmark's results to NAME.json, with the command and the machine's description.

    The file goes into runs/benchmarks/, so that trying a benchmark does not replace the committed results.
    BENCHMARK_RESULTS=benchmarks/results does; it names the folder.

    Args:
        results: the rows of each table, by titles and names; of competitors ours comes first (`Competitor.row`).
        facts: what else the file says, such as rounds.
    """
    folder = Path(os.environ.get("BENCHMARK_RESULTS") or REPOSITORY / "runs" / "benchmarks")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    script, *flags = (word.replace(f"{REPOSITORY}/", "") for word in sys.argv)
    command = shlex.join(["python", "-m", script.removesuffix(".py").replace("/", "."), *flags])
    values = {"command": command, "machine": describe(), **facts, "results": results}
    path.write_text(json.dumps(_rounded(values), indent=1) + "\n")
    return path


def _rounded(value: Any) -> Any:
    """The same with floats of six digits: more are noise."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, Mapping):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, (list, tuple)) else value
