"""Configs laid over each other, and the forms of their files."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gpt_mesh.config import Config, file_of, load_config, origins_line, parse_settings, replace, with_settings
from gpt_mesh.config.files import parse_json, parse_yaml
from gpt_mesh.config.source import Source
from gpt_mesh.errors import InputError
from tests.support.runs import REPOSITORY, Workspace

TOY = {
    "n_layer": 2, "n_head": 4, "n_embd": 32, "n_ctx": 16, "n_vocab": 100, "lr": 1e-3, "train_batch_size": 8,
    "train_steps": 50, "datasets": ["toy"], "model_path": "runs/toy",
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with the config `toy` and its dataset config."""
    (tmp_path / "dataset_configs").mkdir()
    (tmp_path / "dataset_configs" / "toy.json").write_text(json.dumps({"path": "t*", "n_vocab": 90}))
    write(tmp_path / "toy.json", TOY)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(path: Path, values: Any) -> str:
    path.parent.mkdir(exist_ok=True)
    path.write_text(values if isinstance(values, str) else json.dumps(values))
    return str(path)


def test_a_base_gives_the_keys_that_a_file_lacks(folder: Path) -> None:
    write(folder / "wide.json", {"base": "toy.json", "n_embd": 64})
    write(folder / "slow.json", {"base": "wide", "lr": 1e-4, "generation": {"top_p": 0.5}})
    config = load_config("slow.json")
    assert (config.model.n_embd, config.optimizer.lr, config.training.train_steps) == (64, 1e-4, 50)
    assert config.source == "slow.json" or config.source.endswith("slow.json")
    line = origins_line(config.source)
    assert line is not None and line.replace(f"{folder}/", "") == (
        "n_embd from wide.json; lr, generation from slow.json; all other keys from toy.json"
    )
    assert Path(file_of(config.source)).name == "slow.json"


def test_a_base_may_be_a_shipped_config(folder: Path) -> None:
    path = write(folder / "mine.json", {"base": "laptop", "datasets": ["toy"], "n_vocab": 50304})
    assert load_config(path).model.n_embd == load_config("laptop").model.n_embd


def test_a_config_that_hides_a_shipped_one_is_not_its_base(folder: Path) -> None:
    write(folder / "configs" / "laptop.json", {"base": "laptop", "lr": 0.5, "datasets": ["toy"]})
    write(folder / "configs" / "dataset_configs" / "toy.json", {"path": "t*", "n_vocab": 90})
    with pytest.raises(InputError, match="the config would be its own base"):
        load_config("laptop")


@pytest.mark.parametrize(
    ("base", "words"),
    [
        ("toy2", r'base = "toy2": .*no such model config'),
        (3, "base = 3: must be the name or the path of another config"),
        ("", "must be the name or the path"),
        ("self.json", "self.json: base = \"self.json\": .*its own base .*self.json → .*self.json"),
        ("other.json", "its own base .*self.json → .*other.json → .*self.json"),
    ],
)
def test_bases_that_cannot_work(folder: Path, base: Any, words: str) -> None:
    write(folder / "self.json", {"base": base})
    write(folder / "other.json", {"base": "self"})
    with pytest.raises(InputError, match=words) as caught:
        load_config("self.json")
    assert "\n" not in str(caught.value)


def test_several_files_are_laid_left_to_right(folder: Path) -> None:
    write(folder / "data" / "short.json", {"train_steps": 5, "lr": 0.1})
    write(folder / "fast.yml", "lr: 1e-2  # a tenth\nactivation_fn: relu\n")
    config = load_config("toy.json", "data/short.json", "fast.yml", settings={"lr": 0.3, "generation.top_k": 4})
    assert (config.optimizer.lr, config.training.train_steps, config.training.generation.top_k) == (0.3, 5, 4)
    assert config.model.activation_function == "relu"
    assert config.source.replace(f"{folder}/", "") == "toy.json + data/short.json + fast.yml + --set"
    line = origins_line(config.source)
    assert line is not None
    assert line.replace(f"{folder}/", "").startswith(
        "train_steps from data/short.json; activation_function from fast.yml; lr, generation from --set; "
    )


def test_refusals_name_the_layer_of_the_key(folder: Path) -> None:
    write(folder / "bad.json", {"train_steps": 0})
    with pytest.raises(InputError, match=r"/bad\.json: train_steps = 0: must be >= 1$"):
        load_config("toy.json", "bad.json")
    with pytest.raises(InputError, match=r"^--set: lr = \"fast\": must be a number$"):
        load_config("toy.json", settings={"lr": "fast"})
    with pytest.raises(InputError, match=r"^--set: lrr = 1: unknown key; did you mean lr\?$"):
        load_config("toy.json", settings={"lrr": 1})
    with pytest.raises(InputError, match=r"^--set: generation = .*unknown key \"topp\" in it; did you mean top_p\?"):
        load_config("toy.json", settings={"generation.topp": 1})


