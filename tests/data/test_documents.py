"""Readers: every kind of file, whole and in pieces, and one clear line for each that cannot be read."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import json
import lzma
import os
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import tensorflow as tf
import zstandard
from hypothesis import example, given
from hypothesis import strategies as st

from gpt_mesh.data import documents
from gpt_mesh.data.documents import read_documents, read_pieces
from gpt_mesh.data.files import find_files
from gpt_mesh.data.readers.reader import Reading
from gpt_mesh.data.sources import file_sources
from gpt_mesh.errors import InputError
from gpt_mesh.storage.progress import Share

DOCUMENTS = ["one\ntwo", "", "\N{SNOWMAN}\u2028\r\n", "x" * 100_000]

COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".bz2": bz2.compress,
    ".zst": lambda content: zstandard.ZstdCompressor().compress(content),
}
COMPRESSIONS = tuple(COMPRESS)


def jsonl(texts: list[str], key: str = "text") -> bytes:
    return "".join(json.dumps({key: text, "meta": 1}) + "\n" for text in texts).encode()


def tar(members: dict[str, bytes]) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return content.getvalue()


def zipped(members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return content.getvalue()


def texts(documents: list[str], name: str = "{}.txt") -> dict[str, bytes]:
    return {name.format(number): document.encode() for number, document in enumerate(documents)}


def written(folder: Path, name: str, content: bytes) -> str:
    path = folder / name
    path.write_bytes(content)
    return str(path)


def message(path: str, reading: Reading = Reading()) -> str:  # noqa: B008
    """What is said of a file that cannot be read: one line that names it."""
    with pytest.raises(InputError) as caught:
        list(read_documents(path, reading))
    line = str(caught.value)
    assert path in line
    assert "\n" not in line
    return line


@contextlib.contextmanager
def memory_below(limit: float) -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < limit
    finally:
        tracemalloc.stop()


# Text


@given(st.binary(max_size=40) | st.text(max_size=40).map(str.encode), st.integers(1, 5))
@example(b"ab\xe2\0c", 1)
@example(b"\xef\xbb\xbf\xef\xbb\xbfa", 1)
@example(b"\xef\xbb\xbfab\xff", 5)
@example(b"\xef\xbb\xbfab\0", 2)
@example("\N{SNOWMAN}\0".encode(), 2)
def test_a_text_file_is_one_document_as_it_stands(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, block: int
) -> None:
    path = written(tmp_path_factory.mktemp("text"), "a.txt", content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(documents, "_READ_BYTES", block)
        replaced = [content.decode(errors="replace").replace("\0", "\ufffd").removeprefix("\ufeff")]
        assert list(read_documents(path, Reading(errors="replace"))) == replaced
        nul = content.find(b"\0")
        try:
            expected = content[: nul if nul >= 0 else None].decode()
        except UnicodeDecodeError as error:
            assert f"byte {error.start} is not UTF-8; convert the file" in message(path)
        else:
            if nul >= 0:
                assert f"byte {nul} is NUL" in message(path)
            else:
                assert list(read_documents(path)) == [expected.removeprefix("\ufeff")]


def test_flags_are_advised_only_to_those_who_have_them(tmp_path: Path) -> None:
    wrong = [
        (written(tmp_path, "a.txt", b"\xff"), "--errors replace"),
        (written(tmp_path, "b.txt", b"\0"), "--errors replace"),
        (written(tmp_path, "c.jsonl", b'{"text": "\\ud800"}'), "--errors replace"),
        (written(tmp_path, "d.jsonl", b'{"text": "\xff"}'), "--errors replace"),
        (written(tmp_path, "e.jsonl", b'{"body": "a"}'), "--text_key"),
    ]
    for path, flag in wrong:
        assert "--" not in message(path).replace(path, "")
        assert flag in message(path, Reading(by_flags=True))


def test_long_text_is_read_in_pieces(tmp_path: Path) -> None:
    content = "some words\n" * 500_000
    path = written(tmp_path, "long.txt", content.encode())
    pieces = list(read_pieces(path, 10_000))
    assert max(len(piece or "") for piece, _ in pieces) < 10_020
    assert "".join(piece or "" for piece, _ in pieces) == content


def test_unreadable_file(tmp_path: Path) -> None:
    assert "cannot be read: No such file" in message(str(tmp_path / "none.txt"))


# JSON


@pytest.mark.parametrize("ending", ["\n", "", "\n\n", "\r\n"])
def test_jsonl(tmp_path: Path, ending: str) -> None:
    path = written(tmp_path, "a.jsonl", jsonl(DOCUMENTS).rstrip(b"\n") + ending.encode())
    read: list[int] = []
    assert list(read_documents(path, progress=read.append)) == DOCUMENTS
    assert sum(read) == Path(path).stat().st_size


def test_the_text_may_lie_anywhere(tmp_path: Path) -> None:
    records = [{"body": "a"}, "b", {"body": ["c", "d"]}]
    path = written(tmp_path, "a.jsonl", "\n".join(map(json.dumps, records)).encode())
    assert list(read_documents(path, Reading(text_key="body"))) == ["a", "b", "c\n\nd"]
    path = written(tmp_path, "b.jsonl", b'{"a": {"b": {"c": "deep"}}}\n{"a.b.c": "flat", "a": {"b": {"c": "deep"}}}')
    assert list(read_documents(path, Reading(text_key="a.b.c"))) == ["deep", "flat"]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{", "is not JSON"),
        (b'{"text": "a"} extra', "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b'{"body": "a", "meta": 1}', "has no field text, but body, meta"),
        (b'{"text": 1}', "its field text is no string but int"),
        (b'{"text": null}', "its field text is null; give it a text, or leave the record out"),
        (b'{"text": [1]}', "its field text is no string but list"),
        (b"7", "is neither a string nor an object such as"),
        (b'{"text": "\xff"}', "byte 10 of it is not UTF-8"),
        (b'{"text": "a\0"}', "is not JSON"),
        (b'{"text": "ab\\ud800"}', "character 2 of its text is a lone surrogate"),
    ],
)
def test_bad_line(tmp_path: Path, line: bytes, reason: str) -> None:
    path = written(tmp_path, "a.jsonl", b'{"text": "fine"}\n\n' + line + b"\n")
    assert f"{path}: line 3: {reason}" in message(path)


def test_a_nested_field_that_is_not_there(tmp_path: Path) -> None:
    path = written(tmp_path, "a.jsonl", b'{"a": {"b": "text"}}')
    line = message(path, Reading(text_key="a.c", by_flags=True))
    assert "has no field a.c, but a; name the field with --text_key" in line


def test_bad_characters_can_be_replaced(tmp_path: Path) -> None:
    path = written(tmp_path, "a.jsonl", b'{"text": "a\xff"}\n{"text": "b\\ud800c \\ud83c\\udf89"}\n')
    assert list(read_documents(path, Reading(errors="replace"))) == ["a\ufffd", "b\ufffdc 🎉"]


@pytest.mark.parametrize("block", [1, 7, 1 << 20])
@pytest.mark.parametrize("indent", [None, 1])
def test_json_array(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int, indent: int | None) -> None:
    monkeypatch.setattr(documents, "_READ_BYTES", block)
    some = [*DOCUMENTS[:3], '[{"\\']
    records = [*({"text": text, "meta": {"a": [1]}} for text in some), *some]
    path = written(tmp_path, "a.json", f" {json.dumps(records, indent=indent)}\n".encode())
    assert list(read_documents(path)) == some * 2
    assert list(read_documents(written(tmp_path, "empty.json", b"[ ]"))) == []
    assert list(read_documents(written(tmp_path, "lines.json", jsonl(some)))) == some


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b'["a", "b', "is no JSON array, or cut off"),
        (b'["a", "b"', "is no JSON array, or cut off"),
        (b"[", "is no JSON array, or cut off"),
        (b'["a", b]', "is no JSON array, or cut off"),
        (b'["a"] ["b"]', "goes on after its array"),
        (b'["a", 1]', "item 2: is neither a string nor an object"),
        (b'["a\xff"]', "byte 3 is not UTF-8"),
    ],
)
def test_bad_array(tmp_path: Path, content: bytes, reason: str) -> None:
    assert reason in message(written(tmp_path, "a.json", content))


# Compression


@pytest.mark.parametrize("ending", COMPRESSIONS)
@pytest.mark.parametrize("chunk", [1 << 30, 1000])
def test_compressed_lines(tmp_path: Path, ending: str, chunk: int) -> None:
    """Also when the file is several streams in a row, as of files that were joined."""
    content = jsonl(DOCUMENTS)
    streams = [COMPRESS[ending](content[start : start + chunk]) for start in range(0, len(content), chunk)]
    path = written(tmp_path, f"a.jsonl{ending}", b"".join(streams))
    read: list[int] = []
    assert list(read_documents(path, progress=read.append)) == DOCUMENTS
    assert sum(read) == Path(path).stat().st_size


@pytest.mark.parametrize("ending", COMPRESSIONS)
def test_what_is_inside_is_told_by_name_or_else_by_content(tmp_path: Path, ending: str) -> None:
    lines = jsonl(DOCUMENTS)
    for name, content, expected in (
        ("a.txt", lines, [lines.decode()]),
        ("b.jsonl", lines, DOCUMENTS),
        ("c.json", json.dumps(DOCUMENTS).encode(), DOCUMENTS),
        ("d", lines, DOCUMENTS),
        ("e", b"text\nof two lines", ["text\nof two lines"]),
        ("f_data", tar(texts(DOCUMENTS)), DOCUMENTS),
        ("g.tar", tar(texts(DOCUMENTS)), DOCUMENTS),
        ("H.JSONL", lines, DOCUMENTS),
    ):
        path = written(tmp_path, f"{name}{ending}", COMPRESS[ending](content))
        assert list(read_documents(path)) == expected, name


@pytest.mark.parametrize("ending", COMPRESSIONS)
def test_compressed_file_that_is_cut_off_or_damaged(tmp_path: Path, ending: str) -> None:
    name = f"a.jsonl{ending}"
    whole = COMPRESS[ending](jsonl(DOCUMENTS))
    for size in (1, 10, len(whole) // 2, len(whole) - 1):
        assert "is cut off" in message(written(tmp_path, name, whole + whole[:size])), size
    for content in (b"plain text, not compressed", whole + b"plain text, not compressed"):
        assert ", or damaged: " in message(written(tmp_path, name, content))
    assert "is empty" in message(written(tmp_path, name, b""))
    padded = whole + bytes(8)
    if ending != ".zst":
        assert list(read_documents(written(tmp_path, name, padded))) == DOCUMENTS


@pytest.mark.parametrize(("ending", "limit"), [(".gz", 8e6), (".xz", 16e6), (".zst", 8e6)])
def test_memory_does_not_grow_with_what_is_inside(tmp_path: Path, ending: str, limit: float) -> None:
    """20 MB that compress to a few thousand bytes."""
    document = json.dumps({"text": "0 " * 100_000}).encode() + b"\n"
    path = written(tmp_path, f"a.jsonl{ending}", COMPRESS[ending](document * 100))
    with memory_below(limit):  # xz has a dictionary of 8 MiB
        assert sum(len(text) for text in read_documents(path)) == 20_000_000


@pytest.mark.parametrize("words", [10, 400_000])
def test_a_first_line_of_any_length_tells_that_it_is_json(tmp_path: Path, words: int) -> None:
    some = ["word " * words, "second"]
    path = written(tmp_path, "a.gz", COMPRESS[".gz"](jsonl(some)))
    assert list(read_documents(path)) == some
    text = "{ word " + "word " * words
    assert list(read_documents(written(tmp_path, "b.gz", COMPRESS[".gz"](text.encode())))) == [text]


def test_json_without_end_is_no_text(tmp_path: Path) -> None:
    assert "is nested too deeply" in message(written(tmp_path, "a.json", b"[" * 100_000))
    assert "line 1: is not JSON" in message(written(tmp_path, "a.jsonl", b"[" * 100_000))
    nested = b'{"a":' * 100_000
    assert "begins like JSON and like text" in message(written(tmp_path, "a.gz", COMPRESS[".gz"](nested)))


# Archives


@pytest.mark.parametrize("name", ["a.tar", "a.zip", "a.tar.gz", "a.tgz", "a.tar.zst", "a.tar.xz", "a.tar.bz2"])
def test_archives(tmp_path: Path, name: str) -> None:
    """Each file in it is read as its own name says."""
    members = {
        **texts(DOCUMENTS, "folder/{}.txt"),
        "b.jsonl.zst": COMPRESS[".zst"](jsonl(["b"])),
        "c.tar.xz": COMPRESS[".xz"](tar({"inner.json": b'["c"]', "LICENSE": b"d"})),
    }
    if name.endswith(".zip"):
        content = zipped({**members, "folder/": b""})
    else:
        ending = {"tgz": ".gz", "tar": ""}.get(name.rpartition(".")[2], Path(name).suffix)
        content = COMPRESS.get(ending, bytes)(tar(members))
    path = written(tmp_path, name, content)
    read: list[int] = []
    assert list(read_documents(path, progress=read.append)) == [*DOCUMENTS, "b", "c", "d"]
    assert sum(read) == len(content)


def test_members_of_a_tar_may_be_told_by_its_own_name(tmp_path: Path) -> None:
    """As in the .jsonl.zst.tar files that lm_dataformat reads."""
    shard = COMPRESS[".zst"](jsonl(DOCUMENTS))
    path = written(tmp_path, "a.jsonl.zst.tar", tar({"shard_0": shard, "shard_1.jsonl.zst": shard, "README.txt": b"r"}))
    assert list(read_documents(path)) == [*DOCUMENTS, *DOCUMENTS, "r"]


def test_dat(tmp_path: Path) -> None:
    """lm_dataformat's own form: sixteen digits of length before each document."""
    content = b"".join(b"%016d" % len(text.encode()) + text.encode() for text in DOCUMENTS)
    path = written(tmp_path, "a.dat.zst", COMPRESS[".zst"](content))
    assert list(read_documents(path)) == DOCUMENTS
    for wrong, reason in (
        (content[:-1], "is cut off in document 4"),
        (content[:30], "document 2 does not begin with 16 digits"),
        (b"text", "document 1 does not begin with 16 digits"),
    ):
        assert reason in message(written(tmp_path, "b.dat.zst", COMPRESS[".zst"](wrong)))


