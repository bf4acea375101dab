"""Names of single tokens, and their places in a text."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from tokenizers import Tokenizer

from gpt_mesh.data.encoders import Encoder, load_encoder
from gpt_mesh.generation.requests import TokenLogprob
from gpt_mesh.serving.answers import Logprobs
from gpt_mesh.serving.token_text import UNBOUNDED, TokenPlaces, TokenText
from tests.support.runs import Workspace
from tests.support.tokenizers import byte_fallback, byte_level, metaspace, words


@pytest.fixture(scope="module")
def names(workspace: Workspace) -> TokenText:
    return TokenText(load_encoder(str(workspace.tokenizer)))


def test_the_bytes_of_tokens_make_up_the_text(names: TokenText, workspace: Workspace) -> None:
    encoder = load_encoder(str(workspace.tokenizer))
    for text in ("import os\n\n", "Über 世界 🌍\x00\x7f\xad", " ", "<|endoftext|>"):
        assert b"".join(map(names.data, encoder.encode(text))) == text.encode()
    assert max(len(names.data(token)) for token in range(encoder.n_vocab)) <= names.longest < UNBOUNDED


def test_a_part_of_a_character_is_named_by_its_bytes(names: TokenText, workspace: Workspace) -> None:
    first, *rest = load_encoder(str(workspace.tokenizer)).encode("€")
    assert rest and names.name(first) == "bytes:\\xe2"


def test_offsets_count_characters_of_the_text(workspace: Workspace, names: TokenText) -> None:
    encoder = load_encoder(str(workspace.tokenizer))
    broken = encoder.encode("世")[0]
    tokens = [*encoder.encode("a世"), broken, *encoder.encode("b"), broken, broken, *encoder.encode("🌍c")]
    text = encoder.decode(tokens)
    logprobs = Logprobs(names, 0)
    logprobs.add([TokenLogprob(token, "", -1.0) for token in tokens])
    found = logprobs.take()
    for name, offset in zip(found["tokens"], found["text_offset"], strict=True):
        if not name.startswith("bytes:"):
            assert text[offset : offset + len(name)] == name
    assert found["tokens"][-1] == "c" and found["text_offset"][-1] == len(text) - 1
    assert logprobs.take()["tokens"] == [], "what was taken is gone"


# Tokenizers of other kinds

PATTERN = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|\s+"
KINDS: dict[str, Callable[[], Tokenizer]] = {
    "nfkc": lambda: byte_level(nfkc=True),
    "prefix space": lambda: byte_level(prefix_space=True),
    "pattern": lambda: byte_level(regex=PATTERN),
    "llama": lambda: byte_fallback("llama"),
    "gemma": lambda: byte_fallback("gemma"),
    "metaspace": metaspace,
    "words": words,
}


@pytest.fixture(params=KINDS, scope="module")
def any_kind(request: pytest.FixtureRequest) -> TokenText:
    return TokenText(Encoder(KINDS[request.param](), request.param))


PROMPTS = ("he said hi", "hi hé there", " he  hi", "日本語 😀 he", "ﬁ he ﬁ", "hi", "h")


def test_offsets_in_a_prompt_lie_in_it(any_kind: TokenText) -> None:
    for text in PROMPTS:
        tokens = any_kind.encoder.encode(text)
        offsets = any_kind.offsets(text, tokens)
        assert len(offsets) == len(tokens) and offsets == sorted(offsets)
        assert all(0 <= offset < len(text) for offset in offsets), (text, offsets)
        if any_kind.encoder.source in ("nfkc", "words"):  # their names are not the text's characters
            continue
        for token, offset in zip(tokens, offsets, strict=True):
            name = any_kind.name(token)
            if offset and not name.startswith("bytes:") and "<unk>" not in name:
                assert text[offset : offset + len(name)] == name, (text, name, offset)


def test_offsets_of_generated_text(any_kind: TokenText) -> None:
    """Each token begins where the text ends that all before it decode to, whatever comes before."""
    encoder = any_kind.encoder
    for before in ([], encoder.encode("he hi")):
        for text in PROMPTS:
            tokens = encoder.encode(text)
            sent = encoder.decode([*before, *tokens])[len(encoder.decode(before)) :]
            logprobs = Logprobs(any_kind, 0, before[-1] if before else None)
            logprobs.add([TokenLogprob(token, "", -1.0) for token in tokens])
            found = logprobs.take()["text_offset"]
            for place, offset in enumerate(found):
                so_far = encoder.decode([*before, *tokens[:place]])[len(encoder.decode(before)) :]
                if "\ufffd" not in so_far:
                    assert offset == len(so_far), (before, text, place)
            assert all(0 <= offset <= len(sent) for offset in found)


def test_parts_of_characters_have_names_of_their_own(any_kind: TokenText) -> None:
    encoder = any_kind.encoder
    if encoder.source in ("metaspace", "words"):
        return
    tokens = encoder.encode("😀")
    parts = [token for token in tokens if any_kind.name(token).startswith("bytes:")]
    assert len(parts) >= 2 and len({any_kind.name(token) for token in parts}) == len(set(parts))
    assert b"".join(map(any_kind.data, tokens)).strip() == "😀".encode()


def test_names_keep_leading_spaces(any_kind: TokenText) -> None:
    if any_kind.encoder.source != "words":
        assert [any_kind.name(token) for token in any_kind.encoder.encode("h he")][-1].startswith(" h")


def test_a_run_of_bytes_that_is_no_text() -> None:
    names = TokenText(Encoder(byte_fallback("gemma"), "gemma"))
    first, *rest = names.encoder.encode("é")
    tokens = [*names.encoder.encode("h"), first, first, *rest, *names.encoder.encode("i")]
    assert names.encoder.decode(tokens) == "h\ufffd\ufffd\ufffdi"
    places = TokenPlaces(names)
    assert [places.add(token) for token in tokens][-1] == 4


def test_of_two_tokens_with_one_name_the_likelier_is_told() -> None:
    names = TokenText(Encoder(byte_fallback("gemma"), "gemma"))
    vocabulary = names.encoder.tokenizer.get_vocab()
    letter, byte = vocabulary["h"], vocabulary["<0x68>"]
    assert names.name(letter) == names.name(byte) == "h"
    logprobs = Logprobs(names, 2)
    logprobs.add([TokenLogprob(byte, "", -3.0, ((letter, "", -0.5), (byte, "", -3.0)))])
    assert logprobs.take()["top_logprobs"] == [{"h": -0.5}]
