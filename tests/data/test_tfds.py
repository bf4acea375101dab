"""Text of tensorflow-datasets, from small datasets that its own writer makes."""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from pathlib import Path

from gpt_mesh.meshes.compat import mtf  # noqa: F401  (first: it quiets TensorFlow's start-up)

import pytest
import tensorflow as tf

from gpt_mesh.data.create_tfrecords import main as create_tfrecords
from gpt_mesh.data.sources import Source, add_source_flags, open_sources
from gpt_mesh.data.train_tokenizer import main as train_tokenizer
from gpt_mesh.errors import InputError

tfds = pytest.importorskip("tensorflow_datasets", reason="is not to be had on Python 3.10")

TEXTS = [f"text {number} \N{SNOWMAN}\n" for number in range(25)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Dataset `small`, with configs `plain` (TFRecord files) and `array` (ArrayRecord)."""
    path = str(tmp_path_factory.mktemp("tfds"))
    features = tfds.features.FeaturesDict(
        {
            "text": tfds.features.Text(),
            "page": {"body": tfds.features.Text(), "number": tf.int64},
            "numbers": tfds.features.Tensor(shape=(2,), dtype=tf.float32),
        }
    )
    examples = [
        {"text": text, "page": {"body": text.upper(), "number": number}, "numbers": [0.0, 1.0]}
        for number, text in enumerate(TEXTS)
    ]
    for config, file_format in (("plain", "tfrecord"), ("array", "array_record")):
        tfds.dataset_builders.store_as_tfds_dataset(
            name="small",
            version="1.0.0",
            config=config,
            features=features,
            split_datasets={"train": list(enumerate(examples)), "test": list(enumerate(examples[:3]))},
            data_dir=path,
            file_format=file_format,
            disable_shuffling=True,
        )
    return path


def sources(*flags: str) -> list[Source]:
    parser = argparse.ArgumentParser()
    add_source_flags(parser, "--input_dir")
    found = parser.parse_args(flags)
    return open_sources(found.input_dir, found)


def texts(folder: str, name: str, *flags: str) -> list[str]:
    (source,) = sources("--tfds", name, "--tfds_dir", folder, *flags)
    return list(source.documents())


@pytest.mark.parametrize("config", ["plain", "array"])
def test_examples_in_order(folder: str, config: str) -> None:
    assert texts(folder, f"small:{config}/train") == TEXTS
    assert texts(folder, f"small:{config}:1.0.0/test") == TEXTS[:3]
    assert texts(folder, f"small:{config}/train[5:8]+test") == TEXTS[5:8] + TEXTS[:3]
    assert texts(folder, f"small:{config}/test", "--text_key", "page.body") == [text.upper() for text in TEXTS[:3]]


def test_a_split_is_a_source_like_a_file(folder: str) -> None:
    (source,) = sources("--tfds", "small:plain/train", "--tfds_dir", folder)
    assert source.mtime_ns is None
    assert source.size > sum(map(len, TEXTS))
    pieces = list(source.pieces(4))
    assert "".join(piece or "" for piece, _ in pieces) == "".join(TEXTS)
    assert sum(ends for _, ends in pieces) == len(TEXTS)


@pytest.mark.parametrize(
    ("name", "flags", "reason"),
    [
        ("small", [], "must be NAME/SPLIT or NAME:CONFIG/SPLIT"),
        ("small:plain/", [], "must be NAME/SPLIT or NAME:CONFIG/SPLIT"),
        ("small:plain/valid", [], "valid"),
        ("small:other/train", [], "other"),
        ("small:plain/train[:0]", [], "holds no example"),
        ("small:plain:9.9.9/train", [], "9.9.9"),
        ("nothing_of_this_name/train", [], "nothing_of_this_name"),
        ("small:plain/train", ["--text_key", "body"], "has no feature body, but numbers, page, text"),
        ("small:plain/train", ["--text_key", "page.text"], "has no feature page.text"),
        ("small:plain/train", ["--text_key", "page.number"], "its field page.number is no string"),
        ("small:plain/train", ["--file_type", "txt"], "--file_type: goes with a folder"),
    ],
)
def test_what_cannot_be_read_is_one_line(folder: str, name: str, flags: list[str], reason: str) -> None:
    start = time.monotonic()
    with pytest.raises(InputError) as caught:
        texts(folder, name, *flags)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)
    assert time.monotonic() - start < 30


def test_one_of_folder_and_dataset(folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    for flags in ([], ["--input_dir", "a", "--tfds", "b/c"]):
        with pytest.raises(SystemExit):
            sources(*flags)
    with pytest.raises(InputError, match="--tfds_dir: goes with --tfds"):
        sources("--input_dir", folder, "--tfds_dir", folder)


@pytest.mark.parametrize(("config", "keep"), [("plain", -3), ("array", 20), ("array", -3)])
def test_damaged_file(folder: str, tmp_path: Path, config: str, keep: int) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    (shard,) = (copy / "small" / config / "1.0.0").glob("*-train.*record*")
    shard.write_bytes(shard.read_bytes()[:keep])
    with pytest.raises(InputError, match=rf"--tfds small:{config}/train: cannot be read"):
        texts(str(copy), f"small:{config}/train")


def test_without_the_library(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(InputError, match=r"needs tensorflow-datasets .*pip install tensorflow-datasets"):
        texts(folder, "small:plain/train")


def test_both_scripts_read_it(folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--tfds", "small:plain/train", "--tfds_dir", folder, "--output_dir", str(tmp_path)]
    assert train_tokenizer([*flags, "--vocab_size", "300"]) == 0
    assert "used all" in capsys.readouterr().out
    flags += ["--name", "small", "--processes", "1"]
    assert create_tfrecords([*flags, "--encoder_path", str(tmp_path / "byte-level-bpe.tokenizer.json")]) == 0
    assert (tmp_path / "small_0_25.tfrecords").exists()
    flags += ["--overwrite", "--minimum_size", "1000"]
    assert create_tfrecords([*flags, "--encoder_path", str(tmp_path / "byte-level-bpe.tokenizer.json")]) == 1
    assert "error: small:plain/train: nothing written" in capsys.readouterr().err
