"""Properties of this host's processor: the number of available cores, and whether bfloat16 is fast."""

from __future__ import annotations

import math
import os
from collections.abc import MutableMapping
from contextlib import suppress
from pathlib import Path

ROOT = Path("/")
MIN_BFLOAT16_WIDTH = 256  # n_embd from which on faster bfloat16 matmuls outweigh the uncompiled parts: docs/speed.md


def bfloat16_wins(width: int, root: Path = ROOT) -> bool | None:
    """Whether a model of this `n_embd` trains faster in bfloat16 than in float32; None if unknown.

    That requires AMX, which TensorFlow's oneDNN uses in programs that XLA does not compile: XLA converts bfloat16 to
    float32 before it multiplies. With AVX512_BF16 alone, float32 is faster.
    """
    features = _features(root)
    if not features:
        return None
    return "amx_bf16" in features and width >= MIN_BFLOAT16_WIDTH


def _features(root: Path) -> set[str]:
    """The processor's features, as Linux names them on x86; empty on other systems."""
    with suppress(OSError):
        for line in (root / "proc/cpuinfo").read_text().splitlines():
            if line.startswith("flags"):
                return set(line.partition(":")[2].split())
    return set()


def limit_threads(environment: MutableMapping[str, str], root: Path = ROOT) -> None:
    """Limit TensorFlow's threads to the CPU time that this process gets. TensorFlow must not be imported yet.

    TensorFlow counts the cores that it may run on, but ignores a container's CPU quota (`docker run --cpus`). Threads
    beyond the quota would be throttled while others wait for them.
    """
    share = _share(root)
    if share is not None and share < _cores():
        environment.setdefault("TF_NUM_INTRAOP_THREADS", str(share))


def _cores() -> int:
    """The number of cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _share(root: Path) -> int | None:
    """The CPU quota of the process's control groups, in cores rounded up; None if there is no limit."""
    limits = [limit for group in _groups(root) if (limit := _limit(group)) is not None]
    return max(1, math.ceil(min(limits))) if limits else None


def _groups(root: Path) -> list[Path]:
    """The folders of the process's control groups and of their parents (versions 1 and 2)."""
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
    """The CPU quota of a control group, in cores; None if there is no limit or no such folder (in a container, its own
    group is the top folder, whatever its name).
    """
    with suppress(OSError, ValueError, ZeroDivisionError):
        quota, period = (group / "cpu.max").read_text().split()
        return int(quota) / int(period)  # "max" is not a number
    with suppress(OSError, ValueError, ZeroDivisionError):
        limit = int((group / "cpu.cfs_quota_us").read_text()) / int((group / "cpu.cfs_period_us").read_text())
        return limit if limit > 0 else None
    return None
