"""Bytes per token: exact for byte-level BPE, whatever the text."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models

from gpt_mesh.data.bytes import byte_lengths
from gpt_mesh.data.encoders import Encoder, load_encoder
from gpt_mesh.errors import InputError
from tests.support.corpora import END_OF_TEXT, PADDING, make_tokenizer
from tests.support.tokenizers import byte_fallback, byte_level, metaspace, words


@pytest.fixture(scope="module")
def tokenizer_file(tmp_path_factory):
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@settings(deadline=None)
@given(text=st.text().filter(lambda text: END_OF_TEXT not in text and PADDING not in text))  # they count as no text
def test_the_sum_over_a_text_is_its_length_in_utf8(tokenizer_file, text):
    encoder = load_encoder(str(tokenizer_file))
    assert byte_lengths(encoder)[encoder.encode(text)].sum() == len(text.encode())


def test_special_tokens_are_no_text(tokenizer_file):
    encoder = load_encoder(str(tokenizer_file))
    table = byte_lengths(encoder)
    assert len(table) == encoder.n_vocab
    assert [encoder.encode(token) for token in (END_OF_TEXT, PADDING)] == [[0], [1]]
    assert table[:2].tolist() == [0, 0]
    assert (table[2:] >= 1).all()


def test_added_tokens_that_are_text_count_as_text(tokenizer_file):
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    tokenizer.add_tokens([AddedToken("→ café", normalized=False)])
    encoder = Encoder(tokenizer, "a file")
    assert byte_lengths(encoder)[encoder.encode("a → café!")].sum() == len("a → café!".encode())


def test_a_tokenizer_that_is_not_byte_level_is_refused():
    tokenizer = Tokenizer(models.WordLevel({"日本": 0, "[UNK]": 1}, unk_token="[UNK]"))
    with pytest.raises(InputError, match="byte-level BPE"):
        byte_lengths(Encoder(tokenizer, "a file"))


@pytest.mark.parametrize(
    "tokenizer",
    [
        words(),
        metaspace(),
        byte_fallback("llama"),
        byte_level(nfkc=True),
        byte_level(prefix_space=True),
        byte_level(regex=r"\s+", behavior="removed"),
    ],
    ids=["words", "metaspace", "byte_fallback", "nfkc", "prefix_space", "removes spaces"],
)
def test_tokens_that_do_not_have_the_bytes_of_the_text(tokenizer: Tokenizer) -> None:
    """Also where every token is ASCII, which says nothing of the text."""
    with pytest.raises(InputError, match="its tokens do not have the bytes of the text"):
        byte_lengths(Encoder(tokenizer, "a file"))


@given(text=st.text().filter(lambda text: END_OF_TEXT not in text))
def test_a_pattern_of_its_own_keeps_all_bytes(text: str) -> None:
    encoder = Encoder(SPLIT_BY_PATTERN, "a file")
    assert byte_lengths(encoder)[encoder.encode(text)].sum() == len(text.encode())


SPLIT_BY_PATTERN = byte_level(regex=r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|\s+")
