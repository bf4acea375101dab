"""create_tfrecords.py on Apache Beam's local runners writes the very files that it writes by itself."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from gpt_mesh.data.create_tfrecords import main

ROOT = Path(__file__).resolve().parents[2]
PYTHON = ROOT / os.environ.get("BEAM_VENV", ".venv-beam") / "bin" / "python"


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Texts of all lengths, some of them twice in one file or in two, and enough for several tasks of a file."""
    folder = tmp_path_factory.mktemp("corpus")
    draw = random.Random(1)
    texts = [" ".join(draw.choices(["alpha", "beta", "gamma"], k=draw.randint(1, 4000))) for _ in range(60)]
    files = [[*texts[:50], "", "short", *texts[:5]], ["", *texts[45:], "short", texts[-1]], [], ["one more"]]
    for number, documents in enumerate(files):
        lines = [json.dumps({"text": text}) + "\n" for text in documents]
        (folder / f"{number}.jsonl").write_text("".join(lines))
    (folder / "4.txt").write_text("a file\n" * 200)
    return folder


def on_beam(*flags: object, script: Sequence[str] = ("data/create_tfrecords.py",)) -> subprocess.CompletedProcess[str]:
    if not PYTHON.exists():
        pytest.fail(f"{PYTHON}: not there; `make beam-env` makes that environment", pytrace=False)
    command = [str(PYTHON), *script, *map(str, flags)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def account(out: str) -> list[str]:
    return [line for line in out.splitlines() if "  " in line]


@pytest.fixture(scope="module")
def job_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Beam's own job server in another process: job_endpoint."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    if not PYTHON.exists():
        pytest.fail(f"{PYTHON}: not there; `make beam-env` makes that environment", pytrace=False)
    module = "apache_beam.runners.portability.local_job_service_main"
    with open(tmp_path_factory.mktemp("server") / "log", "wb") as log:
        command = [str(PYTHON), "-m", module, "--job_port", str(port)]
        with subprocess.Popen(command, stdout=log, stderr=log) as server:
            try:
                for _ in range(300):
                    with socket.socket() as probe:
                        if not probe.connect_ex(("localhost", port)):
                            break
                    time.sleep(0.1)
                yield f"localhost:{port}"
            finally:
                server.terminate()


SETTINGS = {
    "documents": [],
    "held out, each once": ["--eval_fraction", 0.3, "--deduplicate", "--minimum_size", 3],
    "chunks": ["--mode", "chunks", "--chunk_size", 129, "--eval_fraction", 0.3],
    "files of one chunk": ["--mode", "chunks", "--chunk_size", 2049, "--records_per_file", 1, "--separator", "[1, 0]"],
}


@pytest.mark.beam
@pytest.mark.parametrize("runner", ["DirectRunner", "PortableRunner"])
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_same_files(
    runner: str,
    settings: list[object],
    corpus: Path,
    tokenizer_path: str,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
) -> None:
    """Every file, and the manifest with its account, is the same, byte for byte."""
    flags = ["--input_dir", corpus, "--name", "x", "--encoder_path", tokenizer_path, "--records_per_file", 7, *settings]
    how = ["--runner", runner]
    if runner == "PortableRunner":
        how += ["--runner_arg", f"job_endpoint={request.getfixturevalue('job_server')}"]
        how += ["--runner_arg", "environment_type=LOOPBACK"]
    done = on_beam(*flags, *how, "--output_dir", tmp_path / "beam")
    assert done.returncode == 0, done.stderr
    assert main([str(flag) for flag in (*flags, "--processes", 1, "--output_dir", tmp_path / "here")]) == 0
    here = contents(tmp_path / "here")
    assert len(here) > 5
    assert contents(tmp_path / "beam") == here
    assert account(done.stdout) == account(capfd.readouterr().out)


@pytest.mark.beam
def test_bad_text_is_one_line_and_nothing_stays(corpus: Path, tokenizer_path: str, tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "0.jsonl").write_bytes((corpus / "0.jsonl").read_bytes())
    (tmp_path / "text" / "1.jsonl").write_bytes(b'{"text": "\xff"}\n')
    flags = ["--input_dir", tmp_path / "text", "--name", "x", "--encoder_path", tokenizer_path]
    done = on_beam(*flags, "--runner", "DirectRunner", "--output_dir", tmp_path / "out")
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {tmp_path / 'text' / '1.jsonl'}: line 1: ")
    assert done.stderr.count("\n") == 1
    assert contents(tmp_path / "out") == {}


FAILS_AT_THE_END = """
import os, sys
from gpt_mesh.data import beam
from gpt_mesh.data.create_tfrecords import main
from gpt_mesh.errors import InputError

def fail(_, folder, *rest):
    raise InputError(f"{len([name for name in os.listdir(folder) if name.endswith('.tfrecords')])} files were there")

beam._save = fail
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.beam
def test_a_job_that_fails_late_takes_its_files_away(corpus: Path, tokenizer_path: str, tmp_path: Path) -> None:
    flags = ["--input_dir", corpus, "--name", "x", "--encoder_path", tokenizer_path, "--records_per_file", 40]
    how = ["--runner", "DirectRunner", "--output_dir", tmp_path / "out"]
    done = on_beam(*flags, *how, script=["-c", FAILS_AT_THE_END])
    assert (done.returncode, done.stderr.splitlines()[-1]) == (1, "error: 2 files were there")
    assert contents(tmp_path / "out") == {}


@pytest.mark.beam
def test_replaces_an_older_dataset_and_what_killed_workers_left(
    corpus: Path, tokenizer_path: str, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    flags = ["--input_dir", corpus, "--name", "x", "--encoder_path", tokenizer_path, "--output_dir", out]
    assert main([*map(str, flags), "--processes", "1", "--records_per_file", "3"]) == 0
    (out / ".x_1234567890.partial").write_bytes(b"half a file")
    done = on_beam(*flags, "--runner", "DirectRunner", "--overwrite")
    assert done.returncode == 0, done.stderr
    assert len(contents(out)) == 2  # one file of up to 10,000 records, and the manifest


@pytest.mark.beam
def test_unknown_runner(corpus: Path, tokenizer_path: str, tmp_path: Path) -> None:
    flags = ["--input_dir", corpus, "--name", "x", "--encoder_path", tokenizer_path, "--output_dir", tmp_path / "out"]
    done = on_beam(*flags, "--runner", "Runer")
    assert done.returncode == 1
    assert done.stderr.startswith("error: --runner Runer: ") and done.stderr.count("\n") == 1


# What needs no Beam


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--runner", "DirectRunner"], ["--runner DirectRunner", "pip install apache-beam", "make beam-env"]),
        (["--runner", "DirectRunner", "--resume"], ["--resume: not with --runner", "--overwrite"]),
        (["--runner_arg", "region=x"], ["--runner_arg region=x: goes with --runner"]),
    ],
)
def test_refused(
    flags: list[str],
    words: list[str],
    corpus: Path,
    tokenizer_path: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "apache_beam" else find_spec(name))
    where = ["--input_dir", str(corpus), "--output_dir", str(tmp_path / "out"), "--name", "x"]
    assert main([*where, "--encoder_path", tokenizer_path, *flags]) == 1
    line = capsys.readouterr().err
    assert line.startswith("error: ") and line.count("\n") == 1
    assert all(word in line for word in words)
    assert not (tmp_path / "out").exists()
