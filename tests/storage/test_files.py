"""Files are replaced, never truncated, on local paths and on URLs."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gpt_mesh.storage import checksums, files, strict_json


@pytest.fixture(params=["local", "url"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    path = str(tmp_path) if request.param == "local" else f"ram://{tmp_path.name}"
    files.make_folder(path)
    return path


def test_a_file_is_replaced_when_it_is_complete(folder: str) -> None:
    path = f"{folder}/a.txt"
    files.write_text(path, "old")
    with pytest.raises(RuntimeError), files.replacing(path) as file:
        file.write(b"half")
        raise RuntimeError
    assert files.read_bytes(path) == b"old" and files.list_folder(folder) == ["a.txt"]
    with files.replacing(path, durable=True) as file:
        file.write(b"new")
        assert files.read_bytes(path) == b"old"
    assert files.read_bytes(path) == b"new" and files.list_folder(folder) == ["a.txt"]


def test_appending(folder: str) -> None:
    for part in (b"a", b"b"):
        with files.append_binary(f"{folder}/a.txt") as file:
            file.write(part)
    assert files.read_bytes(f"{folder}/a.txt") == b"ab"


def test_half_a_character_is_written_as_its_escape(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    files.write_text(str(path), strict_json.dumps({"name": "a\ud800b", "other": "é"}, ensure_ascii=False))
    assert path.read_text(encoding="utf-8") == '{"name": "a\\ud800b", "other": "é"}'


def test_a_pipe_is_written_to_directly() -> None:
    code = "from gpt_mesh.storage import files; files.write_text('/dev/stdout', 'page')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("page", "")


def test_local_paths_import_no_tensorflow(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from gpt_mesh.storage import checksums, files, heartbeat, json_lines, lease, output_folder, progress\n"
        f"path = {str(tmp_path / 'a.jsonl')!r}\n"
        "rows = json_lines.JsonLines(path)\n"
        "with lease.lease(path + '.lock', 'a test'):\n"
        "    rows.append({'step': 1})\n"
        "rows.rewind(1)\n"
        "files.sync(path)\n"
        "checksums.of_file(path)\n"
        "print('tensorflow' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr


def test_leftovers_of_killed_processes_are_removed(tmp_path: Path) -> None:
    names = ["a.json.12.tmp", "b.json.13.tmp", "mine.tmp", "a.json"]
    for name in names:
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (0, 0))
    os.utime(tmp_path / names[1], (time.time(), time.time()))
    files.remove_leftovers(str(tmp_path))
    assert files.list_folder(str(tmp_path)) == sorted(names[1:]), "the second one may be in use"


@pytest.mark.parametrize(
    ("path", "part"), [("s3://bucket/run", "gs://"), ("/runs/a\ud800b", "characters"), ("/runs/a\0b", "characters")]
)
def test_paths_that_cannot_be(path: str, part: str) -> None:
    assert part in str(files.path_problem(path))


def test_paths_that_can_be() -> None:
    for path in ("runs/a", "gs://bucket/run", "ram://run", os.fsdecode(b"/runs/caf\xe9")):
        assert files.path_problem(path) is None


def test_checksums(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert checksums.of_file(str(tmp_path / "a")).startswith("ba7816bf8f01cfea")
    assert checksums.of_json({"a": 1, "b": 2}) == checksums.of_json({"b": 2, "a": 1}) != checksums.of_json({"a": 1})
