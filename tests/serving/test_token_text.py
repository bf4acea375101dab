"""Names of single tokens, and their places in a text."""

from __future__ import annotations

import pytest

from gpt_mesh.data.encoders import load_encoder
from gpt_mesh.generation.requests import TokenLogprob
from gpt_mesh.serving.answers import Logprobs
from gpt_mesh.serving.token_text import UNBOUNDED, TokenText
from tests.support.runs import Workspace


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
