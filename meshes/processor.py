"""What this host's processor offers a run: how many cores, and whether bfloat16 is fast."""

from __future__ import annotations

import math
import os
from collections.abc import MutableMapping
from contextlib import suppress
from pathlib import Path

ROOT = Path("/")
LEAST_WIDTH = 256  # of a model whose bfloat16 products outweigh what is not compiled: docs/speed.md


def bfloat16_wins(width: int, root: Path = ROOT) -> bool | None:
    """Whether a model of that `n_embd` trains faster in bfloat16 than in float32 here; None where it is not known.

    It takes AMX, of which oneDNN, TensorFlow's library, makes use in what XLA does not compile: XLA widens bfloat16
    before it multiplies. With AVX512_BF16 alone float32 is faster.
    """
    features = _features(root)
    if not features:
        return None
    return "amx_bf16" in features and width >= LEAST_WIDTH


def _features(root: Path) -> set[str]:
    """The processor's, as Linux names those of x86; empty on others."""
    with suppress(OSError):
        for line in (root / "proc/cpuinfo").read_text().splitlines():
            if line.startswith("flags"):
                return set(line.partition(":")[2].split())
    return set()


def limit_threads(environment: MutableMapping[str, str], root: Path = ROOT) -> None:
    """Let TensorFlow, which is not yet imported, have no more threads than this process is given processors' time.

    TensorFlow counts the cores that it may run on. A container's share of them (`docker run --cpus`) it does not see,
    and the threads beyond it are stopped in the middle of the others' work.
    """
    share = _share(root)
    if share is not None and share < _cores():
        environment.setdefault("TF_NUM_INTRAOP_THREADS", str(share))


def _cores() -> int:
    """That this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _share(root: Path) -> int | None:
    """Processors that the process's control groups give it time of, rounded up; None: no limit."""
    limits = [limit for group in _groups(root) if (limit := _limit(group)) is not None]
    return max(1, math.ceil(min(limits))) if limits else None


def _groups(root: Path) -> list[Path]:
    """The folders of the process's control groups and of those above them (version 1 and 2)."""
    found = []
    with suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers and "cpu" not in controllers.split(","):
                continue
            top = root / "sys/fs/cgroup" / ("cpu" if controllers else "")
            folder = top / path.lstrip("/")
            found += [folder, *(parent for parent in folder.parents if parent.is_relative_to(top))]
    return found


def _limit(group: Path) -> float | None:
    """Processors that a control group gives time of; None: no limit, or no such folder (in a container, one's own group
    is at the top, whatever its name).
    """
    with suppress(OSError, ValueError, ZeroDivisionError):
        quota, period = (group / "cpu.max").read_text().split()
        return int(quota) / int(period)  # "max" is no number
    with suppress(OSError, ValueError, ZeroDivisionError):
        limit = int((group / "cpu.cfs_quota_us").read_text()) / int((group / "cpu.cfs_period_us").read_text())
        return limit if limit > 0 else None
    return None
