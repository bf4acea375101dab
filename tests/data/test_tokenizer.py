"""Training a tokenizer."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from itertools import pairwise
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from gpt_mesh.data import documents
from gpt_mesh.data.encoders import Encoder, load_encoder
from gpt_mesh.data.files import find_files
from gpt_mesh.data.sources import file_sources
from gpt_mesh.data.train_tokenizer import Sample, main, save, train_tokenizer
from gpt_mesh.errors import InputError

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
        (["--base_dir", "{0}/none"], "none: no .txt, .jsonl, .ndjson, .gz"),
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


# Large corpora


def words(first: int, count: int) -> str:
    return " ".join(f"w{number}" for number in range(first, first + count))


@pytest.mark.parametrize("files", [1, 7, 400])
@pytest.mark.parametrize("compressed", [False, True])
def test_a_sample_is_bounded_and_spread_over_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: int, compressed: bool
) -> None:
    monkeypatch.setattr(documents, "_COMPRESSED_BYTES", 1000)
    text = words(0, 500_000)
    for number in range(files):
        part = text[len(text) * number // files : len(text) * (number + 1) // files].encode()
        path = tmp_path / f"{number:03}.txt{'.zst' if compressed else ''}"
        path.write_bytes(zstandard.ZstdCompressor().compress(part) if compressed else part)
    sources = file_sources(find_files(str(tmp_path)))
    sample = Sample(sources, 800_000)
    used = list(sample.texts())
    assert sample.read == len(text)
    assert sum(map(len, used)) == sample.used
    assert 500_000 < sample.used < 800_000 + 70_000
    assert list(Sample(sources, 800_000).texts()) == used
    places = [text.index(piece) / len(text) for piece in used]
    assert max(b - a for a, b in pairwise([*places, 1.0])) < 0.25, "no stretch is left out"
    assert f"used {sample.used:,} of {sample.read:,} bytes" in sample.describe()


def test_a_corpus_below_the_limit_is_used_whole(sources: list[str], tmp_path: Path) -> None:
    files = file_sources(sources)
    size = sum(source.size for source in files)
    sample = Sample(files, size)
    assert sum(len(text.encode()) for text in sample.texts()) == size
    assert sample.describe() == f"used all {size:,} bytes of text of {len(files)} sources"
    packed = tmp_path / "packed.zip"
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sources:
            archive.write(path)
    sample = Sample(file_sources([str(packed)]), round(size * 1.2))
    assert sum(len(text.encode()) for text in sample.texts()) == size


def test_the_flag_sets_the_sample(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.txt").write_text(words(0, 50_000))
    flags = ["--base_dir", str(tmp_path / "a.txt"), "--output_dir", str(tmp_path), "--vocab_size", "300"]
    assert main([*flags, "--sample_mb", "0.1"]) == 0
    assert "of 338,889 bytes of text (3" in capsys.readouterr().out
    assert main(flags) == 0
    assert "used all 338,889 bytes" in capsys.readouterr().out


# Normalisation


def test_nfkc_and_prefix_space_are_off_unless_asked_for(sources: list[str]) -> None:
    def trained(**options: bool) -> Encoder:
        return Encoder(train_tokenizer(file_sources(sources[:2]), 400, **options), "trained")

    text = "\N{LATIN SMALL LIGATURE FI}x\N{SUPERSCRIPT TWO}"
    plain, nfkc, spaced = trained(), trained(nfkc=True), trained(prefix_space=True)
    assert plain.decode(plain.encode(text)) == text
    assert nfkc.decode(nfkc.encode(text)) == "fix2"
    assert spaced.encode("import") == spaced.encode(" import") != plain.encode("import")
    assert plain.splittable
    assert not nfkc.splittable
    assert not spaced.splittable


def test_a_corpus_without_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.txt").touch()
    assert main(["--base_dir", str(tmp_path), "--output_dir", str(tmp_path)]) == 1
    assert "a.txt: holds no text" in capsys.readouterr().err
