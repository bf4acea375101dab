"""Which format a file has, by its first bytes; files that are no documents; records without a text."""

from __future__ import annotations

import gzip
import io
import json
import struct
import tarfile
import zipfile
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from gpt_mesh.data import create_tfrecords, train_tokenizer
from gpt_mesh.data.documents import read_documents, read_pieces
from gpt_mesh.data.files import find_files
from gpt_mesh.data.junk import is_junk
from gpt_mesh.data.manifest import load_manifest
from gpt_mesh.data.readers.reader import Reading
from gpt_mesh.data.readers.table import FORMATS, READERS
from gpt_mesh.errors import InputError
from gpt_mesh.storage.progress import set_up_logging

MARK = b"\xef\xbb\xbf"
LINES = b'{"text": "one"}\r\n{"text": "two"}\r\n'
ARRAY = b'[{"text": "one"},\n {"text": "two"}]'
STRINGS = b'["one",\n "two"]\n'


def written(folder: Path, name: str, content: bytes) -> str:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return str(path)


def refused(path: str, reading: Reading = Reading()) -> str:  # noqa: B008
    with pytest.raises(InputError) as caught:
        list(read_documents(path, reading))
    assert path in str(caught.value)
    return str(caught.value)


def test_each_format_has_a_name_of_its_own() -> None:
    assert len({reader.name for reader in READERS}) == len(READERS)
    assert set(FORMATS) == {"text", "lines", "jsonl", "json", "dat", "parquet"}


# The first bytes


@pytest.mark.parametrize("name", ["a.jsonl", "a.ndjson", "a.json", "a.jsonl.gz", "a.json.gz", "a.gz"])
@pytest.mark.parametrize("before", [MARK, MARK + b"\r\n", b"\n \r\n", MARK + b" \n\n"])
def test_marks_and_blank_lines_before_json(tmp_path: Path, name: str, before: bytes) -> None:
    assert list(read_documents(written(tmp_path, name, before + LINES))) == ["one", "two"]
    if "jsonl" not in name and "ndjson" not in name:
        for array in (ARRAY, STRINGS):
            assert list(read_documents(written(tmp_path, name, before + array))) == ["one", "two"]


def test_a_mark_at_the_start_of_any_line(tmp_path: Path) -> None:
    """Files with marks that were joined."""
    assert list(read_documents(written(tmp_path, "a.jsonl", (MARK + LINES) * 2))) == ["one", "two"] * 2


@pytest.mark.parametrize("name", ["a.txt", "a.md", "a.txt.gz", "a.gz"])
def test_a_mark_before_text(tmp_path: Path, name: str) -> None:
    assert list(read_documents(written(tmp_path, name, MARK + b"some\ntext"))) == ["some\ntext"]
    assert list(read_documents(written(tmp_path, name, b"some\n" + MARK + b"text"))) == ["some\n\ufefftext"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"1984\n\nIt was a bright cold day",
        b"[Illustration]\n\nCHAPTER I",
        b"[1] A footnote, and [2] another",
        b"{ word } and so on",
        b"{\nint x;\n}",
        b'"Hello," he said.\nAnd went.',
        b"null\nand void",
        b"# title\n\n```\n[1, 2]\n```\n",
    ],
)
def test_compressed_text_is_text(tmp_path: Path, content: bytes) -> None:
    assert list(read_documents(written(tmp_path, "a.gz", content))) == [content.decode()]


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (b'"Hello there."\n"Hello."\n', "jsonl"),  # strings, or a dialogue
        (b'{"text": "a"\n' + LINES, "jsonl"),  # damaged
        (LINES[3:], "jsonl"),  # cut off at its start
        (b"a title\n" + LINES, "jsonl"),
        (b'{\n "text": "a"\n}\n', "jsonl"),
        (b'["a"]\n["b"]\n', "json"),
        (b'[{"text": "a"}, oops', "json"),
        (b'[{"text": "a', "json"),
        (b"[[1, 2], [3]]", "json"),
    ],
)
def test_what_is_doubtful_is_refused(tmp_path: Path, content: bytes, name: str) -> None:
    path = written(tmp_path, "a.gz", content)
    line = refused(path)
    assert f"put .{name} or .txt before the last ending of its name" in line and "--" not in line.replace(path, "")
    assert f"--format {name} or --format text" in refused(path, Reading(by_flags=True))
    assert list(read_documents(path, Reading(format="text"))) == [content.decode()]


