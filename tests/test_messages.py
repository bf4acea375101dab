"""Paths in messages: from the root of the file system, wherever the program was started and however they were given."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gpt_mesh.data import create_tfrecords, train_tokenizer
from gpt_mesh.errors import InputError, shown
from gpt_mesh.experiments.report import write_report
from gpt_mesh.interop import huggingface
from tests.support.runs import Run, Workspace


def test_one_rule(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert shown("a/../b.txt") == shown(Path("b.txt")) == shown(shown("b.txt")) == f"{tmp_path}/b.txt"
    for name in ("gs://bucket/a", "ram://a", "-"):
        assert shown(name) == name
    assert shown("a\nb") == f"{tmp_path}/a\\nb"
    assert len(str(InputError("x" * 10_000_000))) < 4000


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--model", "gone.json"], "gone.json"),
        (["--model", "wrong.json"], "wrong.json"),
        (["--model", "here.json", "--eval"], "run"),
        (["--model", "here.json", "--predict", "--prompt", "gone.txt"], "gone.txt"),
        (["--model", "here.json", "--score", "text.pdf"], "text.pdf"),
        (["--model", "here.json", "--init_from", "gone"], "gone"),
        (["--model", "run/model.ckpt-5"], "run/model.ckpt-5"),
        (["--quickstart", "gone"], "gone"),
    ],
)
def test_of_main(
    flags: list[str], named: str, workspace: Workspace, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    values = json.loads(workspace.config("paths").read_text())
    dataset = json.loads((workspace.root / "dataset_configs" / "tiny.json").read_text())
    (tmp_path / "dataset_configs").mkdir()
    (tmp_path / "dataset_configs" / "tiny.json").write_text(json.dumps(dataset))
    for name, keys in (("here", {"model_path": "run"}), ("wrong", {"n_head": 0})):
        (tmp_path / f"{name}.json").write_text(json.dumps(values | keys))
    status, _, err = run(*flags)
    assert status == 1 and f"{tmp_path}/{named}" in err.splitlines()[-1], err


def test_of_the_scripts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.jsonl").write_text("{\n")
    encode = ["--name", "n", "--output_dir", "out", "--encoder_path"]
    for main, flags, named in (
        (create_tfrecords.main, ["--input_dir", "bad", *encode, "gone"], "gone"),
        (train_tokenizer.main, ["--base_dir", "bad", "--output_dir", "out", "--vocab_size", "300"], "bad/a.jsonl"),
        (train_tokenizer.main, ["--base_dir", "none", "--output_dir", "out", "--vocab_size", "300"], "none"),
        (huggingface.main, ["import", "none", "--name", "n"], "none"),
    ):
        assert main(flags) == 1
        assert f"{tmp_path}/{named}" in capsys.readouterr().err


def test_of_the_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=f"{tmp_path}/runs"):
        write_report("runs", None)
