"""Pairs of token files as Megatron-LM and GPT-NeoX write them, from a writer of the tests' own."""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from gpt_mesh.meshes.compat import mtf  # noqa: F401  (first: it quiets TensorFlow's start-up)

import numpy as np
import pytest
import tensorflow as tf

from gpt_mesh.data import megatron
from gpt_mesh.data.check import check_dataset
from gpt_mesh.data.megatron import load_pair
from gpt_mesh.errors import InputError
from gpt_mesh.inputs import EvaluationData, TrainingData
from gpt_mesh.storage import files as storage
from tests.support.corpora import add_dataset, make_tokenizer, model_config, numbered_documents

CODES = {"uint8": 1, "int8": 2, "int16": 3, "int32": 4, "int64": 5, "float32": 7, "uint16": 8}
KINDS = ("mapped", "fairseq", "plain fairseq")


def write_pair(
    prefix: Path | str,
    documents: Sequence[Sequence[Sequence[int]]],
    dtype: str = "uint16",
    kind: str = "mapped",
    *,
    version: int = 1,
    tail: bytes = b"",
) -> str:
    """Write documents, each of some sequences, as `prefix`.bin and `prefix`.idx. Returns the path of the .bin.

    kind: "mapped" (MMIDIDX), "fairseq" (TNTIDX, with the document index), "plain fairseq" (without it).
    """
    sequences = [sequence for document in documents for sequence in document]
    ids = np.array([token for sequence in sequences for token in sequence]).astype(dtype)
    lengths = np.array([len(sequence) for sequence in sequences], np.int64)
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    first = np.concatenate([[0], np.cumsum([len(document) for document in documents])]).astype(np.int64)
    width = ids.dtype.itemsize
    if kind == "mapped":
        index = b"MMIDIDX\0\0" + struct.pack("<QBQQ", version, CODES[dtype], len(lengths), len(first))
        index += lengths.astype("<i4").tobytes() + (starts[:-1] * width).tobytes() + first.tobytes()
    else:
        index = b"TNTIDX\0\0" + struct.pack("<5Q", version, CODES[dtype], width, len(lengths), len(lengths))
        index += struct.pack("<Q", len(first)) if kind == "fairseq" else b""
        index += np.arange(len(lengths) + 1, dtype="<i8").tobytes() + starts.tobytes() + lengths.tobytes()
        index += first.tobytes() if kind == "fairseq" else b""
    for ending, content in ((".bin", ids.tobytes()), (".idx", index + tail)):
        with storage.replacing(f"{prefix}{ending}") as file:
            file.write(content)
    return f"{prefix}.bin"


def in_sequences(documents: Sequence[Sequence[int]], size: int = 5) -> list[list[list[int]]]:
    """Each document as sequences of at most `size` tokens."""
    return [[list(document[start : start + size]) for start in range(0, len(document), size)] for document in documents]


def data(config) -> TrainingData:
    return TrainingData(config, progress=False)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [name for name in CODES if name != "float32"])
def test_documents_of_every_type_and_kind(tmp_path: Path, dtype: str, kind: str) -> None:
    documents = [[[1, 2, 3], [4]], [[5]], [], [[], [6, 7]], [[120]]]
    index = load_pair(write_pair(tmp_path / "a", documents, dtype, kind))
    joined = [[token for sequence in document for token in sequence] for document in documents]
    if kind == "plain fairseq":
        joined = [sequence for document in documents for sequence in document]
    assert index.tokens.tolist() == [len(tokens) for tokens in joined]
    assert (index.min_id, index.max_id) == (1, 120)
    content = (tmp_path / "a.bin").read_bytes()
    found = [
        np.frombuffer(content[offset : offset + size], index.dtype).tolist()
        for offset, size in zip(index.offsets, index.sizes, strict=True)
    ]
    assert found == joined


@pytest.mark.parametrize("kind", KINDS[:2])
@pytest.mark.parametrize("mode", ["documents_random", "documents_fixed", "chunks"])
@pytest.mark.parametrize("pattern", ["{}/a_0", "{}/a_*", "{}/a_?.bin", "{}/a_0.idx", "ram"])
def test_batches_are_those_of_tfrecord_files(tmp_path: Path, kind: str, mode: str, pattern: str) -> None:
    """The same documents in one pair and in one TFRecord file make the same windows."""
    documents = numbered_documents([9] * 30 if mode == "chunks" else [14, 9, 30, 11] * 10)
    folder = f"ram://{tmp_path.name}" if pattern == "ram" else str(tmp_path)
    if pattern == "ram":
        tf.io.gfile.makedirs(folder)
    write_pair(f"{folder}/a_0", in_sequences(documents), "int32", kind)
    path = f"{folder}/a_*" if pattern == "ram" else pattern.format(tmp_path)
    uses = [["same", 1 if mode == "chunks" else 3, mode, 1.0]]
    batches = []
    for settings in ({"documents": documents}, {"documents": None, "path": path}):
        add_dataset(tmp_path, "same", eos_id=999_999, **settings)
        batches.append(data(model_config(tmp_path, uses)).batch(7, 50).tolist())
    assert batches[0] == batches[1]


