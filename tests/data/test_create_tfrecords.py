"""Encoding a corpus: what goes in comes out, all of it is accounted for, and nothing is lost or mixed up."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import zstandard
from tokenizers import Tokenizer, pre_tokenizers

from gpt_mesh.config import parse_config
from gpt_mesh.data import encoding
from gpt_mesh.data.cleaning import Cleaning
from gpt_mesh.data.create_tfrecords import main
from gpt_mesh.data.encoders import Encoder
from gpt_mesh.data.encoding import Recipe, encode_pieces
from gpt_mesh.data.reading import Selection, read_corpus
from gpt_mesh.data.sources import file_sources
from gpt_mesh.data.tfrecords import load_index, parse_records, read_records
from gpt_mesh.errors import InputError
from gpt_mesh.storage.lease import lease

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [
    "def first():\n    return 1\n",
    "",
    "x",
    "second " * 30,
    "third <|endoftext|> not the end",
    "ü\N{SNOWMAN}\n" * 20,
]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """DOCUMENTS as .txt, .jsonl and .jsonl.zst, in this order."""
    folder = tmp_path / "corpus"
    (folder / "deep").mkdir(parents=True)
    (folder / "0.txt").write_text(DOCUMENTS[0])
    lines = [json.dumps({"text": text}) + "\n" for text in DOCUMENTS]
    (folder / "1.jsonl").write_text("".join(lines[1:3]))
    (folder / "deep" / "2.jsonl.zst").write_bytes(zstandard.ZstdCompressor().compress("".join(lines[3:]).encode()))
    (folder / "deep" / "notes.md").write_text("not asked for")
    return folder


@pytest.fixture
def command(corpus: Path, tmp_path: Path, tokenizer_path: str) -> Callable[..., int]:
    """Runs main() on the corpus, in this process."""

    def run(*flags: object) -> int:
        folders = ["--input_dir", str(corpus), "--output_dir", str(tmp_path / "out"), "--name", "x"]
        return main([*folders, "--encoder_path", tokenizer_path, "--processes", "1", *map(str, flags)])

    return run


def records(folder: Path, name: str = "x") -> list[list[int]]:
    """Ids of every record, in order of the files; checks that each file is named after its place and its records."""
    paths = sorted(folder.glob(f"{name}_*.tfrecords"), key=lambda path: int(path.stem.split("_")[-2]))
    found = []
    for number, path in enumerate(paths):
        index = load_index(path)
        assert path.name == f"{name}_{number}_{len(index)}.tfrecords"
        values, row_splits = parse_records(read_records(path, index.offsets, index.sizes))
        found += [ids.tolist() for ids in np.split(values, row_splits[1:-1])]
    return found


def error_line(capsys: pytest.CaptureFixture[str]) -> str:
    line = capsys.readouterr().err
    assert line.startswith("error: ")
    assert line.count("\n") == 1
    return line


# Documents and chunks


def test_documents(command: Callable[..., int], tmp_path: Path, encoder: Encoder) -> None:
    assert command() == 0
    found = records(tmp_path / "out")
    assert [encoder.decode(ids) for ids in found] == [text for text in DOCUMENTS if text]
    assert not any({0, 1} & set(ids) for ids in found), "no separator, and none from what a document says"


def test_chunks(command: Callable[..., int], tmp_path: Path, encoder: Encoder) -> None:
    assert command("--mode", "chunks", "--chunk_size", 33) == 0
    stream = [token for text in DOCUMENTS if text for token in (*encoder.encode_documents([text])[0], 0)]
    found = records(tmp_path / "out")
    assert {len(ids) for ids in found} == {33}
    assert [token for ids in found for token in ids] == stream[: len(stream) // 33 * 33]
    assert len(stream) % 33, "or no partial chunk is tested"


def test_separator_of_several_ids(command: Callable[..., int], tmp_path: Path, encoder: Encoder) -> None:
    assert command("--mode", "chunks", "--chunk_size", 20, "--separator", "[1, 0]") == 0
    (first, *_) = records(tmp_path / "out")
    ids = encoder.encode(DOCUMENTS[0])
    assert first[: len(ids) + 2] == [*ids, 1, 0]


def test_chunks_without_separator(command: Callable[..., int], tmp_path: Path, encoder: Encoder) -> None:
    assert command("--mode", "chunks", "--chunk_size", 20, "--separator", "[]") == 0
    text = encoder.decode([token for ids in records(tmp_path / "out") for token in ids])
    assert "".join(DOCUMENTS).startswith(text.rstrip("\ufffd"))


def test_files_of_one_type(command: Callable[..., int], tmp_path: Path, encoder: Encoder) -> None:
    assert command("--file_type", "md") == 0
    assert [encoder.decode(ids) for ids in records(tmp_path / "out")] == ["not asked for"]


def test_records_per_file(command: Callable[..., int], tmp_path: Path) -> None:
    assert command("--records_per_file", 2) == 0
    names = {path.name for path in (tmp_path / "out").iterdir()} - {"x.manifest.json"}
    assert names == {"x_0_2.tfrecords", "x_1_2.tfrecords", "x_2_1.tfrecords"}


def test_account_is_printed(command: Callable[..., int], encoder: Encoder, capsys: pytest.CaptureFixture[str]) -> None:
    lengths = [len(ids) for ids in encoder.encode_documents(DOCUMENTS)]
    short = [length for length in lengths if 0 < length < 15]
    kept = [length for length in lengths if length >= 15]
    assert short
    assert command("--minimum_size", 15, "--mode", "chunks", "--chunk_size", 16) == 0
    rows = [line.split("  ", 1) for line in capsys.readouterr().out.splitlines() if "  " in line]
    table = {
        label + " (tokens)" * (value.endswith("tokens") and "minimum" in label): value.strip() for label, value in rows
    }
    assert {label.strip(): value for label, value in table.items()} == {
        "documents read": "6",
        "- empty": "1",
        "- shorter than --minimum_size 15": str(len(short)),
        "= documents written": str(len(kept)),
        "bytes read": str(sum(len(text.encode()) for text in DOCUMENTS)),
        "tokens read": str(sum(lengths)),
        "+ separators": str(len(kept)),
        "- shorter than --minimum_size 15 (tokens)": f"{sum(short)} tokens",
        "- the end, less than --chunk_size 16": f"{(sum(kept) + len(kept)) % 16} tokens",
        "= tokens written": str((sum(kept) + len(kept)) // 16 * 16),
        "records": str((sum(kept) + len(kept)) // 16),
        "shortest record": "16 tokens",
    }


# In parallel, and in pieces


def encoded(
    files: list[str], encoder: Encoder, processes: int, progress: Callable[[int], object] = id
) -> list[list[int]]:
    recipe = Recipe(encoder)
    pieces = read_corpus(file_sources(files), Selection(), size=recipe.piece_size, progress=progress)
    return [document.ids.tolist() for document in encode_pieces(pieces, recipe, processes=processes)]


def test_processes_and_pieces_change_nothing(
    corpus: Path, encoder: Encoder, sources: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [*sources, str(corpus / "1.jsonl")]
    whole = encoded(files, encoder, 1)
    monkeypatch.setattr(encoding, "TASK_CHARACTERS", 1000)
    read: list[int] = []
    parallel = encoded(files, encoder, 2, read.append)
    assert whole == parallel == [encoder.encode_documents([text])[0] for text in texts(files)]
    assert sum(read) == sum(os.path.getsize(path) for path in files)


def texts(files: list[str]) -> list[str]:
    return [*(Path(path).read_text() for path in files[:-1]), *DOCUMENTS[1:3]]


def test_documents_know_their_place_and_size(corpus: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding, "TASK_CHARACTERS", 10)
    files = sorted(str(path) for path in corpus.rglob("*.*") if path.suffix != ".md")
    recipe = Recipe(encoder)
    pieces = read_corpus(file_sources(files), Selection(), size=recipe.piece_size)
    found = list(encode_pieces(pieces, recipe, processes=1))
    assert [document.origin.place for document in found] == [(0, 0), (1, 0), (1, 1), (2, 0), (2, 1), (2, 2)]
    assert [document.bytes for document in found] == [len(text.encode()) for text in DOCUMENTS]


def test_tokenizers_that_cannot_be_cut(encoder: Encoder, sources: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = Tokenizer.from_str(encoder.tokenizer.to_str())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    other = Encoder(tokenizer, "other")
    monkeypatch.setattr(encoding, "TASK_CHARACTERS", 100)
    assert encoded(sources[:1], other, 1) == [other.encode(Path(sources[0]).read_text())]


def test_cleaning_sees_whole_documents(corpus: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding, "TASK_CHARACTERS", 3)
    (corpus / "a.txt").write_text("one @-@ two , three " * 9)
    recipe = Recipe(encoder, Cleaning(wikitext=True))
    pieces = read_corpus(file_sources([str(corpus / "a.txt")]), Selection(), size=recipe.piece_size)
    (document,) = encode_pieces(pieces, recipe, processes=1)
    assert encoder.decode(document.ids) == ("one-two, three " * 9).strip()
    assert document.bytes == len("one-two, three " * 9) - 1


def test_stopping_early_ends_the_processes(sources: list[str], encoder: Encoder) -> None:
    recipe = Recipe(encoder)
    pieces = read_corpus(file_sources(sources), Selection(), size=recipe.piece_size)
    documents = encode_pieces(pieces, recipe, processes=2)
    next(documents)
    documents.close()
    import multiprocessing

    assert multiprocessing.active_children() == []


def test_errors_of_the_reader_come_through_the_pool(corpus: Path, encoder: Encoder) -> None:
    (corpus / "1.jsonl").write_text("no json")
    with pytest.raises(InputError, match=r"1\.jsonl: line 1"):
        encoded([str(corpus / "0.txt"), str(corpus / "1.jsonl")], encoder, 2)


def _killed(texts: list[str]) -> None:
    os.kill(os.getpid(), 9)


def test_a_killed_process_is_reported(corpus: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding, "_work", _killed)
    with pytest.raises(InputError, match=r"--processes 2: one of the processes was killed.*give fewer"):
        encoded([str(corpus / "0.txt")], encoder, 2)


# Nothing written, nothing lost


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--minimum_size", 10_000], "- shorter than --minimum_size 10000"),
        (["--mode", "chunks"], "the end, less than --chunk_size 2049"),
    ],
)
def test_nothing_written_is_an_error(
    command: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[object], reason: str
) -> None:
    assert command(*flags) == 1
    line = error_line(capsys)
    assert "nothing written of 6 documents" in line
    assert reason.removeprefix("- ") in line
    assert list((tmp_path / "out").iterdir()) == []


def test_empty_corpus(command: Callable[..., int], corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in corpus.rglob("*.*"):
        path.write_bytes(b"")
    assert command("--file_type", "jsonl") == 1
    assert "hold no document" in error_line(capsys)
    assert command("--file_type", "txt") == 1
    assert "empty: 1 documents, 0 tokens" in error_line(capsys)


def test_existing_files_are_kept(
    command: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("--records_per_file", 2) == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    capsys.readouterr()
    assert command("--records_per_file", 2) == 1
    assert "x_0_2.tfrecords: is there already, with 2 more" in error_line(capsys)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_overwrite_removes_stale_files_of_this_name_only(command: Callable[..., int], tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert command("--records_per_file", 1) == 0
    assert records(out)
    others = {"x_eval_0_5.tfrecords", "xx_0_5.tfrecords", "x_0.tfrecords", "x_0_1.tfrecords.copy"}
    for name in others:
        (out / name).touch()
    assert (out / "x_0_1.tfrecords.index").exists()
    assert command("--overwrite", "--minimum_size", 10**6) == 1
    assert (out / "x_4_1.tfrecords").exists(), "nothing new: the old files stay"
    assert command("--overwrite", "--records_per_file", 3) == 0
    assert {path.name for path in out.iterdir()} == {*others, "x_0_3.tfrecords", "x_1_2.tfrecords", "x.manifest.json"}


def test_overwrite_takes_the_old_held_out_files_away(command: Callable[..., int], tmp_path: Path) -> None:
    assert command("--records_per_file", 1, "--eval_fraction", 0.5) == 0
    assert len(list((tmp_path / "out").glob("x_eval_*"))) == 1
    assert command("--overwrite") == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"x_0_5.tfrecords", "x.manifest.json"}


def test_failure_on_the_way_leaves_the_old_files(
    command: Callable[..., int], corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("--records_per_file", 1) == 0
    before = {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    (corpus / "z.txt").write_bytes(b"good so far \xff")
    assert command("--records_per_file", 1, "--overwrite") == 1
    assert "z.txt: byte 12 is not UTF-8" in error_line(capsys)
    assert {path: path.read_bytes() for path in (tmp_path / "out").iterdir() if path.is_file()} == before
    assert command("--records_per_file", 1, "--overwrite", "--errors", "replace") == 0
    assert all(path.is_file() for path in (tmp_path / "out").iterdir()), "no hidden folder is left"
    assert len(records(tmp_path / "out")) == len(before)


def test_failure_before_the_first_file_leaves_nothing(
    command: Callable[..., int], corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (corpus / "z.txt").write_bytes(b"\xff")
    assert command() == 1
    assert list((tmp_path / "out").iterdir()) == []
    (corpus / "z.txt").write_bytes(b"mended")
    assert command() == 0
    assert len(records(tmp_path / "out")) == 6


def test_two_runs_at_once(command: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out").mkdir()
    with lease(str(tmp_path / "out" / ".x.lock"), "an encoder that writes --name x"):
        assert command() == 1
        assert "out: an encoder that writes --name x is using it: process " in error_line(capsys)
    assert command() == 0


@pytest.mark.parametrize(
    ("first", "flags", "second"),
    [
        ("x", [], "x_2"),
        ("x_eval", [], "x"),
        *(("x", ["--eval_fraction", 0.5], name) for name in ("x_eval", "x_eval_7")),
    ],
)
def test_a_name_whose_files_another_dataset_would_take(
    command: Callable[..., int],
    tmp_path: Path,
    first: str,
    flags: list[object],
    second: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert command("--name", first, *flags) == 0
    before = {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    capsys.readouterr()
    assert command("--name", second, "--eval_fraction", 0.5, "--overwrite") == 1
    assert f"{first}.manifest.json: is of another dataset" in error_line(capsys)
    assert {path: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    assert command("--name", f"{first}-2", *flags) == 0


def test_a_file_name_with_a_line_break(
    command: Callable[..., int], corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (corpus / "a\nb.txt").write_bytes(b"\xff")
    assert command() == 1
    assert "a\\nb.txt: byte 0 is not UTF-8" in error_line(capsys)


# Flags


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--separator", "[1000]", "--mode", "chunks"], "--separator [1000]: 1000 is no id of"),
        (["--separator", "[-1]"], "-1 is no id"),
        (["--separator", "[0, 1]"], "give one, or --mode chunks"),
        (["--name", "a/b"], "--name 'a/b'"),
        (["--name", "*"], "--name '*'"),
        (["--name", ""], "--name ''"),
        (["--encoder_path", "/none.json"], "/none.json: no such tokenizer"),
        (["--input_dir", "/none"], "/none: no .txt, .jsonl, .ndjson, .gz"),
        (["--output_dir", "/dev/null/x"], "/dev/null/x: cannot be made: Not a directory"),
        (["--write_dataset_config", "/dev/null/x/y.json"], "/dev/null/x: cannot be made"),
    ],
)
def test_bad_input_is_one_line(
    command: Callable[..., int], flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(*flags) == 1
    assert message in error_line(capsys)


@pytest.mark.parametrize(
    "flags",
    [
        ["--separator", "zero"],
        ["--separator", "[0.5]"],
        ["--separator", "[true]"],
        ["--chunk_size", "1"],
        ["--processes", "0"],
        ["--use_gpt2_tokenizer"],
        ["--mode", "other"],
    ],
)
def test_wrong_flags_exit_with_2(command: Callable[..., int], flags: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        command(*flags)
    assert caught.value.code == 2


def test_tokenizer_without_end_of_text(
    command: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    (tmp_path / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(alphabet)}))
    (tmp_path / "merges.txt").touch()
    bare = ["--encoder_path", tmp_path]
    assert command(*bare, "--mode", "chunks") == 1
    assert 'give --separator "[ID]"' in error_line(capsys)
    assert command(*bare, "--mode", "chunks", "--separator", "7", "--chunk_size", 10) == 0
    assert command(*bare, "--overwrite", "--write_dataset_config", tmp_path / "d.json") == 0
    config = json.loads((tmp_path / "d.json").read_text())
    assert not {"eos_id", "padding_id"} & set(config), "no id is guessed"
    assert config["n_vocab"] == 256


# The dataset config


def test_dataset_config(
    command: Callable[..., int], tmp_path: Path, tokenizer_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "configs" / "dataset_configs" / "x.json"
    assert command("--write_dataset_config", path, "--records_per_file", 2) == 0
    (tmp_path / "out" / "x_eval_0_5.tfrecords").touch()
    content = json.loads(path.read_text())
    assert content["path"] == "../../out/x_[0-9]*_[0-9]*.tfrecords"
    assert (content["n_vocab"], content["eos_id"], content["padding_id"]) == (1000, 0, 1)

    monkeypatch.chdir("/")
    sizes = {"n_head": 2, "n_embd": 8, "n_layer": 1, "n_ctx": 16, "n_vocab": 1000}
    rest = {"lr": 1e-3, "train_batch_size": 1, "train_steps": 1, "model_path": "run", "datasets": ["x"]}
    (use,) = parse_config({**sizes, **rest}, "model.json", tmp_path / "configs").data.datasets
    found = [os.path.basename(file) for file in use.dataset.files()]
    assert found == ["x_0_2.tfrecords", "x_1_2.tfrecords", "x_2_1.tfrecords"]
    assert use.dataset.tokenizer_path is not None
    assert os.path.samefile(use.dataset.resolve(use.dataset.tokenizer_path), tokenizer_path)


def test_separator_is_the_end_of_text_of_the_config(command: Callable[..., int], tmp_path: Path) -> None:
    assert command("--write_dataset_config", tmp_path / "x.json", "--separator", "[7]") == 0
    assert json.loads((tmp_path / "x.json").read_text())["eos_id"] == 7


def test_config_that_would_match_other_files(
    command: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "x_2_0_5.tfrecords").touch()
    assert command("--write_dataset_config", tmp_path / "x.json") == 1
    assert "x_2_0_5.tfrecords: would be taken for a file of --name x" in error_line(capsys)


def test_config_is_not_overwritten(
    command: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x.json").write_text("mine")
    assert command("--write_dataset_config", tmp_path / "x.json") == 1
    assert "x.json: is there already" in error_line(capsys)
    assert (tmp_path / "x.json").read_text() == "mine"
    assert not (tmp_path / "out").exists()


# As run from a shell


def test_command_line(corpus: Path, tmp_path: Path, tokenizer_path: str, encoder: Encoder) -> None:
    """From another folder, with relative paths, in two processes, on .py files."""
    (corpus / "a.py").write_text("print('a')\n" * 50)
    script = [sys.executable, f"{ROOT}/data/create_tfrecords.py", "--input_dir", "corpus", "--output_dir", "encoded"]
    script += ["--file_type", "py", "txt", "--name", "code", "--encoder_path", tokenizer_path, "--processes", "2"]
    script += ["--write_dataset_config", "code.json"]
    done = subprocess.run(script, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == "files: 1, encoded/code_[0-9]*_[0-9]*.tfrecords"
    texts = [encoder.decode(ids) for ids in records(tmp_path / "encoded", "code")]
    assert texts == [DOCUMENTS[0], "print('a')\n" * 50]
    again = subprocess.run(script, cwd=tmp_path, capture_output=True, text=True)
    assert again.returncode == 1
    assert again.stderr.startswith(f"error: {tmp_path}/encoded/code_0_2.tfrecords: is there already")
    assert again.stderr.count("\n") == 1
