"""Requests with settings of their own in one batch, streams, log-probabilities, beams and files of prompts."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest

from gpt_mesh.config import GenerationSettings, generation_settings
from gpt_mesh.data.encoders import load_encoder
from gpt_mesh.data.special_tokens import SpecialTokens
from gpt_mesh.errors import InputError
from gpt_mesh.generation import files
from gpt_mesh.generation.decoder import Decoder
from gpt_mesh.generation.generator import Defaults, Generator
from gpt_mesh.generation.output import Form, write
from gpt_mesh.generation.requests import Event, GenerationRequest
from tests.support.corpora import TEXTS, make_tokenizer
from tests.support.counting import Counting
from tests.support.models import ONE_LAYER, enlarge_weights, make_engine, tiny_config, unoptimised_graphs

N_CTX, N_VOCAB = 32, 264


@pytest.fixture(scope="module", autouse=True)
def quickly():
    with unoptimised_graphs():
        yield


def engine_of(**keys):
    engine = make_engine(tiny_config(**ONE_LAYER, n_ctx=N_CTX, **keys), compiled=False)
    engine.create_variables(training=False)
    enlarge_weights(engine)
    return engine


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return load_encoder(str(make_tokenizer(tmp_path_factory.mktemp("tokenizer"), n_vocab=260, texts=TEXTS)))


@pytest.fixture(scope="module")
def generator(encoder):
    engine = engine_of(n_vocab=N_VOCAB)
    special = SpecialTokens(None, encoder.eos_ids)
    return Generator(encoder, special, Defaults(N_CTX, None, 1), Decoder(engine, special.eos_ids))


def request(prompt, **settings):
    return GenerationRequest(prompt, generation_settings({"max_new_tokens": 8, **settings}, "test"))


REQUESTS = (
    request("a", seed=3),
    request("The mill", temperature=0.0, logprobs=2),
    request("1, 2, 3", seed=5, top_k=4, repetition_penalty=1.3, max_new_tokens=5),
    request([65, 66, 67], seed=-1, top_p=0.7, min_new_tokens=8),
)


def test_a_request_has_its_text_whatever_is_beside_it(generator):
    together = generator.generate(REQUESTS)
    assert generator.generate(REQUESTS[::-1]) == together[::-1]
    assert generator.generate(REQUESTS[2:3]) == together[2:3]
    assert len({one.text for one in together}) == 4
    for one in together:
        assert one.text == generator.encoder.decode(one.tokens)
    assert [len(one.tokens) for one in together[2:]] == [5, 8]
    assert [one.prompt_tokens for one in together] == [len(generator.prompt_tokens(one)) for one in REQUESTS]


def test_events_of_a_stream_add_up_to_the_text(generator):
    whole = generator.generate(REQUESTS)
    found: list[list[Event]] = [[], [], [], []]
    for event in generator.stream(REQUESTS):
        found[event.index].append(event)
    for one, events in zip(whole, found, strict=True):
        assert "".join(event.text for event in events) == one.text
        assert tuple(itertools.chain(*(event.tokens for event in events))) == one.tokens
        assert [event.finish_reason for event in events] == [None] * (len(events) - 1) + [one.finish_reason]


def test_a_request_can_be_cancelled_and_the_others_go_on(generator):
    requests = [request("a", max_new_tokens=30, min_new_tokens=30), request("b", max_new_tokens=20, min_new_tokens=20)]
    stream, found = generator.stream(requests), []
    for event in stream:
        found.append(event)
        if len(found) == 1:
            stream.cancel(0)
    reasons = {event.index: event.finish_reason for event in found if event.finish_reason}
    assert reasons == {0: "cancelled", 1: "length"}
    assert sum(len(event.tokens) for event in found if event.index == 0) < 10
    assert sum(len(event.tokens) for event in found if event.index == 1) == 20


def test_a_stop_string_ends_the_text_before_it(generator):
    plain = generator.generate([request("The", temperature=0.0, max_new_tokens=20)])[0]
    stop = plain.text[6:8]
    [found] = generator.generate([request("The", temperature=0.0, max_new_tokens=20, stop=stop)])
    assert found.text == plain.text[: plain.text.index(stop)] and found.finish_reason == "stop"


def test_log_probabilities_of_each_token(generator):
    [found] = generator.generate([request("The mill", temperature=0.8, logprobs=3, min_new_tokens=8)])
    prompt = generator.prompt_tokens(REQUESTS[1])
    logits = generator._decoder.engine.logits(np.array([prompt + list(found.tokens)])).numpy()[0, len(prompt) - 1 : -1]
    logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    for one, token, row in zip(found.logprobs, found.tokens, logs, strict=True):
        assert one.token == token and one.text == generator.encoder.decode([token])
        assert one.logprob == pytest.approx(row[token], abs=1e-4)
        assert [top[2] for top in one.top] == pytest.approx(sorted(row, reverse=True)[:3], abs=1e-4)


def test_a_row_to_which_the_model_adds_nothing_ends(encoder):
    """However it came to stop before the least length: to ask on would be for ever."""
    model = Generator(encoder, SpecialTokens(), Defaults(N_CTX, None, 1), Counting(most=3))
    [found] = model.generate([request("a", temperature=0.0, min_new_tokens=8)])
    assert (len(found.tokens), found.finish_reason) == (3, "length")


def test_beams_over_scores_that_are_no_numbers_are_refused(encoder):
    model = Generator(encoder, SpecialTokens(), Defaults(N_CTX, None, 1), Counting(logprob=float("nan")))
    with pytest.raises(InputError, match="logits are not numbers"):
        model.generate([request("a", num_beams=2)])


def test_half_a_character_is_no_prompt(encoder):
    model = Generator(encoder, SpecialTokens(), Defaults(N_CTX, None, 1), Counting())
    with pytest.raises(InputError, match="half of a surrogate pair at character 1"):
        model.stream([request("a\ud800")])


def test_what_a_request_cannot_ask_for(generator):
    with pytest.raises(InputError, match="token 264: ids must be from 0"):
        generator.stream([request([1, 264])])
    for values, message in (
        ({"top_p": 0}, r"test: top_p = 0: must be in \(0, 1\]"),
        ({"temprature": 1}, "unknown key; did you mean temperature"),
        ({"temperature": 1e39}, r"must be in \[0, 100\]"),
        ({"num_beams": 2, "length_penalty": 1000}, r"must be in \[-10, 10\]"),
        ({"num_beams": 2, "top_k": 3}, "does not go with num_beams"),
        ({"max_new_tokens": 2, "min_new_tokens": 3}, "more than max_new_tokens = 2"),
        ({"stop": ["a", ""]}, "none empty"),
    ):
        with pytest.raises(InputError, match=message):
            generation_settings(values, "test")


@pytest.mark.parametrize(("power", "least"), [(1.0, 0), (0.0, 1)])
def test_wide_beams_find_the_best_of_all_texts(generator, power, least):
    """Every text of up to 2 tokens over a vocabulary of 16, of which one ends it, by a full pass."""
    engine, eos, room, prompt = engine_of(n_vocab=16), 15, 2, [1, 0, 3]
    texts = [(a, b) for a in range(15) for b in range(16)] + ([(15,)] if least == 0 else [])
    padded = np.array([[*prompt, *text, 0][: len(prompt) + room] for text in texts])
    logits = engine.logits(padded).numpy()[:, len(prompt) - 1 : -1].astype(np.float64)
    logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    scores = {
        text: sum(row[token] for row, token in zip(rows, text, strict=False)) / len(text) ** power
        for text, rows in zip(texts, logs, strict=True)
    }
    best = sorted(scores, key=scores.__getitem__, reverse=True)[:3]
    settings = GenerationSettings(num_beams=64, length_penalty=power, max_new_tokens=room, min_new_tokens=least)
    small = Generator(generator.encoder, SpecialTokens(None, (eos,)), Defaults(N_CTX, None, 1), Decoder(engine, (eos,)))
    found = small.beam(GenerationRequest(prompt, settings))[:3]
    assert [one.tokens for one in found] == [tuple(token for token in text if token != eos) for text in best]
    assert [one.score for one in found] == pytest.approx([scores[text] for text in best], abs=1e-4)


def test_prompts_of_json_lines(generator, tmp_path, capsys):
    path = tmp_path / "prompts.jsonl"
    lines = [
        {"prompt": "a", "id": 7, "seed": 3},
        {"prompt": [65, 66], "temperature": 0, "logprobs": 1, "num_samples": 2},
        {"prompt": "The", "num_beams": 2, "max_new_tokens": 3},
    ]
    path.write_text("\n\n".join(map(json.dumps, lines)) + "\n")
    base = GenerationSettings(max_new_tokens=8)
    read = files.read_prompts(str(path), base, N_VOCAB)
    write(generator, read, Form.of(str(path), read, with_prompt=True))
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["prompt"] for row in rows] == ["a", [65, 66], "The"] and rows[0]["id"] == 7
    assert rows[0]["samples"][0]["text"] == generator.generate([REQUESTS[0]])[0].text
    assert [len(row["samples"]) for row in rows] == [1, 2, 1]
    assert len(rows[1]["samples"][0]["logprobs"][0]["top"]) == 1 and "score" in rows[2]["samples"][0]


def test_prompts_of_lines_of_text(generator, tmp_path, capsys):
    path = tmp_path / "prompts.txt"
    path.write_text("a\n\nThe mill\r\n")
    read = files.read_prompts(str(path), REQUESTS[0].settings.model_copy(update={"num_samples": 1}), N_VOCAB)
    write(generator, read, Form.of(str(path), read, with_prompt=False))
    texts = [one.text for one in generator.generate([REQUESTS[0], request("The mill", seed=3)])]
    assert capsys.readouterr().out == "".join(
        f"==== prompt {i}, sample 1 ====\n{text}\n" for i, text in enumerate(texts, 1)
    )


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: not valid JSON"),
        ('{"text": "a"}', "line 2: no object with a prompt"),
        ('{"prompt": 3}', "line 2: prompt: must be a text or a list of token ids"),
        ('{"prompt": "a", "top_k": -1}', "line 2: top_k = -1: must be >= 0"),
        ('{"prompt": "\\ud800"}', "line 2: prompt: has half of a surrogate pair"),
        ('{"prompt": "a", "id": ["\\ud800"]}', "line 2: id: has half of a surrogate pair"),
        (f'{{"prompt": "a", "seed": {"9" * 5000}}}', "line 2: "),
        ('{"prompt": [5, 264]}', "line 2: prompt: token 264: ids must be from 0 to n_vocab - 1 = 263"),
    ],
)
def test_a_line_that_cannot_work_is_named(tmp_path, line, message):
    path = tmp_path / "prompts.jsonl"
    path.write_text(f'{{"prompt": "a"}}\n{line}\n')
    with pytest.raises(InputError, match=message) as caught:
        files.read_prompts(str(path), GenerationSettings(), N_VOCAB)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_an_empty_prompt_that_nothing_begins_is_named_before_the_first_text(encoder):
    model = Generator(encoder, SpecialTokens(), Defaults(N_CTX, None, 1), Counting())
    lines = [files.Line(request("a"), where="f: line 1"), files.Line(request([]), where="f: line 2")]
    with pytest.raises(InputError, match="f: line 2: an empty prompt"):
        next(files.continuations(model, lines))