@pytest.mark.parametrize("mode", ["documents_random", "documents_fixed"])
def test_an_end_of_text_in_the_file_is_not_doubled(tmp_path: Path, mode: str) -> None:
    documents, eos = numbered_documents([5, 4, 6, 3] * 10), 65_000
    ended = [[*document, eos] for document in documents]
    uses, batches = [["same", 3, mode, 1.0]], []
    for number, written in enumerate((documents, ended, [*ended[:-1], documents[-1]])):
        path = write_pair(tmp_path / f"{number}", in_sequences(written), "int32")
        add_dataset(tmp_path, "same", None, eos_id=eos, path=path)
        config = model_config(tmp_path, uses)
        batches.append(data(config).batch(7, 50).tolist())
    assert batches[0] == batches[1]
    ends = np.array(batches[1]) == eos
    assert ends.any() and not (ends[:, :-1] & ends[:, 1:]).any()
    assert batches[2] != batches[1], "only where all documents end with it is it no part of them"


def test_documents_without_tokens_are_left_out(tmp_path: Path) -> None:
    """Empty texts make them, and the end of text that follows an empty text is one when it is taken off."""
    documents, eos = numbered_documents([14, 9, 30, 11] * 5), 65_000
    uses, batches = [["same", 1, "documents_random", 1.0]], []
    ended = [[*document, eos] for document in documents]
    for number, written in enumerate((documents, [[], *documents[:7], [], *documents[7:]], [[eos], *ended, [eos]])):
        path = write_pair(tmp_path / f"{number}", in_sequences(written), "int32")
        add_dataset(tmp_path, "same", None, eos_id=eos, path=path)
        config = model_config(tmp_path, uses)
        assert check_dataset(config, progress=False).problems == []
        batches.append(data(config).batch(3, 50).tolist())
    assert batches[0] == batches[1] == batches[2]


def test_the_report_counts_as_training_does(tmp_path: Path) -> None:
    """A document and its end of text fill a window; without it they do not."""
    path = write_pair(tmp_path / "a", in_sequences([[1, 2, 3, 4, 5, 6, 7, 8, 0]] * 4))
    add_dataset(tmp_path, "edge", None, eos_id=0, path=path)
    config = model_config(tmp_path, [["edge", 1, "documents_random", 1.0]])
    with pytest.raises(InputError, match="is 8 tokens long") as caught:
        data(config)
    assert check_dataset(config, progress=False).problems == [str(caught.value)]


def test_pairs_and_tfrecord_files_in_one_dataset(tmp_path: Path) -> None:
    documents = numbered_documents([9] * 12)
    folder = tmp_path / "mixed" / "train"
    add_dataset(tmp_path, "mixed", documents[4:8])
    write_pair(folder / "a", in_sequences(documents[:4]), "int32")
    write_pair(folder / "z", in_sequences(documents[8:]), "int64", "fairseq")
    add_dataset(tmp_path, "mixed", None, path=str(folder / "*"))
    config = model_config(tmp_path, [["mixed", 1, "chunks", 1.0]], shuffle_input_filenames=False)
    assert data(config).batch(0, 12).tolist() == documents
    assert sorted(os.listdir(folder)) == sorted(
        ["a.bin", "a.bin.index", "a.idx", "part_0.tfrecords", "part_0.tfrecords.index", "z.bin", "z.bin.index", "z.idx"]
    )
    assert data(config).batch(0, 12).tolist() == documents, "also with the index files beside them"


def test_only_the_window_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add_dataset(tmp_path, "long", None, path=write_pair(tmp_path / "long", [[list(range(1, 20_001))]] * 3, "int32"))
    samples = data(model_config(tmp_path, [["long", 1, "documents_random", 1.0]]))
    sizes: list[int] = []
    original = os.pread
    monkeypatch.setattr(os, "pread", lambda *arguments: sizes.append(arguments[1]) or original(*arguments))  # type: ignore[func-returns-value]
    window = samples.sample(3)
    assert np.all(np.diff(window) == 1)
    assert sizes == [9 * 4]


