"""Pairs of token files as Megatron-LM's own writer makes them."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from gpt_mesh.data.corpus import load_corpus
from gpt_mesh.data.megatron_output import PairWriter, id_type

DOCUMENTS = [[5, 7, 11], [], [65000], list(range(100))]


def megatron_index(lengths: list[int], code: int, width: int) -> bytes:
    """The .idx as `MMapIndexedDataset.Index.writer` and `IndexedDatasetBuilder` write it, field by field."""
    pointers, at = [], 0
    for length in lengths:
        pointers.append(at)
        at += length * width
    parts = [b"MMIDIDX\x00\x00", struct.pack("<Q", 1), struct.pack("<B", code), struct.pack("<Q", len(lengths))]
    parts.append(struct.pack("<Q", len(lengths) + 1))
    parts += [struct.pack("<i", length) for length in lengths]
    parts += [struct.pack("<q", pointer) for pointer in pointers]
    parts += [struct.pack("<q", document) for document in range(len(lengths) + 1)]
    return b"".join(parts)


@pytest.mark.parametrize(("n_vocab", "code", "kind"), [(65499, 8, "<u2"), (65500, 4, "<i4"), (10, 8, "<u2")])
def test_the_files_are_megatron_s(tmp_path: Path, n_vocab: int, code: int, kind: str) -> None:
    path = tmp_path / "a.bin"
    with PairWriter(str(path), id_type(n_vocab)) as writer:
        writer.add_all(DOCUMENTS)
        assert not path.exists()
    assert path.read_bytes() == b"".join(np.array(ids, kind).tobytes() for ids in DOCUMENTS)
    expected = megatron_index([len(ids) for ids in DOCUMENTS], code, np.dtype(kind).itemsize)
    assert path.with_suffix(".idx").read_bytes() == expected


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    with PairWriter(str(path), "<i4") as writer:
        writer.add_all([[1, -3], [2]])
    corpus = load_corpus([str(path)])
    assert [ids.tolist() for ids in corpus.read_tokens(np.arange(2))] == [[1, -3], [2]]
    assert corpus.id_ranges == ((-3, 2),)


def test_an_exception_leaves_no_files(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), PairWriter(str(tmp_path / "a.bin"), "<i4") as writer:
        writer.add([1])
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_a_pair_of_no_documents(tmp_path: Path) -> None:
    with PairWriter(str(tmp_path / "a.bin"), "<u2"):
        pass
    assert (tmp_path / "a.idx").read_bytes() == megatron_index([], 8, 2)
