"""Documents on their way to records: every token is accounted for, and a stop anywhere changes nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt_mesh.data import shards
from gpt_mesh.data.account import Account
from gpt_mesh.data.encoding import Document
from gpt_mesh.data.manifest import SplitState
from gpt_mesh.data.reading import DocumentPlace, Origin, Position
from gpt_mesh.data.shards import Chunks, Documents, Split
from gpt_mesh.data.tfrecords import load_index, parse_records, read_records
from gpt_mesh.errors import InputError

DOCUMENT_IDS = st.lists(st.lists(st.integers(0, 99), max_size=30), max_size=20)


def made(documents: list[list[int]], duplicates: frozenset[int] = frozenset()) -> list[Document]:
    return [
        Document(
            Origin(DocumentPlace(number // 3, number % 3), False, number in duplicates),
            np.array(ids, np.int32),
            len(ids),
        )
        for number, ids in enumerate(documents)
    ]


@given(
    st.lists(st.lists(st.integers(0, 99), min_size=1, max_size=30), max_size=20),
    st.lists(st.integers(0, 99), max_size=3),
    st.integers(2, 20),
)
def test_chunks(documents: list[list[int]], separator: list[int], size: int) -> None:
    account = Account()
    chunks = Chunks(size, separator, np.arange(100))
    found = [record for document in made(documents) for record in chunks.add(document, account)]
    chunks.finish(account)
    stream = [token for ids in documents for token in (*ids, *separator)]
    expected = [stream[start : start + size] for start in range(0, len(stream) - size + 1, size)]
    assert [record.ids.tolist() for record in found] == expected
    assert [record.bytes for record in found] == [sum(ids) for ids in expected]
    assert account.dropped_tokens.total() == len(stream) % size
    assert account.separators == len(documents) * len(separator)
    lengths = {document.origin.place: len(document.ids) + len(separator) for document in made(documents)}
    before = {place: sum(length for other, length in lengths.items() if other < place) for place in lengths}
    for number, record in enumerate(found):
        assert before[record.first.place] + record.first.token == number * size
        assert before[record.last.place] + record.last.token == number * size + size
        assert record.first.token < lengths[record.first.place]
        assert 0 < record.last.token <= lengths[record.last.place]
    begun = sum(record.documents for record in found) + account.dropped_documents.total()
    assert begun == len(documents)


@pytest.mark.parametrize("mode", ["documents", "chunks"])
@settings(max_examples=25, deadline=None)
@given(
    documents=DOCUMENT_IDS.filter(lambda documents: sum(map(len, documents)) > 30),
    duplicates=st.frozensets(st.integers(0, 19)),
    size=st.integers(2, 9),
    minimum=st.integers(0, 9),
    per_file=st.integers(1, 3),
)
def test_stopping_after_any_document_and_going_on(
    tmp_path_factory: pytest.TempPathFactory,
    mode: str,
    documents: list[list[int]],
    duplicates: frozenset[int],
    size: int,
    minimum: int,
    per_file: int,
) -> None:
    corpus = made(documents, duplicates)

    def run(folder: Path, stop: int | None, state: SplitState) -> Account:
        """Write the documents up to `stop`, from where `state` left off."""
        packer = Chunks(size, [0]) if mode == "chunks" else Documents()
        split = Split(str(folder), "x", packer, state, minimum_size=minimum, records_per_file=per_file)
        start = state.position.place if state.position else DocumentPlace(0, 0)
        for document in corpus[:stop]:
            if document.origin.place >= start:
                split.add(document)
        split.abandon() if stop is not None else split.finish()
        return split.account

    folder = tmp_path_factory.mktemp("shards")
    whole = SplitState()
    (folder / "whole").mkdir()
    account = run(folder / "whole", None, whole)
    assert account.documents_read == len(corpus)
    assert account.tokens_read == sum(map(len, documents))
    assert account == whole.account
    expected = {path.name: path.read_bytes() for path in (folder / "whole").iterdir()}
    assert {shard.file for shard in whole.shards} == set(expected)
    for stop in range(len(corpus)):
        parts = SplitState()
        (folder / str(stop)).mkdir()
        run(folder / str(stop), stop, parts)
        run(folder / str(stop), None, parts)
        assert {path.name: path.read_bytes() for path in (folder / str(stop)).iterdir()} == expected
        assert parts == whole


def test_an_account_that_does_not_add_up() -> None:
    with pytest.raises(AssertionError):
        Account(tokens_read=5, tokens_written=4).check()
    with pytest.raises(AssertionError):
        Account(documents_read=5, documents_written=4).check()


def test_an_account_as_json() -> None:
    account = Account()
    account.read(7, 20)
    account.read(2, 3)
    account.drop("short", 2, 1)
    account.written(7, 1)
    assert Account.from_json(account.to_json()) == account


def test_what_a_shard_says_of_itself(tmp_path: Path) -> None:
    state = SplitState()
    split = Split(str(tmp_path), "x", Documents(), state, minimum_size=2, records_per_file=2)
    for document in made([[1, 2, 3], [4], [5, 6], [7, 8, 9, 9]]):
        split.add(document)
    split.finish()
    first, second = state.shards
    assert (first.file, first.records, first.documents, first.tokens, first.bytes) == ("x_0_2.tfrecords", 2, 2, 5, 5)
    assert (first.first, first.last) == (Position(DocumentPlace(0, 0), 0), Position(DocumentPlace(0, 2), 2))
    assert second.first == Position(DocumentPlace(1, 0), 0)
    index = load_index(tmp_path / second.file)
    values, _ = parse_records(read_records(tmp_path / second.file, index.offsets, index.sizes))
    assert values.tolist() == [7, 8, 9, 9]
    assert first.size == (tmp_path / first.file).stat().st_size


def test_a_document_too_long_for_a_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "_LARGEST_RECORD", 100)
    split = Split(str(tmp_path), "x", Documents(), SplitState(), minimum_size=0, records_per_file=2)
    with pytest.raises(InputError, match=r"200 tokens is too long for one record .*; use --mode chunks"):
        split.add(made([[1] * 200])[0])
    split.abandon()
    assert list(tmp_path.iterdir()) == []
