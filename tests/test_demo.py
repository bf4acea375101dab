"""The demo: its text, its baselines, its steps one by one, and all of it at its smallest."""

from __future__ import annotations

import json
import lzma
import math
import re
import subprocess
import sys
import sysconfig
import zlib
from collections import Counter
from pathlib import Path

import pytest

from examples import baselines, demo, demo_chat
from examples.layout import Demo, set_up
from examples.screen import REPOSITORY, run, table
from examples.standard_library import HELD_OUT_SHARE, Source, find_sources, repeated_share, split, write
from gpt_mesh.data.encoders import Encoder, load_encoder
from gpt_mesh.data.sources import file_sources
from gpt_mesh.data.train_tokenizer import save
from gpt_mesh.data.train_tokenizer import train_tokenizer as train_bpe
from gpt_mesh.errors import InputError

LINE = b"value = compute(first_argument, second_argument)\n"


def fake_library(folder: Path) -> Path:
    """A standard library with one file to take, `json/decoder.py`, among what is to be left out."""
    files = {
        "json/decoder.py": LINE * 40,
        "json/copy_of_decoder.py": LINE * 40 + b"#",
        "json/zz_same.py": LINE * 40,  # of equal content: the first by name stays
        "json/__init__.py": b"",
        "json/short.py": b"x" * 999,
        "json/latin.py": b"# \xe9\n" + LINE * 40,
        "json/notes.txt": LINE * 41,
        "_sysconfigdata__linux.py": LINE * 42,
        "encodings/cp1252.py": LINE * 43,
        "test/test_json.py": LINE * 44,
        "unittest/test/test_case.py": LINE * 45,
        "site-packages/numpy.py": LINE * 46,
    }
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


class TestText:
    def test_takes_sources_and_leaves_out_tests_tables_copies_and_what_is_not_utf8(self, tmp_path):
        found = find_sources(str(fake_library(tmp_path)))
        assert {source.name for source in found} == {"json/decoder.py", "json/copy_of_decoder.py"}
        assert all(source.content == (tmp_path / source.name).read_bytes() for source in found)

    def test_the_order_depends_on_names_alone(self, tmp_path):
        first = find_sources(str(fake_library(tmp_path / "a")))
        second = find_sources(str(fake_library(tmp_path / "somewhere" / "else")))
        assert first == second

    def test_this_python_has_enough_and_no_document_is_on_both_sides(self):
        sources = find_sources()
        training, held_out = split(sources)
        assert sorted(training + held_out, key=lambda s: s.name) == sorted(sources, key=lambda s: s.name)
        total = sum(len(source.content) for source in sources)
        share = sum(len(source.content) for source in held_out) / total
        assert total > 5e6
        assert 0.9 * HELD_OUT_SHARE < share <= HELD_OUT_SHARE
        assert not {source.content for source in training} & {source.content for source in held_out}

    def test_a_python_without_its_sources_is_refused(self, tmp_path, monkeypatch):
        monkeypatch.setattr(sysconfig, "get_path", lambda name: str(fake_library(tmp_path)))
        with pytest.raises(InputError, match=r"has only 3,921 bytes of Python sources; run the demo with another"):
            find_sources()

    def test_repeated_share_counts_long_lines_wherever_they_are_indented(self):
        training = [Source("a.py", b"    a line of twenty letters\nshort\n")]
        held_out = [Source("b.py", b"a line of twenty letters\nshort\nanother line of twenty letters\n")]
        assert repeated_share(training, held_out) == 0.5

    def test_write_copies_bytes_and_counts_them(self, tmp_path):
        size = write([Source("a/b.py", b"one\r\n"), Source("c.py", b"two")], tmp_path)
        assert size == 8
        assert (tmp_path / "a" / "b.py").read_bytes() == b"one\r\n"


@pytest.fixture
def encoder(tmp_path) -> Encoder:
    (tmp_path / "text.txt").write_bytes(LINE * 10)
    return load_encoder(save(train_bpe(file_sources([str(tmp_path / "text.txt")]), 300), str(tmp_path)))


class TestBaselines:
    def test_gzip_is_deflate_at_its_best_with_an_18_byte_frame(self):
        text = Path(__file__).read_bytes()
        packer = zlib.compressobj(9, zlib.DEFLATED, -15)
        size = len(packer.compress(text) + packer.flush()) + 18
        assert baselines.gzip_bits(text) == 8 * size / len(text)

    def test_xz_is_lzma_at_preset_9(self):
        text = Path(__file__).read_bytes()
        packer = lzma.LZMACompressor(preset=9)
        size = len(packer.compress(text) + packer.flush())
        assert baselines.xz_bits(text) == 8 * size / len(text)

    def test_xz_after_the_training_text_knows_what_it_has_read(self):
        read, unread = Path(__file__).read_bytes(), Path(demo.__file__).read_bytes()
        assert baselines.xz_bits_after(read, read) < 0.2
        assert 0.5 < baselines.xz_bits_after(read, unread) < baselines.xz_bits(unread)

    def test_unigram_is_the_entropy_under_add_one_counts(self, encoder):
        training, held_out = ["value = 1\n", "first value\n"], ["value = second\n"]
        counts = Counter(token for text in training for token in encoder.encode(text))
        total = counts.total() + encoder.n_vocab
        tokens = encoder.encode(held_out[0])
        expected = sum(-math.log2((counts[token] + 1) / total) for token in tokens) / len(held_out[0])
        assert baselines.unigram_bits(encoder, training, held_out) == pytest.approx(expected, rel=1e-12)

    def test_uniform(self):
        assert baselines.uniform_bits(4096, tokens=100, text_bytes=400) == pytest.approx(3.0)


