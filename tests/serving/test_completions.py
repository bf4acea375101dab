"""What a request for completions may say, and how it is told what it may not."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gpt_mesh.config import GenerationSettings
from gpt_mesh.serving.completions import MAX_SEQUENCES, PromptLimits, encode, parse, read_json
from gpt_mesh.serving.errors import ApiError

DEFAULTS = GenerationSettings(temperature=0.6, top_k=40, stop=("##",), num_beams=4, max_new_tokens=5, logprobs=2)


def refusal(values: dict[str, Any]) -> ApiError:
    with pytest.raises(ApiError) as caught:
        parse({"prompt": "x", **values}, DEFAULTS)
    return caught.value


def test_what_is_left_out_is_as_the_config_has_it_and_nothing_else() -> None:
    request = parse({"prompt": "Once", "temperature": None}, DEFAULTS)
    assert (request.prompts, request.max_tokens, request.n, request.best_of) == (("Once",), None, 1, 1)
    assert (request.logprobs, request.echo, request.stream) == (None, False, False)
    settings = request.settings
    assert (settings.temperature, settings.top_k, settings.stop) == (0.6, 40, ("##",))
    assert (settings.num_beams, settings.max_new_tokens, settings.logprobs) == (1, None, None)
    assert settings.seed != parse({"prompt": "Once"}, DEFAULTS).settings.seed, "without a seed each answer is another"


def test_every_key_arrives() -> None:
    values = {
        "model": "m", "prompt": ["a", "b"], "max_tokens": 7, "min_tokens": 2, "n": 2, "best_of": 3, "logprobs": 4,
        "echo": True, "stop": ["x", "y"], "user": "me", "temperature": 0, "top_p": 0.5, "top_k": 3, "seed": -5,
        "repetition_penalty": 1.5, "suffix": "", "presence_penalty": 0, "frequency_penalty": 0.0, "logit_bias": {},
    }  # fmt: skip
    request = parse(values, DEFAULTS)
    assert (request.model, request.prompts, request.n, request.best_of, request.sequences) == ("m", ("a", "b"), 2, 3, 6)
    second = request.settings_of(1, 7)
    assert second == GenerationSettings(
        temperature=0.0, top_k=3, top_p=0.5, repetition_penalty=1.5, max_new_tokens=7, min_new_tokens=2,
        stop=("x", "y"), seed=-4, logprobs=5,
    )  # fmt: skip
    streamed = parse({"prompt": "a", "stream": True, "stream_options": {"include_usage": True}}, DEFAULTS)
    assert streamed.stream and streamed.include_usage


def test_the_best_of_several_is_told_by_log_probabilities() -> None:
    request = parse({"prompt": "a", "n": 1, "best_of": 2}, DEFAULTS)
    assert parse({"prompt": "a"}, DEFAULTS).settings_of(0, 3).logprobs is None
    assert request.logprobs is None and request.settings_of(0, 3).logprobs == 5


@pytest.mark.parametrize("prompt", ["", "text", ["a", "b"], [5, 7], [[5], [7, 9]]])
def test_prompts_have_four_forms(prompt: Any) -> None:
    request = parse({"prompt": prompt}, DEFAULTS)
    several = isinstance(prompt, list) and not isinstance(prompt[0], int)
    assert len(request.prompts) == (len(prompt) if several else 1)


@pytest.mark.parametrize(
    ("values", "param", "says"),
    [
        ({"prompt": None}, "prompt", "missing"),
        ({"prompt": []}, "prompt", "must be a string, a list"),
        ({"prompt": [[]]}, "prompt", "must be"),
        ({"prompt": ["a", 5]}, "prompt", "must be"),
        ({"prompt": [True]}, "prompt", "must be"),
        ({"prompt": [1.5]}, "prompt", "must be"),
        ({"prompt": {"a": 1}}, "prompt", "must be"),
        ({"prompt": "\ud83d"}, "prompt", "half of a surrogate pair at character 0"),
        ({"prompt": ["a"] * (MAX_SEQUENCES + 1)}, "prompt", "the maximum for one request is 128"),
        ({"prompt": ["a"] * 65, "n": 2}, "prompt", "asks for 130 completions"),
        ({"max_tokens": -1}, "max_tokens", "of at least 0"),
        ({"max_tokens": True}, "max_tokens", "whole number"),
        ({"max_tokens": "5"}, "max_tokens", "whole number"),
        ({"max_tokens": 10**30}, "max_tokens", "whole number"),
        ({"min_tokens": 17}, "min_tokens", "17 is more than max_tokens (16)"),
        ({"n": 0}, "n", "from 1 to 128"),
        ({"n": 3, "best_of": 2}, "best_of", "from 3 to 128"),
        ({"best_of": 2, "stream": True}, "best_of", "does not go with stream"),
        ({"logprobs": 6}, "logprobs", "from 0 to 5"),
        ({"logprobs": True}, "logprobs", "whole number"),
        ({"echo": "yes"}, "echo", "true or false"),
        ({"stream": 1}, "stream", "true or false"),
        ({"stream_options": {}}, "stream_options", "stream = true only"),
        ({"stream": True, "stream_options": []}, "stream_options", "must be an object"),
        ({"stream": True, "stream_options": {"include_usage": 3}}, "stream_options.include_usage", "true or false"),
        ({"stop": ["a"] * 5}, "stop", "at most 4"),
        ({"stop": [""]}, "stop", "none empty"),
        ({"stop": 5}, "stop", "must be a string"),
        ({"temperature": -1}, "temperature", "must be in [0, 100]"),
        ({"temperature": 1e39}, "temperature", "must be in [0, 100]"),
        ({"temperature": "hot"}, "temperature", "must be"),
        ({"top_p": 0}, "top_p", "(0, 1]"),
        ({"top_k": -1}, "top_k", "must be >= 0"),
        ({"repetition_penalty": 0}, "repetition_penalty", "must be in"),
        ({"seed": 1.5}, "seed", "must be"),
        ({"seed": 2**70}, "seed", "must be"),
        ({"suffix": " end"}, "suffix", "not supported"),
        ({"presence_penalty": 0.5}, "presence_penalty", "not supported"),
        ({"frequency_penalty": False}, "frequency_penalty", "not supported"),
        ({"logit_bias": {"50256": -100}}, "logit_bias", "not supported"),
        ({"max_token": 5}, "max_token", "did you mean max_tokens?"),
        ({"x" * 1000: 5}, "x" * 40 + "…", "unknown key; leave it out"),
        ({"model": 5}, "model", "must be a string"),
        ({"user": 5}, "user", "must be a string"),
    ],
)
def test_a_refusal_names_the_key(values: dict[str, Any], param: str, says: str) -> None:
    error = refusal(values)
    assert (error.status, error.param) == (400, param)
    assert says in error.message and error.message.startswith(f"{param}: ") and "\n" not in error.message
    assert error.body()["error"].keys() == {"message", "type", "param", "code"}
    assert json.dumps(error.body()), "also where the request has what UTF-8 cannot write"


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[]", b"5", b'"text"', b"\xff\xfe", b'{"a": NaN}', b'{"a": 1e999}', b"[" * 100_000,
        b'{"a": ' + b"9" * 5000 + b"}",
    ],
)  # fmt: skip
def test_a_body_that_is_no_json_object_is_refused(body: bytes) -> None:
    with pytest.raises(ApiError) as caught:
        read_json(body)
    assert (caught.value.status, caught.value.code) == (400, "invalid_json")


def encoded(prompt: Any, n_ctx: int = 10, longest: int = 4, **values: Any) -> list[int]:
    request = parse({"prompt": prompt, **values}, DEFAULTS)
    return encode(request.prompts[0], request, PromptLimits(n_ctx, 300, longest), lambda text: [ord(x) for x in text])


def test_a_prompt_has_to_leave_room_for_what_is_asked() -> None:
    assert encoded("abcdefghi") == list(b"abcdefghi"), "without max_tokens one more has to fit"
    assert len(encoded([1] * 10, max_tokens=0)) == 10
    for prompt, values in (("abcdefghij", {}), ([1] * 11, {"max_tokens": 0}), ("abc", {"max_tokens": 8})):
        with pytest.raises(ApiError) as caught:
            encoded(prompt, **values)
        assert (caught.value.status, caught.value.code) == (400, "context_length_exceeded")
        assert "the context of this model is 10 tokens" in caught.value.message


def test_a_text_that_is_far_too_long_is_refused_without_encoding_it() -> None:
    request = parse({"prompt": "x" * 1_000_000}, DEFAULTS)
    def ids_of(text: str) -> list[int]:
        raise AssertionError("encoded it")

    with pytest.raises(ApiError, match="at least 250000 tokens"):
        encode(request.prompts[0], request, PromptLimits(10, 300, 4), ids_of)


@pytest.mark.parametrize("token", [-1, 300, 10**40])
def test_a_token_outside_the_vocabulary_is_refused(token: int) -> None:
    with pytest.raises(ApiError, match="ids are from 0 to 299"):
        encoded([5, token])
