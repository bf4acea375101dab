"""File operations that fail during a run: one line, and the same command ends as if nothing had happened."""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.runs import REPOSITORY, Workspace, different, losses

FAULTS = REPOSITORY / "tests" / "support" / "faults.c"


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tests/support/faults.c, compiled."""
    compiler = shutil.which("cc")
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip("needs a C compiler, and Linux's loader")
    path = tmp_path_factory.mktemp("faults") / "faults.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", str(path), str(FAULTS), "-ldl"], check=True)
    return path


@pytest.fixture(scope="module")
def undisturbed(workspace: Workspace) -> Path:
    config = workspace.config("undisturbed", train_steps=9, eval_steps=1)
    done = workspace.run("--model", config, "--steps_per_checkpoint", 3)
    assert done.returncode == 0, done.stderr
    return workspace.root / "undisturbed"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "call", "number", "after"),
    [
        ("tfevents", "open", errno.EROFS, 0),
        ("tfevents", "write", errno.EIO, 3),
        ("model.ckpt-6", "write", errno.EIO, 0),
        ("model.ckpt-6", "open", errno.EROFS, 0),
        ("model.ckpt-6", "sync", errno.EIO, 0),
        ("model.ckpt-6.index", "rename", errno.ESTALE, 0),
        ("run/checkpoint", "rename", errno.EIO, 1),
        ("metrics.jsonl", "open", errno.EMFILE, 4),
        ("metrics.jsonl", "write", errno.ENOSPC, 1),
        ("eval.jsonl", "write", errno.EDQUOT, 1),
        ("run/config.json", "rename", errno.EACCES, 0),
    ],
)
def test_of_a_file(
    workspace: Workspace, undisturbed: Path, library: Path, path: str, call: str, number: int, after: int
) -> None:
    # Not with `path` in it: then the fault would hit whatever is done in the folder.
    name = re.sub(r"\W", "_", path)
    folder = workspace.root / f"fault_{name}_{call}" / "run"
    config = workspace.config("fault", train_steps=9, eval_steps=1, model_path=str(folder))
    faults = {"FAULT_PATH": path, "FAULT_CALL": call, "FAULT_ERRNO": str(number), "FAULT_AFTER": str(after)}
    command = [sys.executable, str(REPOSITORY / "main.py"), "--model", str(config), "--steps_per_checkpoint", "3"]
    environment = {**os.environ, "LD_PRELOAD": str(library), **faults}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=240)
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert last.startswith(f"error: {config}: model_path = {folder}: cannot be written to (") and (
        os.strerror(number) in last
    ), last
    again = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
    assert again.returncode == 0, again.stderr
    assert losses(folder) == losses(undisturbed)
    assert different(folder / "model.ckpt-9", undisturbed / "model.ckpt-9") == []
