"""What the page of `--report` is made of."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from gpt_mesh import run_experiment
from gpt_mesh.experiments.collect import POINTS, find_runs
from tests.support.made_up_runs import make_runs, write

DOCUMENT = Path(__file__).parents[1] / "support" / "dom.js"


def embedded(page: Path) -> list[dict]:
    html = page.read_text()
    assert not re.search(r"(src|href)\s*=\s*\"(?!data:,)|@import|url\(", html), "nothing from elsewhere"
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.S)
    assert found is not None
    return json.loads(found[1])["runs"]


def test_the_page_holds_all_runs(tmp_path: Path) -> None:
    make_runs(tmp_path)
    assert run_experiment.main(["--report", str(tmp_path), "--output", str(tmp_path / "page.html")]) == 0
    runs = embedded(tmp_path / "page.html")
    assert [run["name"] for run in runs] == ["base", "warm", "wide/big"]
    assert runs[0]["series"]["training/loss"][0][0] == 10 and len(runs[0]["series"]["training/loss"]) == 300
    assert "training/mfu" not in runs[0]["series"]
    assert runs[0]["samples"][-1][0] == 3000 and "</script>" in runs[0]["samples"][-1][2]


def test_sacred_records_give_runs_or_their_status(tmp_path: Path) -> None:
    make_runs(tmp_path)
    for number, (status, model_path) in {
        1: ("FAILED", tmp_path / "base"),
        2: ("COMPLETED", tmp_path / "base"),
        3: ("RUNNING", tmp_path / "elsewhere"),
    }.items():
        folder = tmp_path / "sacred" / str(number)
        folder.mkdir(parents=True)
        (folder / "run.json").write_text(json.dumps({"experiment": {"name": "try"}, "status": status}))
        (folder / "info.json").write_text(json.dumps({"model_path": str(model_path)}))
        columns = {"steps": [1, 2], "values": [3.0, 2.0], "timestamps": ["", ""]}
        (folder / "metrics.json").write_text(json.dumps({"training.loss": columns, "validation.nll": columns}))
        (folder / "samples_step_2.txt").write_text("text")
    runs = {run.name: run for run in find_runs(str(tmp_path))}
    assert sorted(runs) == ["base", "try sacred/3", "warm", "wide/big"]
    assert runs["base"].status == "completed", "the newest"
    record = runs["try sacred/3"]
    assert record.series["training/loss"] == [(1, 3.0), (2, 2.0)] and record.status == "running"
    assert record.evaluations[-1] == {"step": 2, "task": "validation", "nll": 2.0}
    assert record.samples == [(2, "samples_step_2.txt", "text")]


def test_a_record_that_fell_silent_is_not_called_running(tmp_path: Path) -> None:
    """Its writer was killed with the run: the last sign of life is what there is to say."""
    now = datetime.now(timezone.utc)
    for name, age in (("1", timedelta(seconds=20)), ("2", timedelta(hours=3))):
        seen = (now - age).replace(tzinfo=None)
        run = {"experiment": {"name": "try"}, "status": "RUNNING", "heartbeat": seen.isoformat()}
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text(json.dumps(run))
        columns = {"steps": [1], "values": [3.0], "timestamps": [""]}
        (tmp_path / name / "metrics.json").write_text(json.dumps({"training.loss": columns}))
    alive, silent = find_runs(str(tmp_path))
    assert alive.status == "running"
    assert silent.status == f"running, last seen {(now - timedelta(hours=3)).astimezone():%Y-%m-%d %H:%M}"


def test_what_was_measured_in_another_way_is_a_curve_of_its_own(tmp_path: Path) -> None:
    """Counts are none; of two evaluations of a step the newer counts."""
    row = {"step": 5, "task": "wikitext", "nll": 3.0, "words": 9, "articles": 2, "detokenized_bytes": 8, "tokens": 7}
    write(tmp_path / "eval.jsonl", [row, {**row, "nll": 2.0, "stride": 16}, {**row, "nll": 2.5}])
    (run,) = find_runs(str(tmp_path))
    assert run.series == {"wikitext/nll": [(5, 2.5)], "wikitext, stride 16/nll": [(5, 2.0)]}
    assert [row["task"] for row in run.evaluations] == ["wikitext", "wikitext", "wikitext, stride 16"]
    assert run.evaluations[0]["words"] == 9 and run.evaluations[1]["nll"] == 2.5


def test_long_curves_are_thinned_out_and_keep_their_end(tmp_path: Path) -> None:
    write(tmp_path / "metrics.jsonl", [{"step": step, "loss": float("nan")} for step in range(1, 3 * POINTS + 2)])
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 99999, "lo')  # in the writing
    (run,) = find_runs(str(tmp_path))
    assert len(run.series["training/loss"]) <= POINTS and run.series["training/loss"][-1][0] == 3 * POINTS + 1
    assert run_experiment.main(["--report", str(tmp_path)]) == 0
    (found,) = embedded(tmp_path / "report.html")
    assert found["series"]["training/loss"][0][1] is None, "JSON has no NaN"


@pytest.mark.parametrize(
    ("flags", "part"), [(["--report", "nowhere"], "no such folder"), (["--report", "."], "no run below it")]
)
def test_mistakes_are_one_line(
    flags: list[str], part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_experiment.main(flags) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: --report") and part in line


def test_foreign_and_damaged_records_are_passed_over(tmp_path: Path) -> None:
    make_runs(tmp_path)
    for name, text in {"base/run.json": '{"id": 3}', "a/run.json": '{"exp', "b/run.json": "[]"}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    folder = tmp_path / "c"
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps({"experiment": {"name": "try"}, "status": "RUNNING"}))
    damaged = {"training.loss": {"steps": [1, 2, 3], "values": [3.0, None]}, "training.nll": []}
    (folder / "metrics.json").write_text(json.dumps(damaged))
    runs = {run.name: run for run in find_runs(str(tmp_path))}
    assert sorted(runs) == ["base", "try c", "warm", "wide/big"]
    assert runs["try c"].series == {"training/loss": [(1, 3.0)]}


def test_a_run_keeps_its_colour_when_others_come_and_go(tmp_path: Path) -> None:
    def colours() -> dict[str, int]:
        assert run_experiment.main(["--report", str(tmp_path)]) == 0
        return {run["name"]: run["colour"] for run in embedded(tmp_path / "report.html")}

    make_runs(tmp_path)
    assert colours() == {"base": 0, "warm": 1, "wide/big": 2}
    (tmp_path / "a").mkdir()
    write(tmp_path / "a" / "metrics.jsonl", [{"step": 1, "loss": 2.0}])
    assert colours() == {"a": 3, "base": 0, "warm": 1, "wide/big": 2}
    shutil.rmtree(tmp_path / "base")
    assert colours() == {"a": 3, "warm": 1, "wide/big": 2}
    (tmp_path / "b").mkdir()
    write(tmp_path / "b" / "metrics.jsonl", [{"step": 1, "loss": 2.0}])
    assert colours() == {"a": 3, "b": 0, "warm": 1, "wide/big": 2}
    for damaged in ("no page", '<script type="application/json" id="data">{"runs": [3]}</script>'):
        (tmp_path / "report.html").write_text(damaged)
        assert list(colours().values()) == [0, 1, 2, 3]


def drawn(page: Path) -> Any:
    """What the page's script draws, in a document of the tests."""
    done = subprocess.run(["node", DOCUMENT, page], capture_output=True, text=True, timeout=60, check=True)
    return json.loads(done.stdout)


