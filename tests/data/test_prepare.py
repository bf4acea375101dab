"""Fetching and encoding of known texts, from a server on this machine that answers well, badly, and halfway."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from gpt_mesh.config.dataset import DatasetConfig
from gpt_mesh.data import prepare as script
from gpt_mesh.data.corpus import load_corpus
from gpt_mesh.data.encoders import load_encoder
from gpt_mesh.data.prepare import fetch, main, prepare
from gpt_mesh.data.published import PUBLISHED, Published
from gpt_mesh.errors import InputError

TEXT = ("naïve line of text\n" * 400).encode()

Answer = Callable[[BaseHTTPRequestHandler], None]


@contextmanager
def served(*answers: Answer) -> Iterator[tuple[str, list[str | None]]]:
    """The address of a server that gives these answers in turn, the last again and again; and the ranges asked for."""
    asked: list[str | None] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.headers.get("Range"))
            answers[min(len(asked), len(answers)) - 1](self)

        def log_message(self, *unused: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/text", asked
    finally:
        server.shutdown()
        server.server_close()


def whole(data: bytes, *, ranges: bool = True) -> Answer:
    def answer(request: BaseHTTPRequestHandler) -> None:
        begin = int((request.headers.get("Range") or "bytes=0-")[6:-1]) if ranges else 0
        request.send_response(206 if begin else 200)
        request.send_header("Content-Length", str(len(data) - begin))
        request.end_headers()
        request.wfile.write(data[begin:])

    return answer


def cut(data: bytes, after: int) -> Answer:
    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.end_headers()
        request.wfile.write(data[:after])

    return answer


def missing(request: BaseHTTPRequestHandler) -> None:
    request.send_error(404)


def silent(request: BaseHTTPRequestHandler) -> None:
    threading.Event().wait(3)


def published(*urls: str, data: bytes = TEXT, file: str = "input.txt") -> Published:
    return Published(
        file, urls, len(data), hashlib.sha256(data).hexdigest(), (None, 6000), (6000, None), "characters", "a text"
    )


def test_a_text_is_fetched_encoded_and_named_in_a_dataset_config(tmp_path: Path) -> None:
    config = tmp_path / "configs" / "dataset_configs" / "mine.json"
    with served(whole(TEXT)) as (url, asked):
        prepare("mine", published(url), str(tmp_path / "out"), str(config))
        prepare("mine", published(url), str(tmp_path / "out"), str(config))  # nothing is fetched again
    assert asked == [None]
    values = json.loads(config.read_text())
    dataset = DatasetConfig(source=str(config), **values)
    encoder = load_encoder(dataset.resolve(values["tokenizer_path"]))
    decoded = []
    for key in ("path", "eval_path"):
        corpus = load_corpus(dataset.files(key))
        assert len(corpus) == 1
        decoded.append(encoder.decode(corpus.read_tokens(np.arange(1))[0].tolist()))
    assert "".join(decoded) == TEXT.decode() and len(decoded[0].encode()) == 6000
    assert values["n_vocab"] == len(set(decoded[0])) + 2 and values["eos_id"] == 0


def test_an_archive_and_a_tokenizer_of_bytes(tmp_path: Path) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("a/train", TEXT)
        archive.writestr("a/valid", b"held out")
    known = published(data=packed.getvalue(), file="text.zip")
    known = dataclasses.replace(known, train="a/train", valid="a/valid", tokenizer="bytes")
    with served(whole(packed.getvalue())) as (url, _):
        config = tmp_path / "c.json"
        prepare("mine", dataclasses.replace(known, urls=(url,)), str(tmp_path / "out"), str(config))
    assert json.loads(config.read_text())["n_vocab"] == 257
    assert load_corpus([str(tmp_path / "out" / "train.bin")]).n_tokens == len(TEXT)
    assert load_corpus([str(tmp_path / "out" / "valid.bin")]).n_tokens == len(b"held out")


@pytest.mark.parametrize("ranges", [True, False])
def test_a_download_goes_on_where_it_stopped(tmp_path: Path, ranges: bool) -> None:
    with served(cut(TEXT, 1000), whole(TEXT, ranges=ranges)) as (url, asked):
        with pytest.raises(InputError, match=r"the connection ended after 1,000 of 8,000 bytes"):
            fetch("mine", published(url), str(tmp_path))
        assert Path(fetch("mine", published(url), str(tmp_path))).read_bytes() == TEXT
    assert asked == [None, "bytes=1000-"]
    assert [path.name for path in tmp_path.iterdir()] == ["input.txt"]


def test_another_address_is_tried(tmp_path: Path) -> None:
    wrong = TEXT[::-1]
    with served(missing) as (first, _), served(whole(wrong)) as (second, _), served(whole(TEXT)) as (third, _):
        assert Path(fetch("mine", published(first, second, third), str(tmp_path))).read_bytes() == TEXT


def test_without_an_answer_it_says_what_to_bring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(script, "SECONDS", 0.5)
    with (
        served(silent) as (slow, _),
        served(whole(TEXT + b"more")) as (longer, _),
        pytest.raises(InputError) as caught,
    ):
        fetch("mine", published(slow, longer, "http://127.0.0.1:1/none"), str(tmp_path))
    message = str(caught.value)
    assert "timed out" in message and "not the published file" in message and "refused" in message
    assert f"bring input.txt (8,000 bytes, SHA-256 {hashlib.sha256(TEXT).hexdigest()}) and put it at" in message
    assert "\n" not in message and str(tmp_path / "input.txt") in message


def test_a_file_that_was_brought_is_checked(tmp_path: Path) -> None:
    (tmp_path / "input.txt").write_bytes(b"another")
    with pytest.raises(InputError, match=r"input\.txt: has SHA-256 .*…, and mine has .*…; remove it"):
        fetch("mine", published("http://127.0.0.1:1/none"), str(tmp_path))
    (tmp_path / "input.txt").write_bytes(TEXT)
    assert fetch("mine", published(), str(tmp_path)) == str(tmp_path / "input.txt")


def test_the_table_and_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    for one in PUBLISHED.values():
        assert len(one.sha256) == 64 and one.size > 1_000_000 and all(url.endswith(one.file) for url in one.urls)
    with pytest.raises(SystemExit) as stopped:
        main(["nothing_such"])
    assert stopped.value.code == 2 and "invalid choice" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["--help"])
    shown = capsys.readouterr().out
    assert all(name in shown for name in PUBLISHED)
