"""The commands and the example of the README, exactly as printed, on a folder of text."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from gpt_mesh.config import shipped_configs

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    """Fenced blocks of that language, in order, indentation taken off."""
    fenced = re.findall(r"^( *)```(\w*)\n(.*?)^\1```$", README, re.MULTILINE | re.DOTALL)
    return [re.sub(rf"^{indent}", "", text, flags=re.MULTILINE) for indent, found, text in fenced if found == language]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the program with a folder of text beside it, and a model config that names the data of the guide."""
    copy = tmp_path_factory.mktemp("readme") / "checkout"
    for path in ROOT.glob("*.py"):
        shutil.copy(path, _made(copy) / path.name)
    rooms = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests"}
    for name in ("configs", *rooms):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    library = Path(sysconfig.get_paths()["stdlib"])
    for source in sorted(library.glob("[a-z]*.py"))[:80]:
        shutil.copy(source, _made(copy / "my_text") / f"{source.stem}.txt")
    (copy / "some.txt").write_text((library / "shlex.py").read_text()[:4000])
    return copy


def _made(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    return path


def _model_config(checkout: Path) -> None:
    """The reader's part: `laptop` copied, and the keys set that the guide names. Fewer steps, to save time."""
    entry = json.loads("{" + next(text for text in blocks("json") if "documents_random" in text) + "}")
    dataset = json.loads((checkout / "configs" / "dataset_configs" / "my_text.json").read_text())
    values = json.loads((checkout / "configs" / "laptop.json").read_text())
    values |= {**entry, "n_vocab": dataset["n_vocab"], "model_path": "runs/my_model", "train_steps": 4}
    (checkout / "configs" / "my_model.json").write_text(json.dumps(values))


def test_the_guide_and_the_example(checkout: Path) -> None:
    guide = README[README.index("## Train on your own text") : README.index("## As a library")]
    commands = [text for text in blocks("") if "python3 " in text and text.splitlines()[0] in guide]
    assert len(commands) == 4, commands
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": ""}
    ran = 0
    unedited = [sys.executable, "main.py", "--model", "laptop"]
    done = subprocess.run(unedited, cwd=checkout, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "put NAME into datasets of the model's config" in done.stderr, done.stderr
    for text in [*commands, "python3 main.py --model my_model --check_dataset"]:
        if "main.py" in text and not (checkout / "configs" / "my_model.json").exists():
            _model_config(checkout)
        done = subprocess.run(
            ["bash", "-ec", text], cwd=checkout, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
        ran += 1
    assert ran == 5
    assert "my_text (eval_path: " in done.stdout and "the data fits the model" in done.stdout
    assert "asks for 160 windows of held-out text" not in done.stderr
    rows = (checkout / "runs" / "my_model" / "eval.jsonl").read_text().splitlines()
    assert json.loads(rows[0])["step"] == 4
    _run_in_memory(checkout, environment)
    _, example = blocks("python")
    done = subprocess.run(
        [sys.executable, "-c", example], cwd=checkout, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    n_vocab = json.loads((checkout / "configs" / "my_model.json").read_text())["n_vocab"]
    assert f"(1, 3, {n_vocab})" in done.stdout


def _run_in_memory(checkout: Path, environment: dict[str, str]) -> None:
    """The example that begins with a text, in at most ten lines."""
    example, _ = blocks("python")
    assert len(example.splitlines()) <= 10
    done = subprocess.run(
        [sys.executable, "-c", example], cwd=checkout, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "at step 200, context 64: runs/characters/model.ckpt-200>" in done.stdout


def test_every_file_that_the_readme_names_is_there() -> None:
    names = re.findall(r"\]\(([^)#]+)\)", README)
    missing = [name for name in names if "://" not in name and not (ROOT / name).exists()]
    assert len(names) > 8 and not missing


def test_every_config_is_in_the_table() -> None:
    listed = set(re.findall(r"`([\w-]+)`", README[README.index("## Configs") :]))
    assert {*shipped_configs()} <= listed
