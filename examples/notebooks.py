"""Runs the notebooks of this folder from start to end and keeps their outputs.

    python -m examples.notebooks [NAME ...]

`make test-notebooks` runs them in another folder and keeps nothing.
"""

from __future__ import annotations

import argparse
import os
import re
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).resolve().parent
SECONDS = 900.0  # a cell may take, on a machine that does other things too


def notebooks() -> list[Path]:
    """Every notebook of this folder."""
    return sorted(HERE.glob("*.ipynb"))


def run(path: Path, folder: str) -> nbformat.NotebookNode:
    """A notebook with new outputs; `folder` is its working directory.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell raised an exception.
    """
    book = nbformat.read(path, as_version=4)
    paths = [str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    client = NotebookClient(
        book, timeout=SECONDS, kernel_name="python3", resources={"metadata": {"path": folder}}, coalesce_streams=True
    )
    client.execute(env=environment)
    return book


def without_traces(book: nbformat.NotebookNode, folder: str) -> nbformat.NotebookNode:
    """The notebook without times of its cells and names of temporary folders, so that it reads the same anywhere."""
    for cell in book.cells:
        cell.metadata.pop("execution", None)
        for output in cell.get("outputs", []):
            if output.output_type == "stream":
                output.text = re.sub(r"/tmp/gpt_mesh_\w+", "/tmp/gpt_mesh", output.text.replace(folder, "."))
    return book


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="default: all of them")
    wanted = parser.parse_args().names
    for path in notebooks():
        if wanted and path.stem not in wanted:
            continue
        begin = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            nbformat.write(without_traces(run(path, folder), folder), path)
        print(f"{path.name}: {time.perf_counter() - begin:.0f} s")


if __name__ == "__main__":
    main()
