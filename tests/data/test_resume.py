"""Stopped anywhere and gone on with, a run writes the same bytes as one that nothing stopped."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gpt_mesh.config import DatasetConfig, parse_config
from gpt_mesh.data.corpus import data_files, load_corpus
from gpt_mesh.data.create_tfrecords import main
from gpt_mesh.data.manifest import load_manifest
from gpt_mesh.errors import InputError
from gpt_mesh.storage import files as storage

ROOT = Path(__file__).resolve().parents[2]
CHUNKS = ("--mode", "chunks", "--chunk_size", 33)
BOTH = ("--eval_fraction", 0.3, "--deduplicate")


def write_corpus(folder: Path, documents: int) -> Path:
    """Three files; a third of the documents come twice, some are empty or short, one is very long."""
    draw = random.Random(documents)
    texts = [" ".join(f"w{draw.randrange(500)}" for _ in range(draw.randrange(60))) for _ in range(documents)]
    texts[documents // 2] = "long text " * 2000
    texts += draw.choices(texts, k=documents // 3)
    draw.shuffle(texts)
    folder.mkdir()
    for number in range(2):
        lines = [json.dumps({"text": text}) + "\n" for text in texts[number::2]]
        (folder / f"{number}.jsonl").write_text("".join(lines))
    (folder / "2.txt").write_text("the end")
    return folder


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("resume") / "corpus", 60)


@pytest.fixture
def command(corpus: Path, tokenizer_path: str) -> Callable[..., int]:
    def run(out: Path, *flags: object) -> int:
        fixed = ["--input_dir", corpus, "--output_dir", out, "--name", "x", "--encoder_path", tokenizer_path]
        return main([*map(str, fixed), "--processes", "1", *map(str, flags)])

    return run


def contents(folder: Path) -> dict[str, bytes]:
    """Every file in a folder, the manifest and hidden files included."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def snapshots(folder: Path, keep: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """From now on, copies of `folder` before each change to it by way of `storage`: all that a kill there leaves."""
    copies: list[Path] = []
    monkeypatch.setattr(os, "getpid", lambda: 4242)  # another process goes on

    def watched(name: str) -> None:
        change = getattr(storage, name)

        def then(*arguments: Any) -> Any:
            copies.append(keep / f"{len(copies)}")
            if folder.exists():
                shutil.copytree(folder, copies[-1])
            return change(*arguments)

        monkeypatch.setattr(storage, name, then)

    for name in ("move", "remove", "remove_folder", "create_binary", "make_folder"):
        watched(name)
    return copies


@pytest.mark.parametrize(
    "flags", [(), CHUNKS, BOTH, (*CHUNKS, *BOTH)], ids=["documents", "chunks", "documents-both", "chunks-both"]
)
def test_a_kill_before_any_change(
    command: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: tuple[object, ...]
) -> None:
    flags = (*flags, "--records_per_file", 60 if "chunks" in flags else 9, "--minimum_size", 3)
    with monkeypatch.context() as watching:
        copies = snapshots(tmp_path / "out", tmp_path / "copies", watching)
        assert command(tmp_path / "out", *flags) == 0
    whole = contents(tmp_path / "out")
    assert len(whole) > 5
    states = set()
    for copy in copies:
        before = contents(copy) if copy.exists() else {}
        states.add(frozenset(before))
        assert command(copy, *flags, "--resume") == 0
        assert contents(copy) == whole, sorted(before)
    assert len(states) > 6


def test_a_kill_while_an_older_dataset_is_replaced(
    command: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, old_flags, flags = tmp_path / "out", ("--records_per_file", 7, *BOTH), (*CHUNKS, "--records_per_file", 60)
    assert command(out, *old_flags) == 0
    old = contents(out)
    with monkeypatch.context() as watching:
        copies = snapshots(out, tmp_path / "copies", watching)
        assert command(out, *flags, "--overwrite") == 0
    whole = contents(out)
    assert not set(whole) & set(old) - {"x.manifest.json"}
    untouched = 0
    for copy in copies:
        found = load_manifest(str(copy), "x")
        assert found is not None
        if found.complete:  # then either all of the old set is there, or all of the new one
            visible = {
                name: content
                for name, content in contents(copy).items()
                if not name.startswith(".x.") and not name.endswith(".tmp")
            }
            assert visible in (old, whole)
        if (copy / ".x.new" / "x.manifest.json").exists():
            assert command(copy, *flags, "--resume") == 0
        else:
            untouched += 1
            assert command(copy, *flags, "--overwrite") == 0
        assert contents(copy) == whole
    assert 0 < untouched < len(copies) - 10


def started(arguments: list[str], folder: Path) -> subprocess.Popen[bytes]:
    script = [sys.executable, str(ROOT / "data" / "create_tfrecords.py"), *arguments]
    return subprocess.Popen(script, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def killed_at_random(arguments: list[str], folder: Path, draw: random.Random, most: int) -> int:
    """Start the script again and again and `kill -9` it at random moments until the end; counts the kills."""
    kills = 0
    while True:
        process = started([*arguments, "--resume"], folder)
        files, wait = len(list(folder.glob("out/**/x*.tfrecords"))) + draw.randrange(1, 4), draw.random() * 0.05
        while process.poll() is None and len(list(folder.glob("out/**/x*.tfrecords"))) < files and kills < most:
            time.sleep(0.002)
        time.sleep(wait)
        if kills < most and process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
        _, errors = process.communicate()
        if process.returncode == 0:
            return kills
        assert process.returncode == -signal.SIGKILL, errors


@pytest.mark.parametrize(
    ("flags", "processes", "documents"),
    [
        pytest.param((*CHUNKS, *BOTH), 2, 500, id="chunks-eval-deduplicate"),
        pytest.param((), 1, 1500, id="documents", marks=pytest.mark.slow),
        pytest.param(BOTH, 2, 1500, id="documents-eval-deduplicate", marks=pytest.mark.slow),
        pytest.param(CHUNKS, 1, 1500, id="chunks", marks=pytest.mark.slow),
        pytest.param((*CHUNKS, *BOTH, "--ftfy"), 2, 1500, id="chunks-ftfy", marks=pytest.mark.slow),
    ],
)
def test_kill_9_at_random_moments(
    tmp_path: Path, tokenizer_path: str, flags: tuple[object, ...], processes: int, documents: int
) -> None:
    write_corpus(tmp_path / "corpus", documents)
    flags = (*flags, "--records_per_file", 100 if "chunks" in flags else 50, "--processes", processes)
    arguments = ["--input_dir", "corpus", "--output_dir", "out", "--name", "x", "--encoder_path", tokenizer_path]
    arguments += map(str, flags)
    process = started(arguments, tmp_path)
    assert process.wait() == 0
    whole = contents(tmp_path / "out")
    shutil.rmtree(tmp_path / "out")
    kills = killed_at_random(arguments, tmp_path, random.Random(time.time_ns()), most=documents // 250)
    assert kills >= 2, "or nothing was tried"
    assert contents(tmp_path / "out") == whole


def test_a_file_that_no_manifest_names_does_not_stay(command: Callable[..., int], tmp_path: Path) -> None:
    """After a kill between the first file and the manifest, other flags may be given: nothing is bound to the old."""
    assert command(tmp_path / "out", "--records_per_file", 1000) == 0
    manifest = json.loads((tmp_path / "out" / "x.manifest.json").read_text())
    manifest["complete"], manifest["splits"]["train"]["shards"] = False, []
    del manifest["digest"]
    (tmp_path / "out" / "x.manifest.json").write_text(json.dumps(manifest))
    assert command(tmp_path / "out", *CHUNKS, "--resume") == 0
    assert command(tmp_path / "fresh", *CHUNKS) == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")


# What --resume refuses


@pytest.fixture
def stopped(command: Callable[..., int], corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a run that was stopped after two files, beside a corpus of its own."""
    shutil.copytree(corpus, tmp_path / "corpus")

    create = storage.create_binary

    def full(path: str) -> Any:
        if "_2." in path:
            raise OSError(28, "No space left on device")
        return create(path)

    with monkeypatch.context() as failing:
        failing.setattr(storage, "create_binary", full)
        assert command(tmp_path / "out", *CHUNKS, "--records_per_file", 30, "--input_dir", tmp_path / "corpus") == 1
    return tmp_path / "out"


