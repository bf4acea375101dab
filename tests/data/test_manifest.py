"""What a manifest says, held against the files it speaks of."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from gpt_mesh.config import Config
from gpt_mesh.data.account import Account
from gpt_mesh.data.check import check_dataset
from gpt_mesh.data.create_tfrecords import main
from gpt_mesh.data.encoders import load_encoder
from gpt_mesh.data.manifest import InputFacts, Manifest, load_manifest, manifests_of, text_bytes
from gpt_mesh.data.tfrecords import load_index
from gpt_mesh.errors import InputError
from gpt_mesh.inputs import EvaluationData, TrainingData
from tests.support.corpora import TEXTS, make_tokenizer, model_config


@pytest.fixture
def encode(tmp_path: Path) -> Callable[..., Manifest]:
    """Encodes sixty texts as dataset x; half of them are held out."""
    texts = [f"{number} {TEXTS[number % len(TEXTS)]}" for number in range(60)]
    (tmp_path / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))

    def run(tokenizer: Path, *flags: object) -> Manifest:
        arguments = ["--input_dir", tmp_path / "text.jsonl", "--name", "x", "--output_dir", tmp_path / "out"]
        arguments += ["--encoder_path", tokenizer, "--processes", 1, "--eval_fraction", 0.5, "--records_per_file", 9]
        arguments += ["--write_dataset_config", tmp_path / "dataset_configs" / "x.json", *flags]
        assert main([str(argument) for argument in arguments]) == 0
        manifest = load_manifest(str(tmp_path / "out"), "x")
        assert manifest is not None
        return manifest

    return run


def config(tmp_path: Path, n_vocab: int, mode: str = "documents_random") -> Config:
    return model_config(tmp_path, [["x", 1, mode, 1.0]], n_vocab=n_vocab)


def words(path: Path) -> Path:
    """A tokenizer of words: white space is no token, so that its tokens have no bytes of their own."""
    found = sorted({word for text in TEXTS for word in text.split()} | {str(number) for number in range(60)})
    tokenizer = Tokenizer(
        models.WordLevel({word: number for number, word in enumerate(["<|endoftext|>", "?", *found])}, "?")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(path))
    return path


def test_it_counts_what_the_files_hold(encode: Callable[..., Manifest], tmp_path: Path) -> None:
    manifest = encode(make_tokenizer(tmp_path / "tokenizer"))
    assert manifest.complete
    assert len(manifest.shards) > 4
    for shard in manifest.shards:
        index = load_index(tmp_path / "out" / shard.file)
        assert (len(index), int(index.tokens.sum())) == (shard.records, shard.tokens)
    assert sum(shard.documents for shard in manifest.shards) == 60
    lines = (tmp_path / "text.jsonl").read_text().splitlines()
    assert sum(shard.bytes or 0 for shard in manifest.shards) == sum(len(json.loads(x)["text"].encode()) for x in lines)


@pytest.mark.parametrize("flags", [(), ("--mode", "chunks", "--chunk_size", 9)])
def test_bytes_are_those_of_the_tokens(
    encode: Callable[..., Manifest], tmp_path: Path, flags: tuple[object, ...]
) -> None:
    tokenizer = make_tokenizer(tmp_path / "tokenizer")
    encode(tokenizer, *flags)
    data = EvaluationData(config(tmp_path, 400, "chunks" if flags else "documents_random"), progress=False)
    expected = data.token_bytes(load_encoder(str(tokenizer)))
    if flags:
        assert data.manifest_bytes() is None, "the first token of a chunk is not predicted"
        assert (text_bytes([str(path) for path in (tmp_path / "out").glob("x_eval_*.tfrecords")]) or 0) > expected
    else:
        assert data.manifest_bytes() == expected


def test_bytes_of_a_tokenizer_whose_tokens_have_none(encode: Callable[..., Manifest], tmp_path: Path) -> None:
    encode(words(tmp_path / "words.json"))
    data = EvaluationData(config(tmp_path, 400), progress=False)
    with pytest.raises(InputError, match="byte-level"):
        data.token_bytes(load_encoder(str(tmp_path / "words.json")))
    lines = [json.loads(line)["text"] for line in (tmp_path / "text.jsonl").read_text().splitlines()]
    manifest = load_manifest(str(tmp_path / "out"), "x")
    assert manifest is not None
    trained = sum(shard.bytes or 0 for shard in manifest.splits["train"].shards)
    assert data.manifest_bytes() == sum(len(text.encode()) for text in lines) - trained
    (tmp_path / "out" / "x.manifest.json").unlink()
    assert data.manifest_bytes() is None


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["tokenizer", "n_vocab"], "many"),
        (["splits", "train", "shards", 1, "tokens"], None),
        (["splits", "train", "shards", 0, "last"], "9:9:9"),
        (["splits", "eval", "account", "tokens_written"], 1),
        (["complete"], False),
        (["digest"], ""),
    ],
)
def test_values_that_somebody_changed(
    encode: Callable[..., Manifest], tmp_path: Path, path: list[str | int], value: object
) -> None:
    encode(make_tokenizer(tmp_path / "tokenizer"))
    file = tmp_path / "out" / "x.manifest.json"
    values = inner = json.loads(file.read_text())
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    file.write_text(json.dumps(values))
    with pytest.raises(InputError, match=r"x\.manifest\.json: is damaged.*somebody changed it"):
        load_manifest(str(tmp_path / "out"), "x")


def problem(settings: Config, expected: str) -> None:
    """It is the one problem of the report, and training refuses it in the same words."""
    report = check_dataset(settings, progress=False)
    assert len(report.problems) == 1 and expected in report.problems[0], report.problems
    with pytest.raises(InputError) as caught:
        (EvaluationData if "eval" in expected else TrainingData)(settings, progress=False)
    assert str(caught.value) == report.problems[0]


def test_a_file_that_is_gone_or_another_is_noticed(encode: Callable[..., Manifest], tmp_path: Path) -> None:
    encode(make_tokenizer(tmp_path / "tokenizer"))
    settings = config(tmp_path, 400)
    assert check_dataset(settings, progress=False).ok
    out = tmp_path / "out"
    files = sorted(out.glob("x_[0-9]*.tfrecords"))
    whole = files[1].read_bytes()
    files[1].write_bytes(files[0].read_bytes())
    problem(settings, f"{files[1]}: holds 9 records of ")
    files[1].unlink()
    problem(settings, f"{files[1]}: is gone, with 0 more of the {len(files)} files")
    files[1].write_bytes(whole)
    held_out = sorted(out.glob("x_eval_*.tfrecords"))[0]
    held_out.rename(tmp_path / "elsewhere")
    problem(settings, f"{held_out}: is gone")
    (out / "x.manifest.json").unlink()
    assert check_dataset(settings, progress=False).ok, "what is there can be used"


def test_files_of_another_dataset_are_not_spoken_of(encode: Callable[..., Manifest], tmp_path: Path) -> None:
    encode(make_tokenizer(tmp_path / "tokenizer"))
    out = tmp_path / "out"
    (out / "x_y_0_5.tfrecords").touch()
    assert manifests_of([str(out / "x_y_0_5.tfrecords")]) == []
    assert len(manifests_of([str(next(out.glob("x_eval_*.tfrecords")))])) == 1


def test_the_same_document_goes_the_same_way(encode: Callable[..., Manifest], tmp_path: Path) -> None:
    """Whatever the order, the tokenizer and the mode."""

    def held_out() -> int | None:
        return text_bytes([str(path) for path in (tmp_path / "out").glob("x_eval_*.tfrecords")])

    encode(make_tokenizer(tmp_path / "tokenizer"))
    expected = held_out()
    lines = (tmp_path / "text.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "text.jsonl").write_text("".join(reversed(lines)))
    encode(make_tokenizer(tmp_path / "other", n_vocab=300), "--overwrite", "--mode", "chunks", "--chunk_size", 2)
    assert expected is not None and abs((held_out() or 0) - expected) < 10


# The journal


@pytest.fixture
def journaled(encode: Callable[..., Manifest], tmp_path: Path) -> Path:
    """A folder whose manifest has no files yet, and a journal of those that it had."""
    whole = encode(make_tokenizer(tmp_path / "tokenizer"))
    folder = tmp_path / "out"
    manifest = whole.copy()
    manifest.complete = False
    for split in manifest.splits.values():
        split.shards, split.account = [], Account()
    manifest.save(str(folder))
    for name, split in whole.splits.items():
        for shard in split.shards:
            manifest.splits[name].shards.append(shard)
            manifest.splits[name].account.documents_read += 1
            manifest.append(str(folder), name)
    return folder


def shards(folder: Path) -> int:
    manifest = load_manifest(str(folder), "x")
    assert manifest is not None
    return len(manifest.shards)


def test_files_are_entered_in_a_journal(journaled: Path) -> None:
    manifest = load_manifest(str(journaled), "x")
    assert manifest is not None
    for split in manifest.splits.values():
        assert split.account.documents_read == len(split.shards) > 0
    manifest.save(str(journaled))
    assert not (journaled / ".x.manifest.journal").exists()
    again = load_manifest(str(journaled), "x")
    assert again is not None and again.splits == manifest.splits


def test_a_journal_that_a_kill_cut_off(journaled: Path) -> None:
    journal = journaled / ".x.manifest.journal"
    content, whole = journal.read_bytes(), shards(journaled)
    for cut in (1, 30):
        journal.write_bytes(content[:-cut])
        assert shards(journaled) == whole - 1
    journal.write_bytes(b"")
    assert shards(journaled) == 0


def test_a_journal_of_an_older_manifest(journaled: Path) -> None:
    """A kill between the new manifest and the journal's removal."""
    journal = journaled / ".x.manifest.journal"
    content, whole = journal.read_bytes(), shards(journaled)
    manifest = load_manifest(str(journaled), "x")
    assert manifest is not None
    manifest.save(str(journaled))
    journal.write_bytes(content)
    assert shards(journaled) == whole