def test_held_out_pairs_and_the_report(tmp_path: Path) -> None:
    tokenizer = make_tokenizer(tmp_path / "tokenizer")
    documents = numbered_documents([20, 9, 13])
    train = write_pair(tmp_path / "train", in_sequences(documents))
    held_out = write_pair(tmp_path / "held_out", in_sequences(documents[:2]))
    keys: dict[str, Any] = {"path": train, "eval_path": held_out, "n_vocab": 400, "tokenizer_path": str(tokenizer)}
    add_dataset(tmp_path, "pair", None, **keys)
    config = model_config(tmp_path, [["pair", 1, "documents_random", 1.0]], n_vocab=400)
    predicted = [
        tokens[:, 1:][weights > 0].tolist() for tokens, weights in EvaluationData(config, progress=False).batches(2)
    ]
    assert list(chain(*predicted)) == list(chain(*documents[:2]))
    report = check_dataset(config, progress=False)
    text = "\n".join(report.lines())
    assert report.ok
    assert "files 1, documents 3, tokens 42" in text
    assert "token ids 1 to 42; n_vocab of the model is 400" in text
    assert all(len(dataset.samples) for dataset in report.datasets)
    add_dataset(tmp_path, "pair", None, **{**keys, "n_vocab": 30})
    config = model_config(tmp_path, [["pair", 1, "documents_random", 1.0]], n_vocab=30)
    problems = check_dataset(config, progress=False).problems
    assert any("train.bin: holds token id 42, and n_vocab" in problem for problem in problems)


def test_the_range_of_ids_is_kept_until_a_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_pair(tmp_path / "a", [[[1, 2]]])
    assert load_pair(path).max_id == 2
    monkeypatch.setattr(megatron, "_scan", lambda *_: (7, 7))
    assert load_pair(path).max_id == 2
    write_pair(tmp_path / "a", [[[1, 3]]])
    assert load_pair(path).max_id == 7
    Path(f"{path}.index").write_bytes(b"damaged")
    assert load_pair(path).max_id == 7


def refused(path: str) -> str:
    with pytest.raises(InputError) as caught:
        load_pair(path)
    line = str(caught.value)
    assert "\n" not in line
    assert path.removesuffix(".bin") in line
    return line


@pytest.mark.parametrize("kind", KINDS)
def test_every_truncation_is_found(tmp_path: Path, kind: str) -> None:
    path = write_pair(tmp_path / "a", [[[1, 2, 3], [4]], [[5]]], kind=kind)
    for name in ("a.bin", "a.idx"):
        whole = (tmp_path / name).read_bytes()
        for size in range(len(whole)):
            (tmp_path / name).write_bytes(whole[:size])
            refused(path)
        (tmp_path / name).write_bytes(whole)
    load_pair(path)


def test_what_is_no_pair(tmp_path: Path) -> None:
    path = write_pair(tmp_path / "a", [[[1, 2, 3]]])
    (tmp_path / "a.bin").write_bytes(bytes(8))
    assert "does not belong to its .idx: it has 8 bytes" in refused(path)
    assert "type code 7 is no type of token ids" in refused(write_pair(tmp_path / "b", [[[1]]], "float32"))
    assert "is of version 2" in refused(write_pair(tmp_path / "c", [[[1]]], version=2))
    assert "is cut off or damaged" in refused(write_pair(tmp_path / "d", [[[1]]], tail=b"too much"))
    load_pair(write_pair(tmp_path / "e", [[[1]], [[2]]], tail=b"\0\1"))  # modalities, a byte a sequence
    (tmp_path / "a.idx").write_bytes(b"text")
    assert "is no index of Megatron" in refused(path)
    path = write_pair(tmp_path / "f", [[[1, 2]], [[3]]])
    index = bytearray((tmp_path / "f.idx").read_bytes())
    for at, reason in ((-8, "do not cover"), (-40, "inside an id"), (-48, "do not follow one another")):
        damaged = index.copy()
        damaged[at] ^= 1
        (tmp_path / "f.idx").write_bytes(damaged)
        assert reason in refused(path), at


def test_half_a_pair(tmp_path: Path) -> None:
    write_pair(tmp_path / "a", [[[1, 2, 3]]])
    (tmp_path / "a.bin").rename(tmp_path / "elsewhere.bin")
    for name, reason in (("a.idx", "without its"), ("elsewhere.bin", "elsewhere.idx is not beside it")):
        add_dataset(tmp_path, "half", None, path=str(tmp_path / name))
        with pytest.raises(InputError, match=reason):
            data(model_config(tmp_path, [["half", 1, "documents_random", 1.0]]))


def test_a_file_cut_short_during_the_run(tmp_path: Path) -> None:
    path = write_pair(tmp_path / "a", [[list(range(1, 1000))]] * 4)
    add_dataset(tmp_path, "pair", None, path=path)
    samples = data(model_config(tmp_path, [["pair", 1, "documents_random", 1.0]]))
    samples.batch(0, 8)
    os.truncate(path, 10)
    with pytest.raises(InputError, match=r"a\.bin: ends before byte"):
        samples.batch(0, 8)
