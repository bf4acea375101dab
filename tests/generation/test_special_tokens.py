"""Texts begin with the token that a dataset config names, and each of several ends ends them."""

from __future__ import annotations

import numpy as np
import pytest

from gpt_mesh import api
from gpt_mesh.config import GenerationSettings, load_config
from gpt_mesh.data.encoders import load_encoder
from gpt_mesh.data.special_tokens import SpecialTokens
from gpt_mesh.generation.decoder import Decoder
from gpt_mesh.generation.generator import Defaults, Generator
from gpt_mesh.generation.requests import GenerationRequest
from gpt_mesh.sample import Row
from tests.support.corpora import numbered_documents
from tests.support.decoding import generate
from tests.support.models import make_engine, tiny_config
from tests.support.runs import Workspace


def test_each_end_ends_a_text() -> None:
    engine = make_engine(tiny_config())
    rows = [Row([1 + length] * length, 12, 0) for length in (4, 9, 11)]
    without = generate(engine, rows, 0.0)
    ends = (without[0][3], without[1][5])

    def until(tokens: list[int]) -> list[int]:
        return tokens[: min((place for place, token in enumerate(tokens) if token in ends), default=len(tokens))]

    wanted = [until(tokens) for tokens in without]
    assert len({*map(len, wanted)}) > 1
    assert generate(engine, rows, 0.0, eos_ids=ends) == wanted
    least = generate(engine, [Row([1] * 4, 12, 0, min_new_tokens=9)], 0.0, eos_ids=ends)[0]
    assert len(least) >= 9 and not {*ends} & {*least[:9]}


def test_beams_end_with_each_end(workspace: Workspace) -> None:
    """Every text of up to 2 tokens over a vocabulary of 16, of which two end it, by a full pass."""
    engine, ends, prompt = make_engine(tiny_config(n_vocab=16)), (15, 9), [1, 0, 3]
    texts = [(a, b) for a in range(16) if a not in ends for b in range(16)] + [(end,) for end in ends]
    padded = np.array([[*prompt, *text, 0][: len(prompt) + 2] for text in texts])
    logits = np.asarray(engine.logits(padded))[:, len(prompt) - 1 : -1].astype(np.float64)
    logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    scores = {
        text: sum(row[token] for row, token in zip(rows, text, strict=False)) / len(text)
        for text, rows in zip(texts, logs, strict=True)
    }
    best = sorted(scores, key=scores.__getitem__, reverse=True)[:3]
    encoder = load_encoder(str(workspace.tokenizer))
    model = Generator(encoder, SpecialTokens(None, ends), Defaults(64, None, 1), Decoder(engine, ends))
    settings = GenerationSettings(num_beams=64, max_new_tokens=2)
    found = model.beam(GenerationRequest(prompt, settings))[:3]
    assert [one.tokens for one in found] == [tuple(token for token in text if token not in ends) for text in best]
    assert [one.score for one in found] == pytest.approx([scores[text] for text in best], abs=1e-4)


def test_texts_begin_with_it(workspace: Workspace) -> None:
    """Prompts, empty ones too, and texts that are scored."""
    workspace.dataset("begun", numbered_documents([60]), bos_id=4, eos_id=0, stop_token_ids=[3])
    path = workspace.config("begins", datasets=[["begun", 1, "documents_random", 1.0]])
    config = load_config(str(path))
    assert config.data.datasets[0].dataset.bos_id == 4
    api.train(config)
    model = api.load(config)
    ids = model.encoder.encode("import os")
    tokens = model.generator().prompt_tokens
    settings = GenerationSettings()
    assert tokens(GenerationRequest("import os", settings)) == [4, *ids]
    assert tokens(GenerationRequest(model.encoder.decode([4]) + "import os", settings))[0] == 4
    assert tokens(GenerationRequest("", settings)) == [4]
    assert tokens(GenerationRequest([5, 6], settings)) == [5, 6], "ids are taken as they are"
    score = model.score("import os")
    assert score.tokens == ids and None not in score.logprobs
    logits = model.logits([4, *ids])[:-1].astype(np.float64)
    logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    np.testing.assert_allclose(score.logprobs, logs[np.arange(len(ids)), ids], atol=1e-4)  # type: ignore[arg-type]
    assert model.special_tokens == SpecialTokens(4, (0, 3))
