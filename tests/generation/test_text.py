"""Text that comes token by token: joined it is the whole, and no part of it is taken back."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

from gpt_mesh.config import GenerationSettings
from gpt_mesh.data.encoders import Encoder, load_encoder
from gpt_mesh.data.special_tokens import SpecialTokens
from gpt_mesh.generation.text import INCOMPLETE, TextStream
from gpt_mesh.generation.writer import Writer
from tests.support.corpora import TEXTS, make_tokenizer
from tests.support.tokenizers import byte_fallback


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    """257 tokens and a few merges: most characters beyond ASCII take several."""
    return load_encoder(str(make_tokenizer(tmp_path_factory.mktemp("tokenizer"), n_vocab=300, texts=TEXTS)))


def parts(encoder, tokens, stop=(), least=0, before=()):
    stream = TextStream(encoder, stop, before)
    found = [stream.add(token, may_stop=i >= least) for i, token in enumerate(tokens, 1)]
    return [*found, stream.finish()], stream


@pytest.mark.parametrize("text", ["Über 世界 🌍🚀!", "καλημέρα", "a\tb\r\n  c", "👩‍👩‍👧‍👦"])
def test_characters_of_several_tokens_come_whole(encoder, text):
    tokens = encoder.encode(text)
    assert len(tokens) > len(text.split())
    found, _ = parts(encoder, tokens)
    assert "".join(found) == text and not any(INCOMPLETE in part for part in found)


def test_any_tokens_give_the_text_of_all(encoder):
    """Broken characters too, and ids that no token has."""
    rng = random.Random(1)
    for _ in range(300):
        tokens = [rng.randrange(310) for _ in range(rng.randrange(12))]
        assert "".join(parts(encoder, tokens)[0]) == encoder.decode(tokens)


def test_an_id_without_a_token_is_not_held_back_for_ever(encoder):
    stream = TextStream(encoder)
    assert stream.add(305) == ""
    assert stream.add(encoder.encode("a")[0]) == INCOMPLETE + "a"


@pytest.mark.parametrize(
    ("text", "stop", "shown"),
    [
        ("one two three", ["two"], "one "),
        ("one two three", ["x", "three", "e t"], "on"),  # the first that is there, not the first that is listed
        ("aaab", ["aab"], "a"),
        ("世界 🌍🚀!", ["🚀"], "世界 🌍"),
        ("no such thing", ["things"], "no such thing"),
    ],
)
def test_text_ends_before_a_stop_string_whatever_the_tokens(encoder, text, stop, shown):
    tokens = encoder.encode(text)
    found, stream = parts(encoder, tokens, stop)
    assert "".join(found) == shown and stream.stopped == (shown != text)
    # What may be the beginning of a stop string is not shown before it is clear that it is not.
    for i in range(len(found)):
        assert not any("".join(found[:i]).endswith(s[:n]) for s in stop for n in range(2, len(s) + 1)) or i == len(
            found
        )


def test_a_stop_string_in_the_first_tokens_is_text(encoder):
    tokens = encoder.encode("1,2,3,4")
    found, stream = parts(encoder, tokens, [","], least=5)
    assert "".join(found) == "1,2,3" and stream.stopped


WORDS = {
    "metaspace": (decoders.Metaspace(), {"▁the": 0, "▁mill": 1, "<|endoftext|>": 2}),
    "wordpiece": (decoders.WordPiece(cleanup=False), {"the": 0, "mill": 1, "<|endoftext|>": 2}),
}


@pytest.mark.parametrize("kind", WORDS)
def test_a_space_between_prompt_and_text_is_in_the_text(kind):
    """Such tokenizers write no space before the first token of what they are given."""
    decoder, vocabulary = WORDS[kind]
    tokenizer = Tokenizer(models.WordLevel(vocabulary, "the"))
    tokenizer.decoder = decoder
    encoder = Encoder(tokenizer, kind)
    for prompt, text in (([0], " mill the"), ([1, 0], " mill the"), ([0, 2], "mill the"), ([], "mill the")):
        writer = Writer(0, GenerationSettings(), prompt, 2, encoder, SpecialTokens(None, (2,)))
        assert writer.whole([1, 0], ended=False).text == text


def test_half_a_character_of_the_prompt_takes_nothing_from_the_text(encoder):
    first, *second = encoder.encode("世a")
    assert encoder.decode([first]) == INCOMPLETE
    assert "".join(parts(encoder, second, before=[first])[0]) == encoder.decode(second)
    for text in ("世界", "mill", "é"):
        assert "".join(parts(encoder, encoder.encode(" 🌍a"), before=encoder.encode(text))[0]) == " 🌍a"


# Byte fallback


@pytest.mark.parametrize("kind", ["llama", "gemma"])
def test_text_of_byte_fallback_is_what_the_library_decodes(kind: str) -> None:
    tokenizer = byte_fallback(kind)
    encoder = Encoder(tokenizer, kind)
    n_vocab = encoder.n_vocab

    @settings(deadline=None, max_examples=300)
    @given(
        st.lists(st.integers(3, n_vocab - 1) | st.sampled_from(encoder.encode("日本é😀he h")), max_size=14),
        st.sampled_from([[], encoder.encode("he hi"), encoder.encode("h日"), encoder.encode("é")]),
    )
    def check(tokens: list[int], before: list[int]) -> None:
        stream = TextStream(encoder, (), before)
        streamed = "".join(map(stream.add, tokens)) + stream.finish()
        so_far = tokenizer.decode(before, skip_special_tokens=False)
        assert streamed == tokenizer.decode([*before, *tokens], skip_special_tokens=False)[len(so_far) :]

    check()


def test_text_of_byte_fallback_is_not_held_longer_than_its_bytes() -> None:
    encoder = Encoder(byte_fallback("gemma"), "gemma")
    stream = TextStream(encoder)
    assert [stream.add(token) for token in encoder.encode("he日he")] == ["he", "", "", "", "日he"]
