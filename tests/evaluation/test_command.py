"""Evaluation as it is used: alone, after each checkpoint, and on several devices."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf

from gpt_mesh import api, model_fns
from gpt_mesh.config import Config, load_config
from gpt_mesh.data.corpus import data_files
from gpt_mesh.errors import InputError
from gpt_mesh.evaluation.lambada import Lambada
from gpt_mesh.evaluation.results import config_digest
from gpt_mesh.evaluation.tasks import make_task
from gpt_mesh.training import loop, report
from tests.support.models import enlarge_weights, make_engine, unoptimised_graphs
from tests.support.runs import ONE_LAYER, Run, Workspace, logged, rows

PASSAGES = ["the message was sent by the message", "a header of value value end", "return self or return self"]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("cache")
    (folder / "lambada_test.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in PASSAGES))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GPT_MESH_CACHE", str(folder))
        yield folder


def checkpointed(workspace: Workspace, name: str, **keys: Any) -> Config:
    """A config with a checkpoint that no training made."""
    config = load_config(str(workspace.config(name, **ONE_LAYER, eval_steps=1, **keys)))
    with unoptimised_graphs():
        engine = make_engine(config, compiled=False)
        engine.create_variables(training=False)
    enlarge_weights(engine)
    report.prepare_directory(config)
    report.write_config(config)
    engine.save(config.training.model_path, 7, {})
    return config


def test_eval_prints_a_table_and_keeps_a_row(workspace: Workspace, run: Run, cache: Path) -> None:
    config = checkpointed(workspace, "evaluated", eval_tasks=["lambada"])
    path = workspace.root / "evaluated.json"
    kept = workspace.root / "evaluated" / "eval.jsonl"
    status, out, err = run("--model", path, "--eval")
    assert status == 0, err
    both = rows(kept)
    assert [(row["step"], row["task"]) for row in both] == [(7, "validation"), (7, "lambada")]
    facts = {"config_sha256": config_digest(config)}
    assert all(facts.items() <= row.items() and len(row["tokenizer_sha256"]) == 64 for row in both)
    lines = [line.split() for line in out.splitlines()]
    assert lines[0] == ["step", "task", "metric", "value", "standard", "error"]
    assert lines[1] == ["7", "validation", "nll", f"{both[0]['nll']:.6g}", f"{both[0]['nll_stderr']:.6g}"]
    assert ["passages", "3"] in lines

    status, out, err = run("--model", path, "--eval", "--task", "lambada", "--file", cache / "lambada_test.jsonl")
    assert status == 0, err
    assert rows(kept)[2:] == [both[1]]  # the same file, named
    status, _, err = run("--model", path, "--eval", "--task", "lambada", "--file", "nowhere.jsonl")
    assert (status, err.count("\n")) == (1, 1) and "nowhere.jsonl: no such file" in err
    assert len(rows(kept)) == 3


@pytest.mark.parametrize(
    "flags", [["--task", "lambada"], ["--eval", "--file", "x"], ["--stride", "3"], ["--predict", "--download"]]
)
def test_flags_of_evaluation_need_it(run: Run, flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        run("--model", "demo", *flags)
    assert caught.value.code == 2


def test_sliding_windows_score_the_same_tokens_with_more_context(workspace: Workspace, cache: Path) -> None:
    config = checkpointed(workspace, "slid")
    engine = make_engine(config, compiled=False)
    engine.create_variables(training=False)
    engine.restore(f"{config.training.model_path}/model.ckpt-7")
    whole = load_config(str(workspace.config("slid", **ONE_LAYER)))  # eval_steps = 0: all of it
    plain, slid = (make_task(whole, "validation", stride=stride).run(engine) for stride in (None, 16))
    assert (slid["tokens"], slid["bytes"]) == (plain["tokens"], plain["bytes"])
    assert slid["nll"] != plain["nll"]
    assert make_task(whole, "validation", stride=16).facts["stride"] == 16


def test_held_out_text_is_scored_where_the_training_data_cannot_be_reached(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The published configs name buckets that are gone; nothing of them is needed to score text that is here."""
    asked: list[str] = []

    def unreachable(pattern: str) -> list[str]:
        asked.append(pattern)
        raise tf.errors.FailedPreconditionError(None, None, "no such host\n when reading it")

    monkeypatch.setattr(tf.io.gfile, "glob", unreachable)
    path = workspace.dataset("far", None, held_out=[[1] * 33] * 4)
    path.write_text(json.dumps({**json.loads(path.read_text()), "path": "gs://bucket/far_*.tfrecords"}))
    config = load_config(str(workspace.config("distant", **ONE_LAYER, datasets=[["far", 1, "chunks", 1.0]])))
    task = make_task(config, "validation")
    assert len(task.facts["tokenizer_sha256"]) == 64 and not asked
    with pytest.raises(InputError, match=r"far.json: gs://bucket/far_\*.tfrecords: cannot be read \(no such host\); "):
        data_files(config.data.datasets[0].dataset, "path")


