"""The notebooks of examples/: what they keep, and that they run from start to end."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "examples"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
LARGEST = 200_000  # bytes: a notebook is read on a web page


def test_there_are_notebooks() -> None:
    assert {path.stem for path in NOTEBOOKS} == {"play_char", "play_math", "finetune", "layouts"}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_kept_outputs_are_small_complete_and_without_errors(path: Path) -> None:
    assert path.stat().st_size < LARGEST
    cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert outputs and all(output["output_type"] != "error" for output in outputs)
    assert not re.search(r"/(home|root|Users)/|Traceback|W0000|I0000", json.dumps(outputs))


@pytest.mark.notebooks
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_from_start_to_end(path: Path, tmp_path: Path) -> None:
    """Their last cells assert what they found."""
    from examples.notebooks import run

    begin = time.perf_counter()
    run(path, str(tmp_path))
    print(f"{path.stem}: {time.perf_counter() - begin:.0f} s")
