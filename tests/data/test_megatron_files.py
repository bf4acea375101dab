"""Merging, splitting and weighing token files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gpt_mesh.data.corpus import load_corpus
from gpt_mesh.data.megatron_files import main, parse_split, split_bounds, weights_by_documents
from gpt_mesh.data.megatron_output import PairWriter
from gpt_mesh.errors import InputError
from tests.support.corpora import add_dataset

DOCUMENTS = [[number, number + 1] for number in range(20)]


def write(path: Path, documents: list[list[int]], kind: str = "<u2") -> str:
    with PairWriter(str(path), kind) as writer:
        writer.add_all(documents)
    return str(path)


def read(path: Path) -> list[list[int]]:
    corpus = load_corpus([str(path)])
    return [ids.tolist() for ids in corpus.read_tokens(np.arange(len(corpus)))]


def test_merged_pairs_hold_all_documents_in_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = write(tmp_path / "a.bin", DOCUMENTS[:3]), write(tmp_path / "b.bin", [[70000]], "<i4")
    out = tmp_path / "all.bin"
    assert main(["merge", str(out), first, second]) == 0
    assert read(out) == [*DOCUMENTS[:3], [70000]]
    assert "4 documents of 2 files" in capsys.readouterr().out
    whole = write(tmp_path / "whole.bin", [*DOCUMENTS[:3], [70000]], "<i4")
    assert Path(whole).read_bytes() == out.read_bytes()
    assert Path(whole).with_suffix(".idx").read_bytes() == out.with_suffix(".idx").read_bytes()
    assert main(["merge", str(out), first]) == 1
    assert "already exists; add --overwrite" in capsys.readouterr().err
    assert main(["merge", str(out), first, "--overwrite"]) == 0 and read(out) == DOCUMENTS[:3]


def test_tfrecords_become_a_pair(tmp_path: Path) -> None:
    add_dataset(tmp_path, "tiny", DOCUMENTS, n_vocab=64, files=2)
    files = sorted(str(path) for path in tmp_path.rglob("*.tfrecords"))
    assert main(["merge", str(tmp_path / "out.bin"), *files]) == 0
    assert sorted(read(tmp_path / "out.bin")) == DOCUMENTS


def test_a_split_is_megatron_s(tmp_path: Path) -> None:
    path = write(tmp_path / "a.bin", DOCUMENTS)
    assert main(["split", path.removesuffix(".bin"), "--split", "8,1,1"]) == 0
    assert [read(tmp_path / f"a_{name}.bin") for name in ("train", "valid", "test")] == [
        DOCUMENTS[:16], DOCUMENTS[16:18], DOCUMENTS[18:],
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "documents", "bounds"),
    [
        ("969,30,1", 1000, [0, 969, 999, 1000]),
        ("969,30,1", 10_000, [0, 9690, 9990, 10_000]),
        ("0.5/0.5", 3, [0, 1, 3, 3]),
        ("1", 7, [0, 7, 7, 7]),
        ("1,1,1", 10, [0, 4, 7, 10]),
    ],
)
def test_bounds_of_splits(text: str, documents: int, bounds: list[int]) -> None:
    """As `get_train_valid_test_split_` computes them: rounded, then all but the first moved by the excess."""
    assert split_bounds(parse_split(text), documents) == bounds


@pytest.mark.parametrize("text", ["", "a", "1,2,3,4", "-1,2", "0,0", "inf"])
def test_splits_that_are_none(text: str) -> None:
    with pytest.raises(InputError, match="must be one to three numbers"):
        parse_split(text)


def test_weights_by_documents() -> None:
    assert weights_by_documents([7]) == [1.0]
    assert weights_by_documents([5, 5]) == [0.5, 0.5]
    flat = weights_by_documents([1, 99], alpha=0.3)
    even = weights_by_documents([1, 99], alpha=1.0)
    assert sum(flat) == pytest.approx(1) and flat[0] > flat[1] and even == pytest.approx([0.5, 0.5])


def test_mistakes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "a.bin", DOCUMENTS)
    for arguments, words in [
        (["merge", str(tmp_path / "x.bin"), str(tmp_path / "none.bin")], "none.bin: matches no file"),
        (["merge", str(tmp_path / "x.dat"), path], "x.dat: must end in .bin"),
        (["merge", path, path], "is one of the files to merge"),
        (["merge", str(tmp_path / "x.bin"), path, "--n_vocab", "5"], "holds token id 20, and --n_vocab is 5"),
        (["split", path, "--split", "x"], "--split x: must be"),
    ]:
        assert main(arguments) == 1
        err = capsys.readouterr().err
        assert words in err and err.count("\n") == 1


def test_weighing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [write(tmp_path / "a.bin", DOCUMENTS), write(tmp_path / "b.bin", DOCUMENTS)]
    assert main(["weigh", *paths]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["0.500000", "0.500000"]