@pytest.mark.slow
def test_tasks_run_after_each_checkpoint_on_one_graph(
    workspace: Workspace, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = []
    original = model_fns.build_score

    def counted(*args: Any, **keys: Any) -> Any:
        built.append(args[0]["inputs"].shape)
        return original(*args, **keys)

    monkeypatch.setattr(model_fns, "build_score", counted)
    config = load_config(str(workspace.config("tasked", **ONE_LAYER, train_steps=2, eval_tasks=["lambada"])))
    with logged() as messages:
        result = api.train(config, steps_per_checkpoint=1)
    kept = workspace.root / "tasked" / "eval.jsonl"
    assert [(row["step"], row["task"]) for row in rows(kept)] == [(1, "lambada"), (2, "lambada")]
    assert len(built) == 1
    assert api.evaluate(config, task="lambada") == {
        name: value for name, value in rows(kept)[1].items() if not isinstance(value, str)
    }
    assert result.evaluation is not None and result.evaluation["accuracy"] == rows(kept)[1]["accuracy"]
    assert any(line.startswith("step 2: lambada accuracy ") for line in messages)
    # What a kill left undone is due, task by task.
    lines = kept.read_text().splitlines(keepends=True)
    kept.write_text(lines[0] + lines[1][:20])
    assert loop.due_outputs(config, 2, 1, None).tasks == ("lambada",)
    assert loop.finished(config, 1, None) is None
    shutil.rmtree(workspace.root / "tasked")


def test_a_missing_task_file_is_told_before_training(workspace: Workspace, run: Run, cache: Path) -> None:
    path = workspace.config("unready", **ONE_LAYER, eval_tasks=["wikitext"])
    status, _, err = run("--model", path)
    assert status == 1 and "task wikitext: there is no" in err.splitlines()[-1]
    assert not list((workspace.root / "unready").glob("model.ckpt*"))


def test_several_devices_give_the_numbers_of_one(workspace: Workspace, cache: Path) -> None:
    """Rows over one mesh dimension, the vocabulary over another; batches that do not divide, too."""
    found = []
    for mesh in ({}, {"mesh_shape": "x:2,y:2", "layout": "batch:x,vocab:y,heads:y"}):
        config = load_config(str(workspace.config("spread", **ONE_LAYER, eval_batch_size=2, eval_steps=3, **mesh)))
        with unoptimised_graphs():
            engine = make_engine(config, compiled=False)
            engine.create_variables(training=False)
            enlarge_weights(engine)
            tasks = [make_task(config, "validation"), make_task(config, "lambada")]
            found.append([task.run(engine) for task in tasks])
    for one, several in zip(*found, strict=True):
        assert several == pytest.approx(one, rel=1e-5)
    assert isinstance(tasks[1], Lambada) and len(tasks[1].items) == 3
