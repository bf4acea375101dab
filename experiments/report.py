"""Runs as one self-contained web page: no server, no network, no other files."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import os
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path

from gpt_mesh.errors import InputError, shown
from gpt_mesh.experiments.collect import RecordedRun, find_runs
from gpt_mesh.experiments.curves import diverged_at, shared_charts
from gpt_mesh.storage import files, strict_json
from gpt_mesh.storage.progress import log

PAGE = Path(__file__).with_name("page")


def write_report(folder: str, output: str | None) -> int:
    """Write the page about all runs below a folder; returns the exit status.

    Raises:
        InputError: there is no such folder, no run in it, or the page cannot be written.
    """
    if not os.path.isdir(folder):
        raise InputError(f"--report {shown(folder)}: no such folder; name one that holds runs, such as runs/")
    runs = find_runs(folder)
    if not runs:
        raise InputError(f"--report {shown(folder)}: no run below it; a run's folder (model_path) has a metrics.jsonl")
    target = output or os.path.join(folder, "report.html")
    try:
        files.write_text(target, page(runs, os.path.abspath(folder), colours_of(target)))
    except OSError as error:
        raise InputError(f"--output {shown(target)}: cannot be written ({error.strerror}); name another file") from None
    log.info("wrote %s: %d runs; open it in any browser", shown(target), len(runs))
    return 0


def page(runs: list[RecordedRun], folder: str, before: Mapping[str, int]) -> str:
    """The HTML. `before`: the colours that runs had in the page that this one replaces."""
    colours = _colours([run.name for run in runs], before)
    data = {
        "folder": folder,
        "written": datetime.now().strftime("%Y-%m-%d %H:%M"),
        "shared": shared_charts([run.series for run in runs]),
        "runs": [
            {**dataclasses.asdict(run), "colour": colour, "diverged": diverged_at(run.series)}
            for run, colour in zip(runs, colours, strict=True)
        ],
    }
    # In a script element, "</script>" and "<!--" would end or change it.
    embedded = strict_json.dumps(data, ensure_ascii=False).replace("<", "\\u003c")
    html = (PAGE / "page.html").read_text(encoding="utf-8")
    for mark, name in (("/* page.css */", "page.css"), ("/* page.js */", "page.js")):
        html = html.replace(mark, (PAGE / name).read_text(encoding="utf-8"))
    return html.replace("/* data */", embedded)


def colours_of(path: str) -> dict[str, int]:
    """The number of each run's colour in a page; empty if there is no page."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        html = Path(path).read_text(encoding="utf-8")
        found = re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.S)
        runs = json.loads(found[1])["runs"] if found else []
        return {run["name"]: run["colour"] for run in runs if type(run["colour"]) is int and run["colour"] >= 0}
    return {}


def _colours(names: Sequence[str], before: Mapping[str, int]) -> list[int]:
    """A colour for each run: the one it had before, else the first that no other run has."""
    kept = {name: before[name] for name in names if name in before}
    free = (number for number in itertools.count() if number not in kept.values())
    return [kept[name] if name in kept else next(free) for name in names]