@pytest.mark.parametrize(
    ("old", "new"), [(b'"tokens": ', b'"tokens": 1'), (b'"digest": "', b'"digest": "0'), (b"{", b"[")]
)
def test_a_journal_that_somebody_changed(journaled: Path, old: bytes, new: bytes) -> None:
    journal = journaled / ".x.manifest.journal"
    journal.write_bytes(journal.read_bytes().replace(old, new, 1))
    with pytest.raises(InputError, match=r"x\.manifest\.json: is damaged"):
        load_manifest(str(journaled), "x")


def test_brackets_without_end(journaled: Path) -> None:
    (journaled / "x.manifest.json").write_text("[" * 100_000)
    with pytest.raises(InputError, match=r"x\.manifest\.json: is damaged") as caught:
        load_manifest(str(journaled), "x")
    assert len(str(caught.value)) < 600


def test_what_is_written_grows_with_the_number_of_files(journaled: Path) -> None:
    """Not with its square: of many sources, none is written again."""
    manifest = load_manifest(str(journaled), "x")
    assert manifest is not None
    manifest.inputs = [InputFacts(f"/texts/{number}.txt", 1, 1) for number in range(10_000)]
    manifest.save(str(journaled))
    before = (journaled / "x.manifest.json").stat().st_size
    for _ in range(100):
        manifest.splits["train"].shards.append(manifest.splits["train"].shards[0])
        manifest.append(str(journaled), "train")
    assert (journaled / "x.manifest.json").stat().st_size == before
    assert (journaled / ".x.manifest.journal").stat().st_size < 100 * 1500