def test_a_full_disk_leaves_what_is_complete(
    command: Callable[..., int], stopped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert set(contents(stopped)) == {"x.manifest.json", "x_0_30.tfrecords", "x_1_30.tfrecords"}
    flags = (*CHUNKS, "--records_per_file", 30, "--input_dir", tmp_path / "corpus")
    assert command(stopped, *flags, "--resume") == 0
    assert "going on after 2 files" in capsys.readouterr().out
    assert command(tmp_path / "whole", *flags) == 0
    assert contents(stopped) == contents(tmp_path / "whole")
    assert command(stopped, *flags, "--resume") == 0, "nothing is left to do"
    assert contents(stopped) == contents(tmp_path / "whole")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--chunk_size", 34], "was begun with --chunk_size 33, not --chunk_size 34"),
        (["--records_per_file", 31], "was begun with --records_per_file 30, not --records_per_file 31"),
        (["--deduplicate"], "was begun with no --deduplicate, not --deduplicate"),
        (["--eval_fraction", 0.1], "was begun with --eval_fraction 0.0, not --eval_fraction 0.1"),
        (["--mode", "documents"], "was begun with --mode chunks, not --mode documents"),
        (["--separator", "[1]"], "was begun with --separator [0], not --separator [1]"),
        (["--errors", "replace"], "was begun with --errors strict"),
        (["--ftfy"], "was begun with no --ftfy"),
    ],
)
def test_other_flags_are_refused(
    command: Callable[..., int],
    stopped: Path,
    tmp_path: Path,
    flags: list[object],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = contents(stopped)
    capsys.readouterr()
    base = (*CHUNKS, "--records_per_file", 30, "--input_dir", tmp_path / "corpus", "--resume")
    assert command(stopped, *base, *flags) == 1
    line = capsys.readouterr().err
    assert message in line and "x.manifest.json" in line and line.count("\n") == 1
    assert contents(stopped) == before


@pytest.mark.parametrize("change", ["grown", "touched", "gone", "new", "tokenizer", "shard", "damaged", "manifest"])
def test_other_input_is_refused(
    command: Callable[..., int], stopped: Path, tmp_path: Path, change: str, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus, flags, expected = tmp_path / "corpus", [], ""
    if change == "grown":
        with (corpus / "0.jsonl").open("a") as file:
            file.write("\n")
        expected = "0.jsonl: has changed since"
    elif change == "touched":
        os.utime(corpus / "0.jsonl", ns=(1, 1))
        expected = "0.jsonl: has changed since"
    elif change == "gone":
        (corpus / "0.jsonl").unlink()
        expected = "0.jsonl: is missing, and was there when"
    elif change == "new":
        (corpus / "-1.txt").touch()
        expected = "-1.txt: was not there when"
    elif change == "tokenizer":
        from tests.support.corpora import make_tokenizer

        flags, expected = ["--encoder_path", make_tokenizer(tmp_path / "other")], "was begun with another tokenizer"
    elif change == "shard":
        (stopped / "x_1_30.tfrecords").unlink()
        expected = "x_1_30.tfrecords: is gone"
    elif change == "damaged":
        (stopped / "x.manifest.json").write_text('{"version": 1')
        expected = "x.manifest.json: is damaged"
    else:
        (stopped / "x.manifest.json").unlink()
        expected = "x_0_30.tfrecords: is there, but no"
    before = contents(stopped)
    capsys.readouterr()
    assert command(stopped, *CHUNKS, "--records_per_file", 30, "--input_dir", corpus, "--resume", *flags) == 1
    line = capsys.readouterr().err
    assert expected in line and line.count("\n") == 1
    assert contents(stopped) == before


@pytest.mark.parametrize("change", ["grown", "gone", "new", "all"])
def test_what_is_still_to_be_read_may_have_been_mended(
    command: Callable[..., int], stopped: Path, tmp_path: Path, change: str
) -> None:
    """As after a run that a bad file stopped."""
    corpus = tmp_path / "corpus"
    if change in ("grown", "all"):
        (corpus / "1.jsonl").write_text('{"text": "mended"}\n')
    if change in ("gone", "all"):
        (corpus / "2.txt").unlink()
    if change in ("new", "all"):
        (corpus / "3.txt").write_text("new")
    flags = (*CHUNKS, "--records_per_file", 30, "--input_dir", corpus)
    assert command(stopped, *flags, "--resume") == 0
    assert command(tmp_path / "whole", *flags) == 0
    assert contents(stopped) == contents(tmp_path / "whole")
    (corpus / "9.txt").write_text("later")
    assert command(stopped, *flags, "--resume") == 1, "once all is written, nothing is still to be read"


def test_an_account_that_was_changed(
    command: Callable[..., int], stopped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = json.loads((stopped / "x.manifest.json").read_text())
    manifest["splits"]["train"]["account"]["tokens_read"] += 1
    del manifest["digest"]
    (stopped / "x.manifest.json").write_text(json.dumps(manifest))
    capsys.readouterr()
    assert command(stopped, *CHUNKS, "--records_per_file", 30, "--input_dir", tmp_path / "corpus", "--resume") == 1
    line = capsys.readouterr().err
    assert "the account of x_* in its manifest does not add up" in line and line.count("\n") == 1


def test_neither_flag_is_refused(
    command: Callable[..., int], stopped: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert command(stopped) == 1
    line = capsys.readouterr().err
    assert "x_0_30.tfrecords: is there already, with 1 more" in line
    assert "--resume" in line and "--overwrite" in line
    with pytest.raises(SystemExit):
        command(stopped, "--resume", "--overwrite")


def test_overwrite_replaces_a_stopped_run(command: Callable[..., int], stopped: Path, tmp_path: Path) -> None:
    assert command(stopped, "--overwrite") == 0
    assert command(tmp_path / "fresh") == 0
    assert contents(stopped) == contents(tmp_path / "fresh")


# Who reads the data


def used_data(folder: Path) -> DatasetConfig:
    """The dataset config of x, in a model config."""
    sizes = {"n_head": 2, "n_embd": 8, "n_layer": 1, "n_ctx": 16, "n_vocab": 1000}
    rest = {"lr": 1e-3, "train_batch_size": 1, "train_steps": 1, "model_path": "run", "datasets": ["x"]}
    (folder / "dataset_configs").mkdir(exist_ok=True)
    values = {"path": str(folder / "out" / "x_[0-9]*.tfrecords"), "n_vocab": 1000}
    (folder / "dataset_configs" / "x.json").write_text(json.dumps(values))
    return parse_config({**sizes, **rest}, "model.json", folder).data.datasets[0].dataset


def test_training_refuses_what_is_not_complete(command: Callable[..., int], stopped: Path, tmp_path: Path) -> None:
    dataset = used_data(tmp_path)
    with pytest.raises(InputError, match=r"x\.manifest\.json: the data is not all written \(2 files so far\)"):
        data_files(dataset, "path")
    (stopped / "x.manifest.json").rename(stopped / "away")
    assert len(load_corpus(data_files(dataset, "path"))) == 60, "what is there can be used"
    (stopped / "away").rename(stopped / "x.manifest.json")
    flags = (*CHUNKS, "--records_per_file", 30, "--input_dir", tmp_path / "corpus", "--resume")
    assert command(stopped, *flags) == 0
    assert len(load_corpus(data_files(dataset, "path"))) > 60