def test_settings_above_a_config_that_was_read(folder: Path) -> None:
    config = load_config("toy.json")
    assert with_settings(config, {}) is config
    longer = with_settings(config, {"train_steps": 70})
    assert longer.training.train_steps == longer.optimizer.lr_decay_end == 70
    assert origins_line(longer.source) == f"train_steps from --set; all other keys from {folder}/toy.json"
    assert replace(longer, lr=1.0).optimizer.lr == 1.0
    with pytest.raises(InputError, match=r"^--set: lr = -1: must be > 0"):
        with_settings(config, {"lr": -1})


def test_settings_are_json_or_text() -> None:
    given = ["lr=1e-3", "attention_types=[[[\"global\"],4]]", "precision=bfloat16", "layout=batch:x", "x = null"]
    assert parse_settings(given, "--set") == {
        "lr": 1e-3, "attention_types": [[["global"], 4]], "precision": "bfloat16", "layout": "batch:x", "x": None,
    }  # fmt: skip
    for wrong, words in [
        (["lr"], "--set lr: must be KEY=VALUE"),
        (["=3"], "must be KEY=VALUE"),
        (["a=1", "a=2"], "--set: a: given twice"),
        (["a=[1"], "--set a: not valid JSON at line 1"),
    ]:
        with pytest.raises(InputError, match=words):
            parse_settings(wrong, "--set")


def test_a_source_survives_pickling() -> None:
    import pickle

    source = pickle.loads(pickle.dumps(Source("a + b", {"x": "a"}, "b")))
    assert source == "a + b" and source.of("x") == "a" and source.of("y") == "a + b" and source.file == "b"


def test_json_may_have_comments_and_trailing_commas() -> None:
    text = '{\n  // one "line"\n  "a": "x // y", /* two\n lines */ "b": [1, 2,],\n}'
    assert parse_json(text.encode(), "f") == {"a": "x // y", "b": [1, 2]}
    with pytest.raises(InputError, match="line 3, column 9"):
        parse_json(b'{ // c\n /* \n */ "a" 1}', "f")
    with pytest.raises(InputError, match="not valid JSON"):
        parse_json(b"[,]", "f")


def test_yaml_has_the_types_of_json() -> None:
    text = 'a: 1e-3\nb: 010\nc: [1, -2, 3.5, .5, true, ~, no, 2020-01-01]\nd: {"e": "1", f: x y, }\ng:\n- null\n'
    assert parse_yaml(text.encode(), "f") == {
        "a": 1e-3, "b": 10.0, "c": [1, -2, 3.5, 0.5, True, None, "no", "2020-01-01"], "d": {"e": "1", "f": "x y"},
        "g": [None],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"a: [1", "f: not valid YAML at line"),
        (b"a: 1\na: 2\n", "a: given twice"),
        (b"a: \xff", "not UTF-8 text"),
        (b"a: !!python/object:os.system x", "not valid YAML at line 1"),
        (b"a: " + b"[" * 5000 + b"]" * 5000, "nested too deeply"),
        (b"a: " + b"1" * 5000, "f: "),
    ],
)
def test_yaml_that_cannot_be_read(text: bytes, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        parse_yaml(text, "f")
    assert "\n" not in str(caught.value)


def test_the_command_line_sets_keys_of_every_mode(workspace: Workspace) -> None:
    config = workspace.config("set_keys", train_steps=50, n_layer=1, attention_types=[[["global"], 1]])
    over = config.with_name("over.yml")
    over.write_text("train_steps: 3\nlr: 1e-4\n")
    trained = workspace.run("--model", config, over, "--set", "train_steps=2", "--set", "iterations=1")
    assert trained.returncode == 0, trained.stderr
    assert "lr from" in trained.stderr and "train_steps, iterations from --set; all other keys from" in trained.stderr
    recorded: Config = load_config(str(workspace.root / "set_keys" / "config.json"))
    assert (recorded.training.train_steps, recorded.training.iterations, recorded.optimizer.lr) == (2, 1, 1e-4)
    run = workspace.root / "set_keys"
    checked = workspace.run("--model", run, "--check_dataset", "--set", "n_vocab=7")
    assert checked.returncode == 1 and "--set: n_vocab = 7: " in checked.stderr
    assert checked.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("flags", "status", "words"),
    [
        (["--model", "laptop", "--set", "lr"], 1, "error: --set lr: must be KEY=VALUE"),
        (["--model", "laptop", "--set", "lr=x"], 1, 'error: --set: lr = "x": must be a number'),
        (["--set", "lr=1", "--check_dataset"], 2, "--set goes with --model only"),
        (["--model", "laptop", "runs/none"], 1, "error: --model runs/none: a run or a checkpoint stands alone"),
    ],
)
def test_flags_that_cannot_work(flags: list[str], status: int, words: str) -> None:
    command = [sys.executable, "main.py", *flags]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == status and words in done.stderr
