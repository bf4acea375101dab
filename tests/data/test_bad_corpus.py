"""Text that cannot be used, and disks that cannot be written: one clear line, and what is complete stays usable."""

from __future__ import annotations

import gzip
import io
import json
import lzma
import resource
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import zstandard

from gpt_mesh.data.create_tfrecords import main
from gpt_mesh.data.encoders import Encoder
from gpt_mesh.data.manifest import load_manifest
from gpt_mesh.data.tfrecords import load_index, parse_records, read_records

ROOT = Path(__file__).resolve().parents[2]
GOOD = "".join(json.dumps({"text": f"document number {number}"}) + "\n" for number in range(40)).encode()


def tar_gz(content: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        member = tarfile.TarInfo("lines.jsonl")
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def zipped(content: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("lines.jsonl", content)
    return buffer.getvalue()


LATER = GOOD.replace(b"number", b"later")
BAD = {
    "cut.jsonl.zst": (zstandard.compress(LATER)[:-9], "is cut off"),
    "cut.jsonl.xz": (lzma.compress(LATER)[:-40], "cut.jsonl.xz"),
    "cut.jsonl.gz": (gzip.compress(LATER)[:-9], "cut.jsonl.gz"),
    "cut.tar.gz": (tar_gz(LATER)[:-30], "cut.tar.gz"),
    "cut.zip": (zipped(LATER)[:-30], "cut.zip"),
    "utf8.txt": (b"good so far \xff", "utf8.txt: byte 12 is not UTF-8"),
    "nul.txt": (b"a\0b", "nul.txt: byte 1 is NUL"),
    "utf8.jsonl": (LATER + b'{"text": "\xff"}', "utf8.jsonl: line 41"),
    "json.jsonl": (LATER + b'{"text": "', "json.jsonl: line 41: is not JSON"),
    "field.jsonl": (LATER + b'{"content": "x"}', "field.jsonl: line 41: has no field text, but content"),
    "number.jsonl": (LATER + b'{"text": 7}', "number.jsonl: line 41: its field text is no string"),
    "surrogate.jsonl": (LATER + b'{"text": "\\ud83d"}', "surrogate.jsonl: line 41"),
}


@pytest.fixture
def command(tmp_path: Path, tokenizer_path: str) -> Callable[..., int]:
    def run(*flags: object) -> int:
        fixed = ["--input_dir", tmp_path / "corpus", "--output_dir", tmp_path / "out", "--name", "x", "--processes", 1]
        types = ["--file_type", "txt", "jsonl", "jsonl.zst", "jsonl.xz", "jsonl.gz", "tar.gz", "zip"]
        fixed += ["--encoder_path", tokenizer_path, *types, "--records_per_file", 10, *flags]
        return main(list(map(str, fixed)))

    return run


def texts(folder: Path, encoder: Encoder) -> list[str]:
    """What the files that the manifest names hold."""
    manifest = load_manifest(str(folder), "x")
    assert manifest is not None
    assert {shard.file for shard in manifest.shards} == {path.name for path in folder.glob("*.tfrecords")}
    found = []
    for shard in manifest.shards:
        index = load_index(folder / shard.file)
        values, splits = parse_records(read_records(folder / shard.file, index.offsets, index.sizes))
        found += [encoder.decode(ids) for ids in np.split(values, splits[1:-1])]
    return found


@pytest.mark.parametrize("name", BAD)
def test_bad_files(
    command: Callable[..., int], tmp_path: Path, encoder: Encoder, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    content, message = BAD[name]
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "a.jsonl").write_bytes(GOOD)
    (tmp_path / "corpus" / name).write_bytes(content)
    assert command() == 1
    line = capsys.readouterr().err
    assert line.startswith("error: ") and message in line and line.count("\n") == 1, line
    found = texts(tmp_path / "out", encoder)
    assert found[:40] == [f"document number {number}" for number in range(40)]
    assert all(text.startswith("document later") for text in found[40:])


def test_nul_in_json_and_empty_files(command: Callable[..., int], tmp_path: Path, encoder: Encoder) -> None:
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "a.txt").write_text("a")
    (tmp_path / "corpus" / "b.txt").touch()
    (tmp_path / "corpus" / "c.jsonl").write_text('{"text": "\\u0000b"}\n\n')
    (tmp_path / "corpus" / "d.jsonl").touch()
    assert command() == 0
    assert texts(tmp_path / "out", encoder) == ["a", "\0b"]


def limited(script: list[str], size: int) -> subprocess.CompletedProcess[str]:
    """Run a script that may write no file larger than `size` bytes."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    return subprocess.run(script, preexec_fn=limit, capture_output=True, text=True)


def test_files_that_cannot_grow(tmp_path: Path, tokenizer_path: str, encoder: Encoder) -> None:
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "a.jsonl").write_bytes(GOOD)
    (tmp_path / "corpus" / "b.txt").write_text("more than fits " * 5000)
    out = tmp_path / "out"
    script = [sys.executable, str(ROOT / "data" / "create_tfrecords.py"), "--input_dir", str(tmp_path / "corpus")]
    script += ["--output_dir", str(out), "--name", "x", "--encoder_path", tokenizer_path, "--processes", "1"]
    script += ["--records_per_file", "20"]
    done = limited(script, 8000)
    assert done.returncode == 1
    assert done.stderr == (
        f"error: {out}: cannot be written: File too large; make room or give another; what is complete stays, and "
        "--resume goes on from there\n"
    )
    assert texts(out, encoder) == [f"document number {number}" for number in range(40)]
    assert subprocess.run([*script, "--resume"], capture_output=True).returncode == 0
    assert texts(out, encoder) == [*(f"document number {number}" for number in range(40)), "more than fits " * 5000]


def test_output_that_cannot_be_written(
    command: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "a.jsonl").write_bytes(GOOD)
    assert command("--output_dir", "/proc/self") == 1
    line = capsys.readouterr().err
    assert line.startswith("error: /proc/self: cannot be written: ") and line.count("\n") == 1