def test_every_truncation_of_an_archive_is_found(tmp_path: Path) -> None:
    members = texts(["a" * 600, "b", "c" * 1500])
    archive = tar(members)
    end = archive.index(b"c" * 1500) + 1536  # from here on only zeros, of which a whole block is the end mark
    for size in range(0, end + 512, 128):
        assert "is no tar archive, or damaged or cut off" in message(written(tmp_path, "a.tar", archive[:size])), size
    assert len(list(read_documents(written(tmp_path, "a.tar", archive[: end + 512])))) == 3
    archive = zipped(members)
    for size in range(0, len(archive), 16):
        assert "is no zip archive, or damaged or cut off" in message(written(tmp_path, "a.zip", archive[:size])), size


def test_damaged_archives(tmp_path: Path) -> None:
    archive = bytearray(tar(texts(["a" * 600, "b"])))
    archive[1536 + 3] ^= 1  # in the second header
    assert "damaged or cut off (bad checksum)" in message(written(tmp_path, "a.tar", bytes(archive)))
    assert "goes on after its end mark" in message(written(tmp_path, "b.tar", tar({"a": b"a"}) + tar({"b": b"b"})))
    stored = zipped({"a.txt": b"aaaa"}, zipfile.ZIP_STORED).replace(b"aaaa", b"aaab")
    assert "Bad CRC-32" in message(written(tmp_path, "a.zip", stored))
    deflated = bytearray(zipped({"a.txt": bytes(range(1, 128)) * 9}))
    deflated[60] ^= 255
    assert "damaged or cut off" in message(written(tmp_path, "b.zip", bytes(deflated)))
    nameless = zipped({"name": b"x"}).replace(b"name", bytes(4))
    assert "damaged or cut off (a file in it has no name)" in message(written(tmp_path, "b.zip", nameless))
    locked = bytearray(zipped({"a.txt": b"secret"}))
    locked[6] |= 1
    locked[locked.index(b"PK\1\2") + 8] |= 1
    assert "password" in message(written(tmp_path, "c.zip", bytes(locked)))
    assert "unpack the outer one" in message(written(tmp_path, "d.tar", tar({"a.zip": zipped({})})))


