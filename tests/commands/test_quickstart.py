"""`--quickstart` on a small folder, as a program of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from gpt_mesh.commands import quickstart

ROOT = Path(__file__).resolve().parents[2]


def start(folder: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "main.py"), "--quickstart", *flags]
    return subprocess.run(
        command, cwd=folder, env={**os.environ, "PYTHONPATH": ""}, capture_output=True, text=True, check=False
    )


def write_text(folder: Path, count: int) -> None:
    """Sources of the standard library, as documents."""
    folder.mkdir()
    for source in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("[a-z]*.py"))[:count]:
        (folder / f"{source.stem}.txt").write_text(source.read_text()[:4000])


@pytest.mark.slow
@pytest.mark.parametrize(("documents", "held_out"), [(60, True), (1, False)])
def test_a_folder_becomes_a_model_and_a_second_start_continues(tmp_path: Path, documents: int, held_out: bool) -> None:
    write_text(tmp_path / "my notes", documents)
    done = start(tmp_path, "my notes", "--minutes", "0.01")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("The")
    for command in (
        "train_tokenizer.py --base_dir 'my notes'",
        "create_tfrecords.py",
        "my_notes.json --steps",
        "--serve",
    ):
        assert command in done.stderr
    run = tmp_path / "runs" / "my_notes"
    values = json.loads((run / "my_notes.json").read_text())
    assert values["train_steps"] == quickstart.TRIAL_STEPS and (values["eval_steps"] > 0) == held_out
    assert (run / "model.ckpt-30.index").exists() and not (run / "trial").exists()
    assert (run / "eval.jsonl").exists() == held_out
    for path in run.glob("model.ckpt-*"):
        path.unlink()
    (run / "checkpoint").unlink()
    again = start(tmp_path, "my notes")
    assert again.returncode == 0, again.stderr
    assert "my_notes.json is there: continuing" in again.stderr and "create_tfrecords" not in again.stderr
    assert "training steps 0 to 30, new run" in again.stderr


def test_what_is_no_folder_is_refused(tmp_path: Path) -> None:
    done = start(tmp_path, "nowhere")
    assert done.returncode == 1
    assert done.stderr == f"error: --quickstart {tmp_path}/nowhere: is not a folder; name a folder of text files\n"


def test_models_grow_with_device_text_and_time() -> None:
    sizes = [
        quickstart._model(tokens, minutes, gpu)["n_embd"]
        for tokens, minutes, gpu in ((10**5, 10, False), (10**7, 60, False), (10**7, 60, True), (10**8, 60, True))
    ]
    assert sizes == sorted(set(sizes))