def heights(path: dict[str, str]) -> list[float]:
    return [float(place.partition(",")[2]) for place in re.split("[ML]", path["d"])[1:]]


@pytest.mark.skipif(shutil.which("node") is None, reason="needs Node.js")
def test_labels_of_axes_fit_and_a_diverged_run_flattens_nothing(tmp_path: Path) -> None:
    """A label has at most seven characters, of about 6.1 px, between the edges of a picture that is 460 wide."""
    for name, after in {"good": lambda i: 4 - 0.05 * i, "lost": lambda i: 4 - 0.05 * i if i < 10 else 1e6 * i}.items():
        (tmp_path / name).mkdir()
        rows = [
            {"step": 1_250_000 * i, "loss": after(i), "nll": after(i) * 1.001, "lr": 1e-5 * i} for i in range(1, 21)
        ]
        for row in rows:
            row |= {"tokens_per_second": 12_345_678 + row["step"], "grad_norm": row["loss"]}
        write(tmp_path / name / "metrics.jsonl", rows)
        write(tmp_path / name / "eval.jsonl", [{"step": step, "nll": 3.0 - step / 1e7} for step in (5_000, 10_000)])
    assert run_experiment.main(["--report", str(tmp_path)]) == 0
    found = drawn(tmp_path / "report.html")
    assert [run.partition("diverged")[2] for run in found["runs"]] == ["", " at step 12,500,000"]
    figures = {figure["metric"]: figure for figure in found["figures"]}
    assert figures.keys() == {f"training/{name}" for name in ("loss", "lr", "tokens_per_second", "grad_norm")} | {
        "validation/nll"
    }
    assert figures["training/loss"]["caption"] == "training/loss, training/nll"
    assert len(figures.pop("validation/nll")["paths"]) == 2, "it ends before the run diverged"
    for figure in figures.values():
        assert any(label["text"] == "20M" for label in figure["labels"])
        for label in figure["labels"]:
            width = 6.1 * len(label["text"])
            left = float(label["x"]) - width / (1 if label["text-anchor"] == "end" else 2)
            assert left >= 0 and (label["text-anchor"] == "end" or left + width <= 460), label
    for metric in ("training/loss", "training/grad_norm"):
        good, lost, cross = figures[metric]["paths"]
        assert heights(good)[-1] - heights(good)[0] > 200, "the whole height"
        assert heights(lost)[:9] == heights(good)[:9] and set(heights(lost)[9:]) == {10.0}, "along the upper edge"
        assert cross["class"] == "diverged" and cross["stroke"] == lost["stroke"] != good["stroke"]
    assert len(figures["training/lr"]["paths"]) == 2
