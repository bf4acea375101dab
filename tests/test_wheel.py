"""The wheel in an environment that has nothing else of this project, used from a folder of a user's own.

The folder holds a `data/`, a `models/` and a `config.py`, which must not get in the way. `make test-wheel` runs this.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tarfile
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]
pytestmark = [pytest.mark.wheel, pytest.mark.timeout(1800)]

TINY = {
    "n_layer": 1, "n_embd": 32, "n_head": 2, "n_ctx": 32, "n_vocab": 512, "train_batch_size": 4, "train_steps": 6,
    "eval_batch_size": 4, "eval_steps": 1, "predict_steps": 0, "lr": 1e-3, "datasets": [["mine", 8]],
    "model_path": "runs/tiny",
}  # fmt: skip


class Built(NamedTuple):
    """The two distributions, and the folder that they were built from."""

    source: Path
    wheel: Path
    sdist: Path
    build: list[str]


class Environment(NamedTuple):
    """A virtual environment with the wheel, and the user's folder."""

    bin: Path
    packages: Path
    home: Path
    cache: Path

    def variables(self) -> dict[str, str]:
        dropped = ("PYTHONPATH", "VIRTUAL_ENV", "PYTHONHOME")
        kept = {name: value for name, value in os.environ.items() if name not in dropped}
        return {**kept, "PATH": f"{self.bin}{os.pathsep}{os.environ['PATH']}", "GPT_MESH_CACHE": str(self.cache)}

    def run(self, *command: object, stdin: str = "") -> str:
        """A command in the user's folder, that has to succeed; its standard output."""
        done = subprocess.run(
            [str(self.bin / str(command[0])), *map(str, command[1:])],
            cwd=self.home, env=self.variables(), input=stdin, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout


def checked(*command: object, cwd: Path | None = None) -> None:
    done = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"


def make_environment(folder: Path, *packages: object) -> Path:
    """A new virtual environment with these packages; returns its folder of programs."""
    checked(sys.executable, "-m", "venv", folder)
    pip = (folder / "bin" / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    checked(*pip, *packages)
    return folder / "bin"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    folder = tmp_path_factory.mktemp("distributions")
    source = folder / "source"
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, source / name)
    build = [str(make_environment(folder / "tools", "build>=1.2,<2") / "python"), "-m", "build"]
    checked(*build, "--outdir", folder / "dist", source)  # the wheel from the source distribution
    (wheel,), (sdist,) = (folder / "dist").glob("*.whl"), (folder / "dist").glob("*.tar.gz")
    return Built(source, wheel, sdist, build)


@pytest.fixture(scope="module")
def user(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    folder = tmp_path_factory.mktemp("user")
    programs = make_environment(folder / "environment", "--constraint", ROOT / "requirements.lock", built.wheel)
    home = folder / "home"
    for name in ("data/__init__.py", "models/__init__.py", "config.py", "inputs.py"):
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text("raise AssertionError('a module of the user was imported')\n")
    (home / "texts").mkdir()
    for name in ("argparse", "textwrap", "shlex", "heapq", "random", "tarfile", "shutil", "inspect", "ast", "typing"):
        shutil.copy(Path(sysconfig.get_paths()["stdlib"]) / f"{name}.py", home / "texts" / f"{name}.txt")
    (home / "configs").mkdir()
    (home / "configs" / "tiny.json").write_text(json.dumps(TINY))
    (packages,) = (folder / "environment").glob("lib/python*/site-packages")
    return Environment(programs, packages, home, folder / "cache")


def files_of(folder: Path) -> dict[str, float]:
    """Every file below except Python's own compiled ones, with the time of its last change."""
    paths = (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {str(path.relative_to(folder)): path.stat().st_mtime for path in paths}


def contents(path: Path) -> dict[str, bytes]:
    """The files of a wheel. Its own record lists all of them in no certain order."""
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist() if not name.endswith("/RECORD")}


def test_the_wheel_holds_one_package_and_all_that_it_reads(built: Built) -> None:
    names = set(contents(built.wheel))
    tops = {name.split("/")[0] for name in names}
    assert {name for name in tops if not name.endswith(".dist-info")} == {"gpt_mesh"} and len(tops) == 2
    rooms = {name.split("/")[1] for name in names if name.startswith("gpt_mesh/")}
    assert not rooms & {"tests", "benchmarks", "examples", "docs", "docker"}
    # Whatever the checkout has in a package: sources, configs, C, pages.
    for package in ("", *(path.parent.name for path in ROOT.glob("*/__init__.py")), "configs"):
        if package in ("tests", "benchmarks", "examples"):
            continue
        for path in (ROOT / package).rglob("*") if package else ROOT.glob("*.py"):
            if path.is_file() and "__pycache__" not in path.parts:
                assert f"gpt_mesh/{path.relative_to(ROOT)}" in names


def test_the_source_distribution_builds_the_same_wheel(built: Built, tmp_path: Path) -> None:
    checked(*built.build, "--wheel", "--outdir", tmp_path, built.source)
    (direct,) = tmp_path.glob("*.whl")
    assert contents(direct) == contents(built.wheel)
    with tarfile.open(built.sdist) as archive:
        parts = {name.split("/")[1] for name in archive.getnames() if "/" in name}
    assert not parts & {"tests", "benchmarks", "docker"} and {"LICENSE", "README.md", "pyproject.toml"} <= parts


def test_a_model_from_text_to_server(user: Environment) -> None:
    before = files_of(user.packages / "gpt_mesh")
    user.run(
        "python", "-m", "gpt_mesh.data.train_tokenizer", "--base_dir", "texts", "--output_dir", "tokenizer",
        "--file_type", "txt", "--vocab_size", "512",
    )  # fmt: skip
    user.run(
        "python", "-m", "gpt_mesh.data.create_tfrecords", "--input_dir", "texts", "--name", "mine", "--output_dir",
        "encoded", "--encoder_path", "tokenizer/byte-level-bpe.tokenizer.json", "--eval_fraction", "0.3",
        "--write_dataset_config", "configs/dataset_configs/mine.json",
    )  # fmt: skip
    user.run("gpt-mesh", "--model", "tiny")
    assert (user.home / "runs" / "tiny" / "model.ckpt-6.index").exists()
    assert "nll" in user.run("gpt-mesh", "--model", "tiny", "--eval")
    (user.home / "some.txt").write_text("import os\n")
    scored = json.loads(user.run("gpt-mesh", "--model", "tiny", "--score", "some.txt").splitlines()[-1])
    assert scored["bytes"] == 10
    text = user.run("gpt-mesh", "--model", "tiny", "--predict", "--prompt", "-", "--max_new_tokens", 8, stdin="import")
    assert text.startswith("import")
    code = (
        "import gpt_mesh; model = gpt_mesh.load('tiny'); print(gpt_mesh.__file__, gpt_mesh.__version__);"
        "print(model.generate('import', max_new_tokens=4), gpt_mesh.evaluate('tiny')['nll'])"
    )
    assert str(user.packages) in user.run("python", "-c", code)
    if any(map(shutil.which, ("cc", "gcc", "clang"))):
        assert list((user.cache / "native").iterdir()), "the C sources were not compiled"
    assert "id" in serve(user, "tiny")
    assert files_of(user.packages / "gpt_mesh") == before


def test_shipped_configs_are_found_and_never_written_beside(user: Environment) -> None:
    before = files_of(user.packages / "gpt_mesh")
    flags = ("--model", "gpt3_small_256", "--auto_layout_and_mesh_shape", "--devices", 4, "--apply")
    assert "wrote configs/gpt3_small_256_auto.json" in user.run("gpt-mesh", *flags)
    user.run("python", "-m", "gpt_mesh.run_experiment", "--model", "tiny", "--new", "--yes", "--sacred_dir", "kept")
    assert json.loads((user.home / "kept" / "1" / "run.json").read_text())["status"] == "COMPLETED"
    assert files_of(user.packages / "gpt_mesh") == before


def test_a_checkout_needs_only_its_requirements(user: Environment, built: Built) -> None:
    """Runs last: it removes the installed package."""
    user.run("python", "-m", "pip", "uninstall", "--quiet", "--yes", "gpt-mesh")
    assert "nll" in user.run("python", built.source / "main.py", "--model", "tiny", "--eval")
    encode = ("--input_dir", "texts", "--output_dir", "again", "--name", "mine", "--processes", 2)
    tokenizer = ("--encoder_path", "tokenizer/byte-level-bpe.tokenizer.json")
    user.run("python", built.source / "data" / "create_tfrecords.py", *encode, *tokenizer)
    user.run("python", built.source / "data" / "train_tokenizer.py", "--help")
    user.run("python", built.source / "run_experiment.py", "--model", "tiny", "--eval", "--sacred_dir", "kept")


def serve(user: Environment, model: str) -> Sequence[str]:
    """The keys of an answer of `gpt-mesh --serve`, which ends with status 0 when it is asked to."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [str(user.bin / "gpt-mesh"), "--model", model, "--serve", f"127.0.0.1:{port}"],
        cwd=user.home, env=user.variables(), stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        asked = json.dumps({"prompt": "import os", "max_tokens": 4}).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/completions", asked)
        request.add_header("Content-Type", "application/json")
        for _ in range(120):
            try:
                with urllib.request.urlopen(request, timeout=120) as answer:
                    found: dict[str, object] = json.load(answer)
                break
            except urllib.error.URLError:
                assert server.poll() is None, server.communicate()
                time.sleep(1)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=60) as page:
            assert b"<html" in page.read()
        server.send_signal(signal.SIGTERM)
        server.communicate(timeout=60)
        assert server.returncode == 0
        return list(found)
    finally:
        server.kill()
        server.communicate()
