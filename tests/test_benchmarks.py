"""What benchmarks keep of their results, and how it is drawn. (The benchmarks themselves are run by hand.)"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks import machine, plots
from benchmarks.turns import Competitor


def contest() -> dict[str, object]:
    competitors = [
        Competitor("ours", [], rates=[10.0, 20.0, 90.0]),
        Competitor("ours, bfloat16", [], rates=[1.0, 1.0, 1.0]),
        Competitor("a <peer>", [], peer=True, rates=[5.0, 5.0, 100.0], facts={"first_step": 1.23456789}),
        Competitor("broken", [], peer=True, failed="ended with status 1"),
        Competitor("matmul peak", [], rates=[1e12, 1e12, 1e12]),
    ]
    return {one.name: one.row() for one in competitors}


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BENCHMARK_RESULTS", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["benchmarks/x.py", "--peers", f"{machine.REPOSITORY}/.venv-peers/bin/python"])
    return machine.keep("x", {"training, tiny": contest()}, rounds=3, unit="tokens/s")


def test_results_are_kept_with_command_machine_and_rounds(kept: Path) -> None:
    values = json.loads(kept.read_text())
    assert values["command"] == "python -m benchmarks.x --peers .venv-peers/bin/python"
    assert {"date", "processor", "gpus", "cores", "python", "tensorflow", "commit"} <= values["machine"].keys()
    assert values["results"]["training, tiny"]["ours"] == {
        "median": 20.0, "low": 10.0, "high": 90.0, "rates": [10.0, 20.0, 90.0]
    }  # fmt: skip
    assert values["results"]["training, tiny"]["a <peer>"]["first_step"] == 1.23457
    assert values["results"]["training, tiny"]["broken"] == {"failed": "ended with status 1"}


def test_results_go_beside_the_committed_ones_unless_told_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("BENCHMARK_RESULTS", raising=False)
    monkeypatch.setattr(machine, "REPOSITORY", tmp_path)
    assert machine.keep("x", {}) == tmp_path / "runs" / "benchmarks" / "x.json"


def test_a_bar_is_the_median_of_the_ratios_within_rounds(kept: Path) -> None:
    start = machine.keep("start", {"demo": {"import": {"wall": 2.0}}, "none": {}}, unit="seconds")  # nothing to draw
    (title,) = found = plots.contests([start, kept])
    assert title.startswith("training, tiny · ")
    assert found[title] == [plots.Ratio("a <peer>", 2.0, 0.9, 4.0)]


def test_the_same_results_give_the_same_picture(kept: Path, tmp_path: Path) -> None:
    pictures = [tmp_path / "a.svg", tmp_path / "b.svg"]
    for path in pictures:
        plots.write(plots.draw(plots.contests([kept])), path)
    first, second = (path.read_bytes() for path in pictures)
    assert first == second
    assert b"a &lt;peer&gt;" in first and b"2.00" in first