def test_what_is_wrong_in_an_archive_is_named(tmp_path: Path) -> None:
    wrong = {"good.txt": b"fine", "bad.jsonl": b'{"text": "a"}\n{"body": "b"}'}
    for name, content in (("a.zip", zipped(wrong)), ("a.tar.gz", gzip.compress(tar(wrong)))):
        path = written(tmp_path, name, content)
        assert f"{path}: bad.jsonl: line 2: has no field text" in message(path)


def test_members_are_read_as_a_stream(tmp_path: Path) -> None:
    big = b"0 " * 8_000_000
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("big.txt", big)
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(tar({"big.txt": big}), 1))
    for name in ("a.zip", "a.tar.gz"):
        with memory_below(8e6):
            assert sum(len(piece or "") for piece, _ in read_pieces(str(tmp_path / name), 10_000)) == len(big)


def test_memory_does_not_grow_with_the_number_of_members(tmp_path: Path) -> None:
    path = written(tmp_path, "a.tar", tar({f"{number}.txt": b"" for number in range(6000)}))
    with memory_below(6e6):
        assert sum(1 for _ in read_documents(path)) == 6000


@given(st.integers(0, 1000), st.lists(st.integers(1, 50), min_size=1))
def test_shares_add_up(whole: int, parts: list[int]) -> None:
    share = Share(whole, sum(parts))
    told = [share.of(part) for part in parts]
    assert sum(told) == whole
    assert all(abs(found - whole * part / sum(parts)) <= 1 for found, part in zip(told, parts, strict=True))


