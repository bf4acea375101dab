"""Documents that a program has in memory: what is taken, and what is refused in which words."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from gpt_mesh.data.characters import character_encoder
from gpt_mesh.data.in_memory import documents_of, encoded, is_marked, joined
from gpt_mesh.data.marks import marked, unmarked
from gpt_mesh.errors import InputError

CHARACTERS = character_encoder(["abc", "\n é"])


def ids_of(data: Any, eos_id: int | None = 0) -> list[list[int]]:
    return [ids.tolist() for ids in encoded(documents_of(data, "data", 10**6), CHARACTERS, eos_id)]


def test_a_token_is_a_character() -> None:
    assert CHARACTERS.n_vocab == 8 and CHARACTERS.eos_id == 0
    text = "é\n\nb a"
    assert CHARACTERS.decode(CHARACTERS.encode(text)) == text and len(CHARACTERS.encode(text)) == len(text)
    assert CHARACTERS.encode("aXb") == [4, 1, 5]
    assert CHARACTERS.encode("<|endoftext|>") == [0] and len(CHARACTERS.encode_documents(["<|endoftext|>"])[0]) == 13


@pytest.mark.parametrize(
    "data",
    [
        "abc",
        ["abc"],
        iter(["abc"]),
        [4, 5, 6],
        (4, 5, 6),
        np.array([4, 5, 6], np.uint16),
        np.array([[4, 5, 6]]),
        [[4, 5, 6]],
        [np.array([4, 5, 6])],
        range(4, 7),
        {"text": "abc", "url": 3},
        [{"input_ids": [4, 5, 6]}],
        [{"tokens": np.array([4, 5, 6]), "loss_mask": [1, 1, 1]}],
    ],
)
def test_one_document_in_every_form(data: Any) -> None:
    assert ids_of(data) == [[4, 5, 6]]


def test_what_is_not_learned_is_marked() -> None:
    assert ids_of([("ab", "c")]) == [[~4, ~5, 6, 0]]
    assert ids_of([("ab", "c")], eos_id=None) == [[~4, ~5, 6]]
    assert ids_of([{"prompt": "ab", "completion": "c"}]) == [[~4, ~5, 6, 0]]
    assert ids_of([([4, 5], [True, False])]) == [[4, ~5]]
    assert ids_of([{"input_ids": [4, 5, 6], "labels": [-100, -100, 6]}]) == [[~4, ~5, 6]]
    assert is_marked(documents_of([("ab", "c")], "data", 9)) and not is_marked(documents_of(["ab"], "data", 9))
    assert unmarked(marked([3, 0], [0, 0])).tolist() == [3, 0]


def test_an_endless_iterator_is_read_as_far_as_needed() -> None:
    endless = (f"{number}" for number in itertools.count())
    assert len(documents_of(endless, "data", 10)) == 10
    assert next(endless) == "10"
    assert len(documents_of(["a"] * 20, "data", 10)) == 20


def test_joined_documents_have_one_end_of_text_between_them() -> None:
    parts = [np.array(ids, np.int32) for ids in ([1, 2], [3, 0], [4])]
    assert joined(parts, 0).tolist() == [1, 2, 0, 3, 0, 4]
    assert joined(parts, None).tolist() == [1, 2, 3, 0, 4]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (3, 'data = "int": must be texts or token ids'),
        (b"abc", 'data = "bytes": must be texts'),
        ([], "data: holds no token"),
        ([""], "data: holds no token"),
        (np.zeros((2, 3, 4), int), r"data\[0\]: ids of type int64 and shape \[3, 4\]; give integers \[n\]"),
        (np.zeros((2, 3)), r"data\[0\]: ids of type float64"),
        ([[1, 2], [3, [4]]], r"data\[1\]: neither a text nor ids of one document"),
        ([[1, -2]], r"data\[0\]: ids from -2 to 1; they must be from 0"),
        ([{"words": "a"}], r"data\[0\]: has words; a row has `text`"),
        (["a", {}], r"data\[1\]: has no keys"),
        ([([1, 2], [1])], r"data\[0\]: 2 ids with a mask of shape \[1\]"),
        ([("a", 3)], r"data\[0\]: ids of type"),
        ([None], r"data\[0\]"),
    ],
)
def test_what_is_no_document(data: Any, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        documents_of(data, "data", 10)
    assert "\n" not in str(caught.value)
