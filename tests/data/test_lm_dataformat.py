"""Files of lm_dataformat give the same documents here as with the package itself."""

from __future__ import annotations

import gzip
import io
import json
import lzma
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import lm_dataformat
import pytest
import zstandard

from gpt_mesh.data.files import find_files
from gpt_mesh.data.readers.reader import Reading
from gpt_mesh.data.sources import file_sources

DOCUMENTS = [
    "one\ntwo",
    "\N{SNOWMAN} and \u2028 more",
    "x" * 100_000,
    "\ufeffafter a mark",
    '{"text": "inside"}',
    "end",
]


def theirs(path: Path) -> list[str]:
    return list(lm_dataformat.Reader(str(path)).stream_data())


def ours(path: Path, reading: Reading = Reading()) -> list[str]:  # noqa: B008
    return [text for source in file_sources(find_files(str(path)), reading) for text in source.documents()]


def lines(documents: list[str]) -> bytes:
    return b"".join(json.dumps({"text": text, "meta": {"a": 1}}).encode() + b"\n" for text in documents)


def tar(members: dict[str, bytes]) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return content.getvalue()


def zipped(members: dict[str, bytes]) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return content.getvalue()


@pytest.mark.parametrize("kind", [lm_dataformat.Archive, lm_dataformat.DatArchive, lm_dataformat.JSONArchive])
def test_what_it_writes(tmp_path: Path, kind: type) -> None:
    archive = kind(str(tmp_path / "out"))
    for text in DOCUMENTS[:4]:
        archive.add_data(text)
    archive.commit()
    for text in DOCUMENTS[4:]:
        archive.add_data(text)
    archive.commit()
    files = sorted(path for path in (tmp_path / "out").iterdir() if "incomplete" not in path.name)
    assert len(files) == 2
    for path, expected in zip(files, (DOCUMENTS[:4], DOCUMENTS[4:]), strict=True):
        assert ours(path) == theirs(path) == expected


MEMBERS = {f"{number}.txt": text.encode() for number, text in enumerate(DOCUMENTS) if not text.startswith("\ufeff")}
COMPRESS: Callable[[bytes], bytes] = zstandard.ZstdCompressor().compress
JSON_LINES = {"a.jsonl": b'{"text": "a"}\n{"text": "b"}\n', "b.txt": b"b"}

READ: dict[str, tuple[bytes, Reading]] = {
    "a.jsonl": (lines(DOCUMENTS), Reading()),
    "strings.jsonl": (b"".join(json.dumps(text).encode() + b"\n" for text in DOCUMENTS), Reading()),
    "paragraphs.jsonl": (b'{"text": ["a", "b"]}\n', Reading()),
    "marked.jsonl": (b"\xef\xbb\xbf" + lines(DOCUMENTS), Reading()),
    "a.jsonl.zst": (COMPRESS(lines(DOCUMENTS)), Reading()),
    "a.json.zst": (COMPRESS(json.dumps(DOCUMENTS).encode()), Reading()),
    "a.json.gz": (gzip.compress(b"".join(json.dumps(text).encode() + b"\n" for text in DOCUMENTS)), Reading()),
    "a.txt": (DOCUMENTS[0].encode(), Reading()),
    "a.zip": (zipped(MEMBERS), Reading()),
    "a.tar.gz": (gzip.compress(tar(MEMBERS)), Reading()),
    "urlsf_subset00-1_data.xz": (lzma.compress(tar(MEMBERS)), Reading()),
    # It takes the members of archives for text, whatever their names, and each line of a .gz file for a document.
    "lines.zip": (zipped(JSON_LINES), Reading(format="text")),
    "lines.tar.gz": (gzip.compress(tar(JSON_LINES)), Reading(format="text")),
    "a.gz": (gzip.compress(b'one\n\n{"text": "two"}\nlast'), Reading(format="lines")),
}


@pytest.mark.parametrize("name", READ)
def test_what_it_reads(tmp_path: Path, name: str) -> None:
    content, reading = READ[name]
    (tmp_path / name).write_bytes(content)
    found = theirs(tmp_path / name)
    assert found and ours(tmp_path / name, reading) == found


def members(reader: Callable[[str], Iterator[str]], path: Path) -> list[str]:
    return list(reader(str(path)))


def test_its_readers_of_archives_in_archives(tmp_path: Path) -> None:
    """Methods of its Reader: one is never called, and one is, but fails, under the names that they are meant for."""
    shard = COMPRESS(lines(DOCUMENTS))
    (tmp_path / "a.jsonl.zst.tar").write_bytes(tar({"shard_0": shard, "shard_1": shard}))
    found = members(lm_dataformat.Reader("").read_jsonl_tar, tmp_path / "a.jsonl.zst.tar")
    assert ours(tmp_path / "a.jsonl.zst.tar") == found == DOCUMENTS * 2
    inner = {"a_data.xz": lzma.compress(tar(MEMBERS)), "b_data.xz": lzma.compress(tar({"c.txt": b"c"}))}
    (tmp_path / "openwebtext.tar.xz").write_bytes(lzma.compress(tar(inner)))
    found = members(lm_dataformat.Reader("").read_owt, tmp_path / "openwebtext.tar.xz")
    assert ours(tmp_path / "openwebtext.tar.xz") == found and len(found) == len(MEMBERS) + 1


def test_the_package_is_not_imported_to_read_its_files() -> None:
    code = "import sys; import gpt_mesh.data.documents; print('lm_dataformat' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60).stdout == "False\n"