# Finding files


TREE = ("b.txt", "a.txt", "sub/c.jsonl", "sub/d.jsonl.zst", "sub/e.py", "sub/zst", "txt", "f.zst")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in TREE:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def test_find_files_whatever_the_case_of_their_endings(tmp_path: Path) -> None:
    for name in ("A.TXT", "b.NdJson", "c.JSON"):
        (tmp_path / name).touch()
    assert find_files(str(tmp_path)) == [str(tmp_path / "A.TXT"), str(tmp_path / "b.NdJson")]
    assert find_files(str(tmp_path), ["TXT", ".json"]) == [str(tmp_path / "A.TXT"), str(tmp_path / "c.JSON")]


@pytest.mark.parametrize(
    ("pattern", "types", "found"),
    [
        ("", None, ["a.txt", "b.txt", "f.zst", "sub/c.jsonl", "sub/d.jsonl.zst"]),
        ("", ["py"], ["sub/e.py"]),
        ("", [".py", "txt"], ["a.txt", "b.txt", "sub/e.py"]),
        ("", ["jsonl"], ["sub/c.jsonl"]),
        ("sub/e.py", None, ["sub/e.py"]),
        ("sub/e.py", ["txt"], ["sub/e.py"]),
        ("*", None, ["a.txt", "b.txt", "f.zst", "sub/c.jsonl", "sub/d.jsonl.zst", "txt"]),
        ("*", ["txt"], ["a.txt", "b.txt"]),
        ("**/*.py", None, ["sub/e.py"]),
    ],
)
def test_find_files(tree: Path, pattern: str, types: list[str] | None, found: list[str]) -> None:
    assert find_files(f"{tree}/{pattern}", types) == [str(tree / name) for name in found]


