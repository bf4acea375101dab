"""Runs as one self-contained web page: no server, no network, no other files."""

from __future__ import annotations

import dataclasses
import os
from datetime import datetime
from pathlib import Path

from gpt_mesh.errors import InputError
from gpt_mesh.experiments.collect import RecordedRun, find_runs
from gpt_mesh.storage import files, strict_json
from gpt_mesh.storage.progress import log

PAGE = Path(__file__).with_name("page")


def write_report(folder: str, output: str | None) -> int:
    """Write the page about all runs below a folder; returns the exit status.

    Raises:
        InputError: there is no such folder, no run in it, or the page cannot be written.
    """
    if not os.path.isdir(folder):
        raise InputError(f"--report {folder}: no such folder; name one that holds runs, such as runs/")
    runs = find_runs(folder)
    if not runs:
        raise InputError(f"--report {folder}: no run below it; a run's folder (model_path) has a metrics.jsonl")
    target = output or os.path.join(folder, "report.html")
    try:
        files.write_text(target, page(runs, os.path.abspath(folder)))
    except OSError as error:
        raise InputError(f"--output {target}: cannot be written ({error.strerror}); name another file") from None
    log.info("wrote %s: %d runs; open it in any browser", target, len(runs))
    return 0


def page(runs: list[RecordedRun], folder: str) -> str:
    """The HTML."""
    data = {
        "folder": folder,
        "written": datetime.now().strftime("%Y-%m-%d %H:%M"),
        "runs": [dataclasses.asdict(run) for run in runs],
    }
    # In a script element, "</script>" and "<!--" would end or change it.
    embedded = strict_json.dumps(data, ensure_ascii=False).replace("<", "\\u003c")
    html = (PAGE / "page.html").read_text(encoding="utf-8")
    for mark, name in (("/* page.css */", "page.css"), ("/* page.js */", "page.js")):
        html = html.replace(mark, (PAGE / name).read_text(encoding="utf-8"))
    return html.replace("/* data */", embedded)
