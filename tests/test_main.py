"""The command line: its modes, and one clear line for every input that cannot work."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gpt_mesh import main
from gpt_mesh.commands.trained import keep
from gpt_mesh.data.encoders import load_encoder
from gpt_mesh.engine import checkpoints
from gpt_mesh.engine.engine import DeviceEngine
from gpt_mesh.storage.json_lines import JsonLines
from tests.support.corpora import random_documents
from tests.support.runs import (
    N_CTX,
    N_VOCAB,
    ONE_LAYER,
    REPOSITORY,
    STEPS,
    Run,
    Trained,
    Workspace,
    logged,
    printed,
    rows,
)


@pytest.fixture
def refused(run: Run, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """main.py with input that cannot work, in this process: the one line it says, before it has built anything."""

    def build(self: DeviceEngine, *, training: bool) -> None:
        raise AssertionError("built a graph before it looked at its input")

    def refused(*flags: object, built: bool = False) -> str:
        with monkeypatch.context() as patch:
            if not built:
                patch.setattr(DeviceEngine, "create_variables", build)
            status, out, err = run(*flags)
        assert (status, out) == (1, ""), (status, out, err)
        lines = err.splitlines()
        assert lines[-1].startswith("error: ")
        assert not any("Traceback" in line or line.startswith("error: ") for line in lines[:-1])
        return lines[-1]

    return refused


@pytest.fixture
def copy(trained: Trained, tmp_path: Path) -> Path:
    """The trained run, copied with its config, in a folder that the test may change."""
    shutil.copytree(trained.directory, tmp_path / "run")
    shutil.copytree(trained.workspace.root / "dataset_configs", tmp_path / "dataset_configs")
    return change(trained.config, tmp_path / "model.json", model_path=str(tmp_path / "run"))


def change(config: Path, target: Path, **keys: Any) -> Path:
    """A JSON config with some keys changed."""
    target.write_text(json.dumps({**json.loads(config.read_text()), **keys}))
    return target


# Flags


def test_help_and_config_errors_come_before_tensorflow(tmp_path: Path) -> None:
    (tmp_path / "broken.json").write_text('{\n "n_head": 2,\n}')
    for flags, status in ((["--help"], 0), (["--model", "laptob"], 1), (["--model", "broken.json"], 1), ([], 2)):
        code = (
            f"import sys, main\nsys.argv = ['main.py', *{flags}]\n"
            "try: status = main.main()\nexcept SystemExit as exit: status = exit.code\n"
            "assert 'tensorflow' not in sys.modules and 'numpy' not in sys.modules\nsys.exit(status)"
        )
        begin = time.monotonic()
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == status, done.stderr
        assert time.monotonic() - begin < 10  # 0.2 s on an idle machine


@pytest.mark.parametrize(
    "flags",
    [
        [],
        ["--model"],
        ["--model", "x", "--nonsense"],
        ["--model", "x", "--eval", "--predict"],
        ["--model", "x", "--predict"],
        ["--model", "x", "--prompt", "y"],
        ["--model", "x", "--new", "--eval"],
        ["--model", "x", "--new", "--score", ""],
        ["--model", "x", "--entmax_sampling"],
        ["--model", "x", "--interactive", "--logprobs", "2"],
        ["--model", "x", "--interactive", "--num_samples", "2"],
        ["--model", "x", "--steps_per_checkpoint", "0"],
        ["--model", "x", "--steps_per_checkpoint", "many"],
        ["--model", "x", "--gpu_ids"],
    ],
)
def test_wrong_flags_exit_with_2(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main.main(flags)
    assert ended.value.code == 2
    out, err = capsys.readouterr()
    assert out == "" and "usage: " in err and "_positive" not in err


def test_unexpected_errors_keep_their_traceback(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpt_mesh.commands.mode.find_config", lambda names, settings: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main.main(["--model", "x"])


# Configs that cannot work


def test_a_model_that_is_not_there_names_near_ones(refused: Callable[..., str]) -> None:
    line = refused("--model", "laptob")
    assert "configs/laptob.json" in line and "did you mean laptop?" in line
    assert "shipped configs: " in refused("--model", "zzz")
    assert "nowhere/x.json: no such model config" in refused("--model", "nowhere/x.json")


def test_malformed_json_names_the_line(refused: Callable[..., str], tmp_path: Path) -> None:
    path = tmp_path / "broken.json"
    path.write_text('{\n "n_head": 2,\n "n_embd" 4\n}')
    line = refused("--model", path)
    assert str(path) in line and "line 3, column 11" in line


def test_an_absent_device_names_the_visible_ones(refused: Callable[..., str], workspace: Workspace) -> None:
    line = refused("--model", workspace.config("absent"), "--gpu_ids", "device:GPU:7")
    assert "--gpu_ids device:GPU:7: no such device; visible here: device:CPU:0" in line
    line = refused("--model", workspace.config("absent"), "--gpu_ids", "gpu0")
    assert "--gpu_ids gpu0" in line and "device:GPU:0" in line


def test_a_mesh_of_another_size_names_what_would_fit(refused: Callable[..., str], workspace: Workspace) -> None:
    config = workspace.config("meshed", mesh_shape="all:4", layout="batch:all")
    line = refused("--model", config, "--gpu_ids", "device:CPU:0", "device:CPU:1")
    assert str(config) in line and '"mesh_shape": "all:4"' in line and '"mesh_shape": "all:2"' in line


@pytest.mark.parametrize("kind", ["file", "below a file", "proc"])
def test_a_model_path_that_cannot_be_written(
    refused: Callable[..., str], workspace: Workspace, tmp_path: Path, kind: str
) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.write_text("x")
    path = {"file": in_the_way, "below a file": in_the_way / "run", "proc": Path("/proc/run")}[kind]
    config = workspace.config("unwritable", model_path=str(path))
    line = refused("--model", config)
    assert f"{config}: model_path = {path}: cannot be written to" in line
    for mode in (["--eval"], ["--score", workspace.tokenizer.with_suffix(".txt")]):
        assert "error: " in refused("--model", config, *mode)


# Data that cannot work


def with_dataset(workspace: Workspace, name: str, use: list[Any], **keys: Any) -> Path:
    return workspace.config(name, datasets=[[name, *use]], **keys)


def test_a_glob_that_matches_nothing(refused: Callable[..., str], workspace: Workspace) -> None:
    path = workspace.dataset("no_files", None, path="nowhere/*.tfrecords")
    line = refused("--model", with_dataset(workspace, "no_files", [2]))
    assert str(path) in line and 'path = "nowhere/*.tfrecords": matches no file' in line


@pytest.mark.parametrize("damage", ["truncated", "corrupt"])
def test_a_damaged_file_names_the_record(refused: Callable[..., str], workspace: Workspace, damage: str) -> None:
    workspace.dataset(damage, random_documents(1, [40, 50, 60], N_VOCAB))
    file = workspace.root / damage / "train" / "part_0.tfrecords"
    data = bytearray(file.read_bytes())
    if damage == "truncated":
        del data[-20:]
    else:
        data[-20] ^= 1
    file.write_bytes(data)
    line = refused("--model", with_dataset(workspace, damage, [2]))
    assert str(file) in line and "record 2" in line


def test_chunks_of_the_wrong_length(refused: Callable[..., str], workspace: Workspace) -> None:
    workspace.dataset("uneven", random_documents(1, [N_CTX + 1, N_CTX], N_VOCAB))
    config = with_dataset(workspace, "uneven", [1, "chunks"])
    line = refused("--model", config)
    assert "part_0.tfrecords, record 1" in line and "holds 32 tokens" in line and "n_ctx + 1 = 33" in line


def test_a_stitch_that_is_too_small(refused: Callable[..., str], workspace: Workspace) -> None:
    workspace.dataset("short", random_documents(1, [50, 5], N_VOCAB))
    line = refused("--model", with_dataset(workspace, "short", [2]))
    assert "record 1" in line and "5 tokens" in line and "set stitch to 7" in line


def test_a_token_id_beyond_the_vocabulary(refused: Callable[..., str], workspace: Workspace) -> None:
    workspace.dataset("large_ids", [[1, 2, N_VOCAB + 5] * 20])
    line = refused("--model", with_dataset(workspace, "large_ids", [1]))
    assert "part_0.tfrecords" in line and "token id 325" in line and "n_vocab" in line and "at least 326" in line


def test_samples_need_a_tokenizer(refused: Callable[..., str], workspace: Workspace) -> None:
    documents = random_documents(1, [50, 60], N_VOCAB)
    path = workspace.dataset("no_tokenizer", documents, tokenizer_path="gone.json", eos_id=0)
    config = with_dataset(workspace, "no_tokenizer", [1], predict_steps=1)
    line = refused("--model", config)
    assert f"{config}: predict_steps = 1" in line
    assert f"{path}: tokenizer_path: {Path.cwd()}/gone.json: no such tokenizer" in line


# Runs that cannot be used


@pytest.mark.parametrize("mode", ["eval", "predict", "score"])
def test_a_missing_checkpoint(refused: Callable[..., str], workspace: Workspace, tmp_path: Path, mode: str) -> None:
    text = tmp_path / "text.txt"
    text.write_text("import os")
    modes: dict[str, list[object]]
    modes = {"eval": ["--eval"], "predict": ["--predict", "--prompt", text], "score": ["--score", text]}
    config = workspace.config("untrained")
    line = refused("--model", config, *modes[mode])
    assert f"{config}: model_path = {workspace.root / 'untrained'}: there is no checkpoint; train first" in line
    assert not (workspace.root / "untrained").exists()


def test_masked_models_do_not_generate(refused: Callable[..., str], workspace: Workspace, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("import os")
    config = workspace.config("masks", mlm_training=True, mlm_mask_id=3)
    for mode in (["--predict", "--prompt", text], ["--score", text]):
        line = refused("--model", config, *mode)
        assert f"{config}: mlm_training = true: mlm_training models fill masks from both sides; they do not" in line


def test_a_checkpoint_of_another_shape_names_the_variable(
    refused: Callable[..., str], copy: Path, tmp_path: Path
) -> None:
    config = change(copy, tmp_path / "wider.json", n_embd=64, train_steps=200)
    line = refused("--model", config, "--eval", built=True)
    assert "model.ckpt-120: variable gpt2/" in line and "has shape [" in line and str(config) in line


def test_a_run_does_not_go_on_as_another_model(refused: Callable[..., str], copy: Path, tmp_path: Path) -> None:
    config = change(copy, tmp_path / "wider.json", n_embd=64, train_steps=200)
    line = refused("--model", config)
    assert f"{config}: n_embd = 64, but the run in " in line and "has 32" in line


@pytest.mark.parametrize("layers", [1, 3])
def test_a_checkpoint_of_another_depth_names_the_variable(
    refused: Callable[..., str], copy: Path, tmp_path: Path, layers: int
) -> None:
    config = change(copy, tmp_path / "deeper.json", n_layer=layers, attention_types=[[["global"], layers]])
    line = refused("--model", config, "--eval", built=True)
    assert f"variable gpt2/h{min(layers, 2)}/" in line and f"model.ckpt-{STEPS}: " in line and str(config) in line


def test_a_damaged_checkpoint_is_named(refused: Callable[..., str], copy: Path, tmp_path: Path) -> None:
    data = tmp_path / "run" / f"model.ckpt-{STEPS}.data-00000-of-00001"
    data.write_bytes(data.read_bytes()[:1000])
    assert f"model.ckpt-{STEPS}: " in refused("--model", copy, "--eval", built=True)


def test_eval_without_held_out_data(refused: Callable[..., str], copy: Path, tmp_path: Path) -> None:
    dataset = tmp_path / "dataset_configs" / "tiny.json"
    change(dataset, dataset, eval_path="")
    line = refused("--model", copy, "--eval")
    assert str(dataset) in line and "eval_path" in line


def test_predict_and_score_need_the_tokenizer(refused: Callable[..., str], copy: Path, tmp_path: Path) -> None:
    dataset, text = tmp_path / "dataset_configs" / "tiny.json", tmp_path / "text.txt"
    change(dataset, dataset, tokenizer_path="gone.json")
    text.write_text("import os")
    for flags in (["--predict", "--prompt", text], ["--score", text]):
        message = f"{dataset}: tokenizer_path: {Path.cwd()}/gone.json: no such tokenizer"
        assert message in refused("--model", copy, *flags)


def test_prompts_that_cannot_be_used(
    refused: Callable[..., str], copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    absent, latin = tmp_path / "absent.txt", tmp_path / "latin.txt"
    latin.write_bytes("é".encode("latin-1"))
    assert f"--prompt {absent}: cannot be read (No such" in refused("--model", copy, "--predict", "--prompt", absent)
    assert f"--prompt {latin}: not UTF-8 at byte 0" in refused("--model", copy, "--predict", "--prompt", latin)


def test_an_empty_prompt_begins_from_the_end_of_text(
    trained: Trained, run: Run, copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty.txt").write_bytes(b"")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"")))
    found = {
        run("--model", copy, "--predict", *flags, "--seed", 3, "--max_new_tokens", 5)[:2]
        for flags in (("--prompt", tmp_path / "empty.txt"), ("--prompt", "-"), ("--text", ""))
    }
    [(status, text)] = found
    assert status == 0 and len(text) > 1


def test_a_text_on_the_command_line_is_a_prompt(trained: Trained, run: Run, copy: Path, tmp_path: Path) -> None:
    (tmp_path / "prompt.txt").write_text("import os")
    flags = ("--model", copy, "--predict", "--seed", 3, "--max_new_tokens", 5)
    assert run(*flags, "--text", "import os")[:2] == run(*flags, "--prompt", tmp_path / "prompt.txt")[:2]


@pytest.mark.parametrize("name", ["run", "run/model.ckpt-40"])
def test_the_model_may_be_a_run_or_a_checkpoint_of_it(
    trained: Trained, run: Run, copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    copy.unlink()
    status, out, err = run("--model", name, "--eval")
    assert status == 0 and printed(out)["step"] == (40 if "40" in name else 120), err
    status, out, _ = run("--model", name, "--predict", "--text", "import")
    assert status == 0 and out.startswith("import")


def test_training_does_not_continue_from_an_older_checkpoint(refused: Callable[..., str], copy: Path) -> None:
    line = refused("--model", copy.parent / "run" / "model.ckpt-40")
    assert "training continues a run from its newest checkpoint; name the run's directory" in line


def test_scores_are_a_table_on_a_terminal(trained: Trained, tmp_path: Path) -> None:
    (tmp_path / "two.jsonl").write_text('{"text": "import os"}\n{"text": "def f(x):"}\n')
    flags = ["--model", str(trained.config), "--score", str(tmp_path / "two.jsonl")]
    shown = on_a_terminal(trained.workspace, *flags)
    assert re.search(r"document +tokens +nll +perplexity +bits per byte\r\n", shown), shown
    assert re.search(r"\n +all +\d+ +[\d.]+ +[\d.,]+ +[\d.]+\r\n", shown), shown
    lines = [line for line in on_a_terminal(trained.workspace, *flags, "--json").splitlines() if "logprobs" in line]
    assert [json.loads(line)["bytes"] for line in lines] == [9, 9]


def on_a_terminal(workspace: Workspace, *flags: str) -> str:
    """What main.py shows where standard output is a terminal."""
    ours, theirs = os.openpty()
    with workspace.start(*flags, stdout=theirs) as process:
        os.close(theirs)
        shown = b""
        while True:
            try:
                part = os.read(ours, 65536)
            except OSError:  # Linux's end of a terminal
                break
            if not part:
                break
            shown += part
        assert process.wait(120) == 0
    os.close(ours)
    return shown.decode()


def test_documents_that_cannot_be_scored(refused: Callable[..., str], copy: Path, tmp_path: Path) -> None:
    absent, table, lines = tmp_path / "absent.txt", tmp_path / "table.csv", tmp_path / "lines.jsonl"
    table.write_text("a,b")
    lines.write_text('{"text": "fine"}\n{"words": "not fine"}\n')
    assert f"{absent}: cannot be read" in refused("--model", copy, "--score", absent)
    assert f"--score {table}: give a .txt file" in refused("--model", copy, "--score", table)
    assert f"{lines}: line 2" in refused("--model", copy, "--score", lines)


# Modes


def test_training_again_when_finished_does_nothing(trained: Trained, run: Run) -> None:
    before = {path: path.stat().st_mtime_ns for path in trained.directory.rglob("*")}
    status, out, err = run("--model", trained.config, "--steps_per_checkpoint", 40)
    assert (status, out) == (0, "")
    assert f"model.ckpt-{STEPS} is at step 120 of 120: nothing to train" in err
    assert {path: path.stat().st_mtime_ns for path in trained.directory.rglob("*")} == before


def test_new_asks_before_it_deletes(
    refused: Callable[..., str], run: Run, copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = refused("--model", copy, "--new")
    assert "--new would delete 3 checkpoints (up to step 120)" in line and "add --yes" in line
    terminal = io.StringIO("no\n")
    terminal.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stdin", terminal)
    status, _, err = run("--model", copy, "--new")
    assert status == 1 and "[y/N]" in err and "nothing deleted" in err
    assert checkpoints.steps(str(tmp_path / "run")) == [40, 80, 120]


def test_new_deletes_nothing_before_everything_else_is_known_to_work(
    refused: Callable[..., str], copy: Path, tmp_path: Path
) -> None:
    dataset = tmp_path / "dataset_configs" / "tiny.json"
    change(dataset, dataset, path="nowhere")
    assert "matches no file" in refused("--model", copy, "--new", "--yes")
    assert checkpoints.steps(str(tmp_path / "run")) == [40, 80, 120]


def test_new_starts_at_step_0(trained: Trained, run: Run, copy: Path, tmp_path: Path) -> None:
    shorter = change(copy, tmp_path / "shorter.json", train_steps=3, eval_steps=0, predict_steps=0)
    status, out, err = run("--model", shorter, "--new", "--yes")
    assert (status, out) == (0, "") and "training steps 0 to 3, new run" in err
    assert checkpoints.steps(str(tmp_path / "run")) == [3]
    assert [row["step"] for row in rows(tmp_path / "run" / "metrics.jsonl")] == [3]
    assert not (tmp_path / "run" / "eval.jsonl").exists()


def test_two_devices_train_and_one_evaluates(workspace: Workspace, run: Run) -> None:
    config = workspace.config("mesh", mesh_shape="all:2", layout="batch:all", train_steps=3, **ONE_LAYER)
    done = workspace.run("--model", config, "--gpu_ids", "device:CPU:0", "device:CPU:1")
    assert done.returncode == 0, done.stderr
    assert "devices device:CPU:0, device:CPU:1; mesh all:2; layout batch:all" in done.stderr
    status, out, err = run("--model", config, "--eval", "--gpu_ids", "device:CPU:0")
    assert status == 0 and "fitted to one (/device:CPU:0)" in err
    assert printed(out)["step"] == 3


def test_eval_prints_a_table_and_keeps_a_row(trained: Trained, run: Run, copy: Path, tmp_path: Path) -> None:
    status, out, err = run("--model", copy, "--eval")
    assert status == 0 and "restored " in err
    written = rows(tmp_path / "run" / "eval.jsonl")
    assert len(written) == 4 and written[-1] == written[-2]  # what training found after its last checkpoint
    shown = {name: value for name, value in written[-1].items() if isinstance(value, (int, float))}
    assert printed(out) == pytest.approx({name: x for name, x in shown.items() if "stderr" not in name}, rel=1e-5)
    assert f"{shown['nll_stderr']:,.6g}" in out.splitlines()[1]


def test_predict_continues_a_file_or_standard_input(
    trained: Trained, run: Run, copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = "import os\r\n\ndef ü"
    (tmp_path / "prompt.txt").write_bytes(prompt.encode())
    status, out, _ = run("--model", copy, "--predict", "--prompt", tmp_path / "prompt.txt", "--sacred_id", "id7")
    assert status == 0 and out.startswith(prompt) and len(out) > len(prompt) + 1
    kept = tmp_path / "run" / "predictions" / "id7_prompt_step_120.txt"
    assert kept.read_bytes().decode() == out
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(prompt.encode())))
    assert run("--model", copy, "--predict", "--prompt", "-")[:2] == (0, out)


def test_score_prints_one_json_line_a_document(trained: Trained, tmp_path: Path) -> None:
    # In a process of its own: nothing but results may be on standard output, from TensorFlow's C++ either.
    path = tmp_path / "documents.jsonl"
    texts = ["import os\n", "", "é", "def test(self):\n    return None\n" * 20]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    done = trained.workspace.run("--model", trained.config, "--score", path)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    encoder = load_encoder(str(trained.workspace.tokenizer))
    assert [list(row) for row in found] == [["tokens", "logprobs", "sum", "bytes"]] * 4
    for text, row in zip(texts, found, strict=True):
        assert row["tokens"] == encoder.encode(text)
        assert row["bytes"] == len(text.encode())
        assert len(row["logprobs"]) == len(row["tokens"])
        assert row["logprobs"][:1] == [None] * bool(text)
        assert all(value < 0 for value in row["logprobs"][1:])
        assert row["sum"] == pytest.approx(sum(row["logprobs"][1:]))
    assert len(found[3]["tokens"]) > 3 * N_CTX


def test_a_result_that_cannot_be_kept_is_a_warning(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with logged() as messages:
        keep(JsonLines(str(tmp_path / "file" / "eval.jsonl")).append, {"step": 1})
    assert messages[0].startswith("not kept in model_path: ") and "file" in messages[0]


def test_check_dataset_reports_and_exits_1_when_something_does_not_fit(run: Run, workspace: Workspace) -> None:
    status, out, _ = run("--model", workspace.config("checked"), "--check_dataset")
    assert status == 0 and out.endswith("the data fits the model\n") and "n_vocab of the model is 320" in out
    workspace.dataset("misfit", random_documents(1, [50, 5], N_VOCAB))
    status, out, err = run("--model", with_dataset(workspace, "misfit", [2]), "--check_dataset")
    assert status == 1 and "PROBLEM: " in out and "set stitch to 7" in out and "error" not in err


def test_check_dataset_makes_the_checks_of_training(run: Run, workspace: Workspace) -> None:
    status, out, err = run("--model", workspace.config("few", eval_steps=1000), "--check_dataset")
    assert status == 0 and "eval_steps = 1000 asks for" in err and "windows of held-out text, and there are" in err
    tasks = workspace.config("tasks", eval_tasks=["lambada"])
    status, out, err = run("--model", tasks, "--check_dataset")
    assert status == 1 and "PROBLEM: " in out and "lambada" in out and "error" not in err