def test_find_files_through_links(tree: Path) -> None:
    (tree / "sub" / "back").symlink_to(tree)
    (tree / "linked").symlink_to(tree / "sub")
    assert sum(path.endswith("c.jsonl") for path in find_files(str(tree))) == 1, "each folder once, loops end"
    (tree / "sub" / "back").unlink()
    (tree / "only").mkdir()
    (tree / "only" / "link").symlink_to(tree / "sub")
    assert find_files(f"{tree}/only") == [f"{tree}/only/link/c.jsonl", f"{tree}/only/link/d.jsonl.zst"]


def test_a_glob_gives_each_file_once_through_links(tree: Path) -> None:
    (tree / "sub" / "back").symlink_to(tree)
    assert find_files(f"{tree}/**/*.py") == [f"{tree}/sub/e.py"]
    assert find_files(f"{tree}/**/*.*") == [f"{tree}/{name}" for name in sorted(TREE) if "." in name]


def test_pipes_and_sockets_are_no_files(tree: Path) -> None:
    os.mkfifo(tree / "sub" / "pipe.txt")
    assert find_files(str(tree), ["txt"]) == find_files(f"{tree}/**/*.txt") == [f"{tree}/a.txt", f"{tree}/b.txt"]
    with pytest.raises(InputError, match=r"no \.txt file there"):
        find_files(f"{tree}/sub/*.txt", ["txt"])