def test_records_that_are_longer_than_what_is_looked_at(tmp_path: Path) -> None:
    long = "word " * 400_000
    for content in (json.dumps([{"text": long}, "b"]), json.dumps({"text": long}) + '\n{"text": "b"}'):
        assert list(read_documents(written(tmp_path, "a.gz", content.encode()))) == [long, "b"]
    assert "like JSON and like text" in refused(written(tmp_path, "a.gz", json.dumps([long, "b"]).encode()))


def test_a_format_that_is_asked_for(tmp_path: Path) -> None:
    lines = written(tmp_path, "a.txt", b"one\ntwo\r\nthree")
    assert list(read_documents(lines, Reading(format="lines"))) == ["one\n", "two\r\n", "three"]
    assert list(read_documents(written(tmp_path, "b.txt.gz", LINES), Reading(format="jsonl"))) == ["one", "two"]
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as members:
        members.writestr("a.jsonl", LINES)
    path = written(tmp_path, "c.zip", archive.getvalue())
    assert list(read_documents(path)) == ["one", "two"]
    assert list(read_documents(path, Reading(format="text"))) == [LINES.decode()]


def test_the_command_line_decides_what_is_doubtful(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written(tmp_path, "texts/a.gz", b'"some words"\n"other words"\n' * 50)
    flags = ["--base_dir", f"{tmp_path}/texts", "--output_dir", f"{tmp_path}/tokenizer", "--vocab_size", "260"]
    assert train_tokenizer.main(flags) == 1
    assert "--format jsonl or --format text" in capsys.readouterr().err
    assert train_tokenizer.main([*flags, "--format", "jsonl"]) == 0


# Files that are no documents

APPLE = struct.pack(">II16sH", 0x00051607, 0x00020000, b"Mac OS X        ", 2) + b"\0" * 150
JUNK = ("._a.txt", "__MACOSX/x/._a.txt", ".DS_Store", "x/Thumbs.db", "x/.ipynb_checkpoints/a-checkpoint.txt", "a.txt~")


@pytest.mark.parametrize(
    ("path", "junk"),
    [
        *((path, True) for path in JUNK),
        *((path, True) for path in ("#a.txt#", ".#a.txt", ".a.txt.swp", "~$a.txt", "a.txt.bak", "A.TXT.BAK", "a.orig")),
        *((path, False) for path in ("a.txt", "_a.txt", "a.b.txt", ".a.txt", "store.txt", "a#b.txt", "~a.txt", "x~/a")),
    ],
)
def test_which_files_are_no_documents(path: str, junk: bool) -> None:
    assert is_junk(path) == junk


def test_they_are_left_out_of_folders_and_archives(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logging()
    members = dict.fromkeys(JUNK, APPLE) | {"x/a.txt": b"first story\n"}
    archive, tar = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        for name, content in members.items():
            file.writestr(name, content)
            written(tmp_path / "folder", name, content)
    with tarfile.open(fileobj=tar, mode="w") as file:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    folder = str(tmp_path / "folder")
    for where, said, read in (
        (written(tmp_path, "a.zip", archive.getvalue()), "6 files", read_documents),
        (written(tmp_path, "a.tar", tar.getvalue()), "6 files", read_documents),
        (written(tmp_path, "a.tar.gz", tar.getvalue()), "6 files", read_documents),
        (folder, "3 files", lambda path: [text for found in find_files(path) for text in read_documents(found)]),
    ):
        assert list(read(where)) == ["first story\n"]
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"{where}: left out {said} that are no documents: ")
    assert find_files(f"{folder}/**/*.txt") == [f"{folder}/x/a.txt"]
    assert find_files(f"{folder}/._a.txt") == [f"{folder}/._a.txt"], "a file that is named is taken"


# Records without a text


def test_null_texts(tmp_path: Path) -> None:
    lines = b'{"text": "a"}\n{"text": null}\nnull\n{"text": "b"}\n'
    table = pa.table({"text": ["a", None, "b"], "s": [{"x": "a"}, None, {"x": None}]})
    parquet.write_table(table, tmp_path / "a.parquet")
    for name in ("a.jsonl", "a.parquet"):
        path = str(tmp_path / name) if name.endswith("parquet") else written(tmp_path, name, lines)
        assert "is null; give it a text, or leave the record out" in refused(path)
        assert "leave the record out with --skip_null" in refused(path, Reading(by_flags=True))
        assert list(read_documents(path, Reading(skip_null=True))) == ["a", "b"]
    nested = Reading(text_key="s.x", skip_null=True)
    assert list(read_documents(str(tmp_path / "a.parquet"), nested)) == ["a"]
    assert list(read_pieces(str(tmp_path / "a.jsonl"), 10, Reading(skip_null=True))) == [
        *(("a", True), (None, True), (None, True), ("b", True))
    ]


@pytest.mark.parametrize("size", [None, 300])
def test_null_texts_are_counted(
    tmp_path: Path, tokenizer_path: str, capsys: pytest.CaptureFixture[str], size: int | None
) -> None:
    written(tmp_path, "a.jsonl", b'{"text": "some words"}\n{"text": null}\n{"text": ""}\n{"text": null}\n' * 3)
    flags = ["--input_dir", f"{tmp_path}/a.jsonl", "--name", "x", "--output_dir", f"{tmp_path}/out"]
    flags += ["--encoder_path", tokenizer_path, "--processes", "1", "--eval_fraction", "0.5", "--deduplicate"]
    flags += [] if size is None else ["--ftfy"]
    assert create_tfrecords.main(flags) == 1
    assert "--skip_null" in capsys.readouterr().err
    assert create_tfrecords.main([*flags, "--skip_null", "--overwrite"]) == 0
    manifest = load_manifest(f"{tmp_path}/out", "x")
    assert manifest is not None and manifest.settings["skip_null"] is True
    dropped = [split.account.dropped_documents for split in manifest.splits.values()]
    assert sum(counts["null texts (--skip_null)"] for counts in dropped) == 6
    assert sum(counts["empty"] for counts in dropped) == 1 and sum(counts["duplicates"] for counts in dropped) == 4


def test_a_parquet_column_of_lists_of_structs(tmp_path: Path) -> None:
    table = pa.table({"messages": [[{"content": "a", "role": "b"}]], "text": ["c"]})
    parquet.write_table(table, tmp_path / "a.parquet")
    for key in ("messages", "messages.content"):
        line = refused(str(tmp_path / "a.parquet"), Reading(text_key=key))
        assert "column messages is a list of structs (with content, role)" in line and "can be read" in line


# Archives that mean harm


def test_a_tar_of_nothing_but_headers(tmp_path: Path) -> None:
    def header(name: str, size: int, kind: bytes) -> bytes:
        info = tarfile.TarInfo(name)
        info.size, info.type = size, kind
        return info.tobuf(tarfile.USTAR_FORMAT)

    long_name = header("././@LongLink", 4, b"L") + b"abc\0".ljust(512, b"\0")
    content = long_name * 3000 + header("x.txt", 4, b"0") + b"word".ljust(512, b"\0") + bytes(1024)
    assert "thousands of headers in a row without a file" in refused(written(tmp_path, "a.tar", content))
