"""Training a tokenizer."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.encoders import Encoder, load_encoder
from data.sources import file_sources
from data.train_tokenizer import main, save, train_tokenizer
from errors import InputError

ROOT = Path(__file__).resolve().parents[2]


@given(st.text())
def test_any_text_round_trips(encoder: Encoder, text: str) -> None:
    assert encoder.decode(encoder.encode(text)) == text
    assert encoder.decode(encoder.encode_documents([text])[0]) == text


def test_every_byte_has_a_token(tmp_path: Path) -> None:
    (tmp_path / "tiny.txt").write_text("aaaa")
    tokenizer = train_tokenizer(file_sources([str(tmp_path / "tiny.txt")]), 1000)
    assert tokenizer.get_vocab_size() >= 258
    assert tokenizer.decode(tokenizer.encode("\N{SNOWMAN} ünseen\0\x7f").ids) == "\N{SNOWMAN} ünseen\0\x7f"


def test_vocabulary(encoder: Encoder) -> None:
    assert encoder.n_vocab == 1000
    assert (encoder.eos_id, encoder.padding_id) == (0, 1)


def test_no_space_is_put_in_front(encoder: Encoder) -> None:
    assert encoder.encode("import")[0] != encoder.encode(" import")[0]


def test_training_is_deterministic(sources: list[str], encoder: Encoder) -> None:
    again = Encoder(train_tokenizer(file_sources(sources), 1000), "again")
    assert again.fingerprint == encoder.fingerprint
    assert Encoder(train_tokenizer(file_sources(sources), 999), "other").fingerprint != encoder.fingerprint


def test_all_of_every_file_counts(tmp_path: Path) -> None:
    """A word that only the end of one file among many has becomes one token."""
    for number in range(50):
        (tmp_path / f"{number:02}.txt").write_text(f"nothing here {number}")
    (tmp_path / "49.txt").write_text("y " * 600_000 + " quetzalcoatlus" * 10)
    files = [str(path) for path in sorted(tmp_path.iterdir())]
    assert train_tokenizer(file_sources(files), 400).token_to_id("Ġquetzalcoatlus") is not None


@pytest.mark.parametrize("vocab_size", [0, -1, 257])
def test_vocabulary_too_small(sources: list[str], vocab_size: int) -> None:
    with pytest.raises(InputError, match=rf"--vocab_size {vocab_size} is too small.*258"):
        train_tokenizer(file_sources(sources), vocab_size)


def test_bytes_alone(sources: list[str]) -> None:
    assert train_tokenizer(file_sources(sources[:1]), 258).get_vocab_size() == 258


def test_output_folder_is_left_as_it_is(sources: list[str], tmp_path: Path) -> None:
    kept = tmp_path / "kept.txt"
    kept.write_text("mine")
    save(train_tokenizer(file_sources(sources[:1]), 300), str(tmp_path))
    path = save(train_tokenizer(file_sources(sources[:1]), 310), str(tmp_path))
    assert kept.read_text() == "mine"
    assert load_encoder(path).n_vocab == 310
    assert {item.name for item in tmp_path.iterdir()} == {"kept.txt", "byte-level-bpe.tokenizer.json"}


def test_command(tmp_path: Path) -> None:
    """From another folder, on a folder of .py and other files."""
    (tmp_path / "code" / "deep").mkdir(parents=True)
    (tmp_path / "code" / "deep" / "a.py").write_text("snowman = 'snowman'\n" * 100)
    (tmp_path / "code" / "b.bin").write_bytes(b"\xff")
    command = [sys.executable, f"{ROOT}/data/train_tokenizer.py", "--base_dir", "code", "--file_type", "py"]
    command += ["--vocab_size", "300", "--output_dir", "out/put"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "tokenizer saved at out/put/byte-level-bpe.tokenizer.json"
    assert "no more pairs" in done.stdout, "300 tokens cannot be had from it, and that is said"
    assert len(load_encoder(str(tmp_path / "out/put")).encode("snowman")) == 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--base_dir", "{0}/none"], "none: no .txt, .jsonl, .gz"),
        (["--base_dir", "{0}", "--file_type", "py"], "no .py file there"),
        (["--base_dir", "{0}", "--vocab_size", "9"], "--vocab_size 9 is too small"),
        (["--base_dir", "{0}/bad.jsonl"], "bad.jsonl: line 2: is not JSON"),
        (["--base_dir", "{0}/a.txt", "--output_dir", "{0}/a.txt/x"], "a.txt/x: cannot be made: Not a directory"),
    ],
)
def test_bad_input_is_one_line(
    flags: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "bad.jsonl").write_text(json.dumps({"text": "fine"}) + "\nnot json\n")
    assert main(["--output_dir", str(tmp_path / "out"), *(flag.format(tmp_path) for flag in flags)]) == 1
    line = capsys.readouterr().err
    assert line.startswith("error: ")
    assert line.count("\n") == 1
    assert message in line


def test_wrong_flags_exit_with_2() -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--vocab_size", "many"])
    assert caught.value.code == 2
