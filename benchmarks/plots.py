"""Draws saved benchmark results for the README: our speed relative to each peer, benchmark by benchmark.

    python -m benchmarks.plots [benchmarks/results/*.json] [--output docs/images/speed.svg]

A bar is the median over rounds of our rate divided by the peer's in the same round; the line on it spans the lowest and
the highest round (up to a fifth beyond the longest bar). The same results give the same file.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from benchmarks.machine import REPOSITORY, RESULTS

NO_PEERS = ("ours", "matmul peak")  # names of rows that begin so
BLUE, GREY = "#4477aa", "#666666"
OUTPUT = REPOSITORY / "docs" / "images" / "speed.svg"


@dataclass(frozen=True)
class Ratio:
    """How many times as fast as a peer: median, lowest and highest round."""

    peer: str
    median: float
    low: float
    high: float


def ratios(rows: Mapping[str, Mapping[str, Any]]) -> list[Ratio]:
    """Of one contest, the first row being ours, peer by peer; those that failed are left out."""
    ours, *others = rows.items()
    mine = ours[1].get("rates")
    found = []
    for name, row in others:
        if mine and row.get("rates") and not name.startswith(NO_PEERS):
            by_round = [a / b for a, b in zip(mine, row["rates"], strict=True)]
            found.append(Ratio(name, statistics.median(by_round), min(by_round), max(by_round)))
    return found


def contests(paths: Sequence[Path]) -> dict[str, list[Ratio]]:
    """Ratios by title, which says the contest and the machine."""
    found = {}
    for path in sorted(paths):
        kept = json.loads(path.read_text())
        for title, rows in kept["results"].items():
            if rows and (against := ratios(rows)):
                found[f"{title} · {_where(kept['machine'])}"] = against
    return found


def _where(machine: Mapping[str, Any]) -> str:
    gpus = machine.get("gpus") or []
    if gpus:
        return gpus[0].partition(",")[0] + (f" × {len(gpus)}" if len(gpus) > 1 else "")
    return f"{machine['cores']} CPU cores"


def draw(found: Mapping[str, Sequence[Ratio]]) -> Figure:
    """A group of bars for each contest, the first on top."""
    bars = sum(map(len, found.values()))
    figure = Figure(figsize=(8, 0.6 + 0.3 * bars + 0.55 * len(found)))
    axes = figure.add_subplot()
    y, ticks, names = 0.0, [], []
    # A round in which a peer compiled again must not squeeze all else: lines end here.
    end = 1.2 * max([1.0, *(one.median for group in found.values() for one in group)])
    for title, group in found.items():
        axes.text(0, y + 0.1, title, fontsize=9, weight="bold", va="bottom")
        for one in group:
            y -= 1
            ticks.append(y + 0.45)
            names.append(one.peer)
            axes.barh(ticks[-1], one.median, height=0.75, color=BLUE)
            high = min(one.high, end)
            axes.plot([one.low, high], [ticks[-1]] * 2, color="black", linewidth=1)
            axes.text(high, ticks[-1], f"  {one.median:.2f} ×", fontsize=9, va="center")
        y -= 1.6
    axes.axvline(1, color=GREY, linewidth=1, linestyle="--")
    axes.set_yticks(ticks, names, fontsize=9)
    axes.set(xlabel="times as fast as the peer, in the same run", ylim=(y + 1.5, 1))
    axes.set_xlim(0, 1.15 * end)
    axes.tick_params(axis="y", length=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    figure.tight_layout()
    return figure


def write(figure: Figure, path: Path) -> None:
    """As SVG with text as text, without a date or random names."""
    with matplotlib.rc_context({"svg.hashsalt": "speed", "svg.fonttype": "none"}), path.open("wb") as file:
        figure.savefig(file, format="svg", metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("results", nargs="*", type=Path, default=sorted(RESULTS.glob("*.json")))
    parser.add_argument("--output", type=Path, default=OUTPUT)
    args = parser.parse_args()
    found = contests(args.results)
    if not found:
        sys.exit("error: no results with rates of a peer: run a benchmark with --peers first")
    write(draw(found), args.output)
    print(args.output)


if __name__ == "__main__":
    main()