@pytest.fixture
def commands(monkeypatch) -> list[tuple[object, ...]]:
    """What would have been run."""
    found: list[tuple[object, ...]] = []
    monkeypatch.setattr(demo, "run", lambda *words: found.append(words))
    return found


def trained(tmp_path: Path, step: int) -> Demo:
    """A demo with checkpoints up to `step`."""
    it = set_up(tmp_path, smoke=True)
    for number in range(8, step + 1, 8):
        (it.folder / f"model.ckpt-{number}.index").touch()
    return it


class TestTraining:
    def test_an_interrupted_one_goes_on(self, tmp_path, commands, capsys):
        it = trained(tmp_path, 16)
        with pytest.raises(SystemExit) as stop:  # it does not get to the end here either
            demo.train(it)
        assert stop.value.code == 130
        assert "Going on from step 16." in capsys.readouterr().out
        assert commands == [("main.py", "--model", it.config, "--steps_per_checkpoint", "8")]

    def test_a_finished_one_is_only_evaluated(self, tmp_path, commands, capsys):
        it = trained(tmp_path, 40)
        demo.train(it)
        assert "Trained already, to step 40" in capsys.readouterr().out
        assert commands == [("main.py", "--model", it.config, "--eval")]


class TestPairs:
    def test_questions_and_answers_come_from_docstrings(self):
        text = b'''
def first(x):
    """Return the first item,
    whatever it is. Then more.

    A paragraph."""

def _hidden():
    """This one is nobody's business."""

def without(): pass

def terse():
    """Short."""
'''
        found = list(demo_chat.pairs([Source("json/tool.py", text), Source("bad.py", b"def (")]))
        assert found == [("What does json.tool.first do?", "Return the first item, whatever it is.")]

    def test_without_a_trained_model_it_says_what_to_do(self, tmp_path, capsys):
        assert demo_chat.main(["--smoke", "--output", str(tmp_path)]) == 1
        assert "holds no trained model; run `make demo` first" in capsys.readouterr().err


class TestScreen:
    def test_a_failed_command_ends_the_program_with_its_status(self, capfd):
        with pytest.raises(SystemExit) as stop:
            run("main.py", "--model", "no_such_config")
        assert stop.value.code == 1
        out, err = capfd.readouterr()
        assert out.startswith("$ ") and "main.py --model no_such_config" in out
        assert err.startswith("error: ")

    def test_table(self):
        assert table([("gzip -9", 2.0491), ("xz", 11.5)]) == "gzip -9   2.049\nxz       11.500"


def run_smoke(folder: Path) -> str:
    command = [sys.executable, "-m", "examples.demo", "--smoke", "--output", str(folder)]
    # From elsewhere than the repository: the demo needs no particular working directory.
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(1000)
def test_from_text_to_curves_and_again_from_what_is_there(tmp_path):
    folder = tmp_path / "demo"
    first = run_smoke(folder)

    facts = json.loads((folder / "text.json").read_text())
    held_out = [path.read_bytes() for path in sorted((folder / "text" / "held_out").rglob("*.py"))]
    assert facts["held_out_bytes"] == sum(map(len, held_out))
    evaluations = [json.loads(line) for line in (folder / "eval.jsonl").read_text().splitlines()]
    assert [row["step"] for row in evaluations] == [8, 16, 24, 32, 40]
    # Every byte of the held-out text is scored, and the bits are those of every token of it.
    encoder = load_encoder(str(folder / "tokenizer"))
    tokens = sum(len(encoder.encode(text.decode())) for text in held_out)
    assert {(row["bytes"], row["tokens"]) for row in evaluations} == {(facts["held_out_bytes"], tokens)}
    last = evaluations[-1]
    assert last["bits_per_byte"] == pytest.approx(last["nll"] * tokens / math.log(2) / facts["held_out_bytes"])
    assert last["bits_per_byte"] < evaluations[0]["bits_per_byte"]

    text = b"".join(held_out)
    result = first.split("== Result ")[1]
    for line in (
        f"gzip -9                          {baselines.gzip_bits(text):6.3f}",
        f"xz -9                            {baselines.xz_bits(text):6.3f}",
        f"GPT at step 40                   {last['bits_per_byte']:6.3f}",
    ):
        assert line in result
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert "There already" not in first
    for command in ("data/train_tokenizer.py", "data/create_tfrecords.py", "main.py"):
        assert command in first
    assert "import os\n\n\nclass" in first  # the prompt, and on from there

    chat = subprocess.run(
        [sys.executable, "-m", "examples.demo_chat", "--smoke", "--output", str(folder)], cwd=REPOSITORY,
        capture_output=True, text=True, timeout=500, check=False,
    )  # fmt: skip
    assert chat.returncode == 0, chat.stderr
    before, after = map(float, re.findall(r"^(?:before|after) +(\d+\.\d+)$", chat.stdout, re.MULTILINE))
    assert after < before and "  docstring: " in chat.stdout

    for path in folder.glob("model.ckpt-40*"):  # as if interrupted before the end
        path.unlink()
    again = run_smoke(folder)
    assert again.count("There already") == 5
    assert "Going on from step 32." in again
    assert again.split("== Result ")[1].split("Curves")[0] == result.split("Curves")[0]