def test_a_folder_that_cannot_be_read(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scandir = os.scandir

    def refusing(path: str) -> object:
        if str(path).endswith("sub"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(InputError, match="sub: cannot be read: Permission denied"):
        find_files(str(tree))
    (tree / "sub").rename(tree / "lost+found")
    assert find_files(str(tree)) == [f"{tree}/{name}" for name in ("a.txt", "b.txt", "f.zst")]


@pytest.mark.parametrize("target", ["nowhere", "link.txt"])
def test_a_link_that_leads_nowhere(tmp_path: Path, target: str) -> None:
    (tmp_path / "link.txt").symlink_to(target)
    (source,) = file_sources(find_files(str(tmp_path)))
    for ask in (lambda: source.size, lambda: source.mtime_ns, lambda: list(source.documents())):
        with pytest.raises(InputError, match=r"link\.txt: cannot be read: "):
            ask()


@pytest.mark.parametrize(("pattern", "types"), [("none", None), ("", ["rst"]), ("*.rst", None), ("sub/*.py", ["txt"])])
def test_nothing_found(tree: Path, pattern: str, types: list[str] | None) -> None:
    with pytest.raises(InputError, match=r"file there; check the path") as caught:
        find_files(f"{tree}/{pattern}", types)
    assert str(tree) in str(caught.value)


def test_documents_at_urls() -> None:
    tf.io.gfile.makedirs("ram://corpus/sub")
    contents = {
        "a.jsonl": jsonl(DOCUMENTS),
        "b.zip": zipped(texts(DOCUMENTS)),
        "sub/c.tar.gz": gzip.compress(tar(texts(DOCUMENTS))),
    }
    for name, content in contents.items():
        with tf.io.gfile.GFile(f"ram://corpus/{name}", "wb") as file:
            file.write(content)
    files = find_files("ram://corpus")
    assert files == [f"ram://corpus/{name}" for name in contents]
    assert find_files("ram://corpus/*.zip") == files[1:2]
    for path in files:
        assert list(read_documents(path)) == DOCUMENTS, path
