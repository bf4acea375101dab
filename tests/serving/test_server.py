"""The server over a model in this process, asked by the official `openai` client."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.client
import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openai.types import Completion

from gpt_mesh.data.encoders import load_encoder
from gpt_mesh.serving.server import ServerSettings
from tests.support.runs import Workspace, logged
from tests.support.servers import N_CTX, random_model, serving_here

POST = (
    "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
)
PROMPTS = ["Once", "import os", "ni dieu ni maître", "世界 🌍", " ", "def f(x):\n    return"]


@pytest.fixture(scope="module")
def server(workspace: Workspace) -> Iterator[str]:
    with logged() as lines, serving_here(random_model(workspace, "served"), ServerSettings(max_batch=4)) as url:
        yield url
    assert not any("failed" in line or '" 500, ' in line for line in lines), "\n".join(lines)


@pytest.fixture(scope="module")
def client(server: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server}/v1", api_key="any", max_retries=0, timeout=60)


def ask(client: openai.OpenAI, prompt: Any, **keys: Any) -> Any:
    extra = {name: keys.pop(name) for name in ("top_k", "repetition_penalty", "min_tokens") if name in keys}
    return client.completions.create(prompt=prompt, extra_body=extra, **{"model": "served", "max_tokens": 12, **keys})


def complete(client: openai.OpenAI, prompt: Any, **keys: Any) -> Completion:
    found: Completion = ask(client, prompt, **keys)
    return found


def stream(client: openai.OpenAI, prompt: Any, **keys: Any) -> list[Completion]:
    return list(ask(client, prompt, stream=True, **keys))


def texts(completion: Completion) -> list[str]:
    return [choice.text for choice in completion.choices]


def get(server: str, path: str) -> tuple[int, Any]:
    return request(server, "GET", path, None)


def request(server: str, method: str, path: str, body: bytes | None, **headers: str) -> tuple[int, Any]:
    """Status and body, as JSON where it is JSON."""
    connection = http.client.HTTPConnection(urlsplit(server).netloc, timeout=60)
    try:
        connection.request(method, path, body, {"Content-Type": "application/json", **headers})
        response = connection.getresponse()
        data = response.read()
        is_json = (response.getheader("content-type") or "").startswith("application/json")
        return response.status, json.loads(data) if is_json and data else data
    finally:
        connection.close()


# Answers


def test_an_answer_has_the_form_that_clients_know(client: openai.OpenAI) -> None:
    answer = complete(client, "Once", seed=1)
    assert answer.object == "text_completion" and answer.id.startswith("cmpl-") and answer.model == "served"
    assert answer.system_fingerprint == "step-7"
    (choice,) = answer.choices
    assert choice.index == 0 and choice.finish_reason in ("stop", "length") and choice.logprobs is None
    assert answer.usage is not None and 1 <= answer.usage.completion_tokens <= 12
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_the_models_are_the_one(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["served"]
    assert client.models.retrieve("served").owned_by == "local"
    with pytest.raises(openai.NotFoundError, match="this server has 'served'"):
        client.models.retrieve("davinci/2")


@pytest.mark.slow
def test_a_stream_is_the_answer_in_parts(client: openai.OpenAI) -> None:
    for seed in (1, 2):
        keys: dict[str, Any] = {"seed": seed, "n": 2, "max_tokens": 30, "logprobs": 1}
        whole = complete(client, PROMPTS[:2], **keys)
        options = {"include_usage": True}
        parts = stream(client, PROMPTS[:2], stream_options=options, **keys)
        assert len(parts) > 2 * 4 + 1, "more than one part of each text"
        for index, choice in enumerate(whole.choices):
            mine = [part.choices[0] for part in parts if part.choices and part.choices[0].index == index]
            assert "".join(part.text for part in mine) == choice.text
            assert [part.finish_reason for part in mine] == [None] * (len(mine) - 1) + [choice.finish_reason]
            for name in ("tokens", "token_logprobs", "text_offset"):
                joined = [item for part in mine for item in getattr(part.logprobs, name)]
                assert joined == pytest.approx(getattr(choice.logprobs, name), abs=1e-4)
        assert parts[-1].choices == [] and parts[-1].usage == whole.usage


@pytest.mark.slow
def test_a_seed_gives_the_same_text_alone_and_among_others(client: openai.OpenAI) -> None:
    keys = {"seed": 5, "temperature": 1.2, "max_tokens": 20}
    alone = [texts(complete(client, prompt, **keys))[0] for prompt in PROMPTS]
    assert texts(complete(client, PROMPTS, **keys)) == alone
    with ThreadPoolExecutor(12) as pool:
        others = [pool.submit(complete, client, "x", seed=seed, max_tokens=40) for seed in range(6)]
        together = list(pool.map(lambda prompt: texts(complete(client, prompt, **keys))[0], PROMPTS))
        assert all(other.result() for other in others)
    assert together == alone
    assert texts(complete(client, PROMPTS, **{**keys, "seed": 6})) != alone


@pytest.mark.parametrize(
    ("key", "ends"),
    [
        ("max_tokens", (0, N_CTX - 1)),
        ("min_tokens", (0, 12)),
        ("temperature", (0, 100)),
        ("top_p", (1e-30, 1)),
        ("top_k", (0, 2**63 - 1)),
        ("repetition_penalty", (0.01, 100)),
        ("n", (1, 128)),
        ("best_of", (1, 128)),
        ("seed", (-(2**63), 2**63 - 1)),
        ("stop", ([], ["a", "b", "c", "d"])),
        ("logprobs", (0, 5)),
    ],
)
def test_both_ends_of_every_range_are_taken(client: openai.OpenAI, key: str, ends: tuple[Any, Any]) -> None:
    for end in ends:
        keys: dict[str, Any] = {"echo": True} if (key, end) == ("max_tokens", 0) else {}
        keys |= {"max_tokens": 2} if key in ("n", "best_of") else {}
        found = complete(client, [5], **{**keys, key: end})
        assert len(found.choices) == (end if key == "n" else 1)
    assert len(complete(client, [5], seed=2**63 - 1, n=2, max_tokens=2).choices) == 2


def test_no_alternatives_are_null(client: openai.OpenAI) -> None:
    for keys in ({}, {"echo": True}):
        found = complete(client, [5, 6], logprobs=0, max_tokens=3, **keys).choices[0].logprobs
        assert found is not None and found.top_logprobs is None
        assert found.token_logprobs is not None and len(found.token_logprobs) == (5 if keys else 3)
    for part in stream(client, [5, 6], logprobs=0, max_tokens=3):
        assert part.choices[0].logprobs is None or part.choices[0].logprobs.top_logprobs is None


@pytest.mark.slow
def test_choices_have_seeds_one_after_another_and_the_best_is_the_likeliest(client: openai.OpenAI) -> None:
    single = [complete(client, "Once", seed=seed, logprobs=0).choices[0] for seed in (3, 4, 5)]
    several = complete(client, "Once", seed=3, n=3)
    assert texts(several) == [choice.text for choice in single]
    assert [choice.index for choice in several.choices] == [0, 1, 2]

    def likelihood(choice: Any) -> float:
        return float(sum(choice.logprobs.token_logprobs) / max(len(choice.logprobs.token_logprobs), 1))

    best = complete(client, "Once", seed=3, best_of=3)
    assert texts(best) == [max(single, key=likelihood).text]
    assert best.choices[0].logprobs is None


@pytest.mark.slow
def test_log_probabilities_are_those_of_scoring_the_same_tokens(client: openai.OpenAI, workspace: Workspace) -> None:
    """Decoding with a cache and a full pass over the same tokens are two graphs."""
    encoder = load_encoder(str(workspace.tokenizer))
    for prompt in PROMPTS:
        found = complete(client, prompt, temperature=0, logprobs=5, max_tokens=10, min_tokens=10).choices[0].logprobs
        assert found is not None and found.token_logprobs is not None and found.top_logprobs is not None
        assert len(found.token_logprobs) == len(found.top_logprobs) == 10
        for value, top in zip(found.token_logprobs, found.top_logprobs, strict=True):
            assert value == max(top.values()) or "<|endoftext|>" in top, "the likeliest was taken"
        names = {_name(encoder, token): token for token in range(encoder.n_vocab)}
        tokens = encoder.encode(prompt)
        whole = [*tokens, *(names[name] for name in found.tokens or ())]
        scored = complete(client, whole, echo=True, logprobs=5, max_tokens=0).choices[0]
        assert scored.logprobs is not None and scored.logprobs.token_logprobs is not None
        assert scored.text == encoder.decode(whole) and scored.finish_reason == "length"
        assert scored.logprobs.token_logprobs[0] is None and scored.logprobs.top_logprobs is not None
        assert scored.logprobs.token_logprobs[len(tokens) :] == pytest.approx(found.token_logprobs, abs=1e-3)
        for mine, other in zip(scored.logprobs.top_logprobs[len(tokens) :], found.top_logprobs, strict=True):
            assert sorted(mine.values()) == pytest.approx(sorted(other.values()), abs=1e-3)


def _name(encoder: Any, token: int) -> str:
    """The name of a token in an answer, told from the tokenizer's own table of bytes."""
    from gpt_mesh.serving.token_text import TokenText

    return TokenText(encoder).name(token)


@pytest.mark.slow
def test_an_echo_stands_before_the_text_with_log_probabilities_of_both(client: openai.OpenAI) -> None:
    for prompt in PROMPTS:
        keys: dict[str, Any] = {"echo": True, "logprobs": 1, "max_tokens": 3, "min_tokens": 3, "seed": 1}
        choice = complete(client, prompt, **keys).choices[0]
        logprobs = choice.logprobs
        assert choice.text.startswith(prompt) and logprobs is not None
        assert logprobs.tokens and logprobs.text_offset and logprobs.token_logprobs and logprobs.top_logprobs
        assert len(logprobs.tokens) == len(logprobs.text_offset) == len(logprobs.token_logprobs)
        assert logprobs.token_logprobs[0] is None and all(value <= 0 for value in logprobs.token_logprobs[1:])
        for name, offset in zip(logprobs.tokens, logprobs.text_offset, strict=True):
            if not name.startswith("bytes:"):
                assert choice.text[offset : offset + len(name)] == name
        parts = stream(client, prompt, **keys)
        assert "".join(part.choices[0].text for part in parts) == choice.text
        found = [part.choices[0].logprobs for part in parts]
        assert [name for part in found if part for name in part.tokens or ()] == logprobs.tokens


def test_a_text_ends_before_its_stop_string(client: openai.OpenAI) -> None:
    free = texts(complete(client, "Once", seed=2, max_tokens=30, min_tokens=30))[0]
    stop = free[len(free) // 2 : len(free) // 2 + 2]
    keys: dict[str, Any] = {"seed": 2, "max_tokens": 30, "min_tokens": 0, "stop": ["never\x00", stop]}
    for answer in ([complete(client, "Once", **keys)], stream(client, "Once", **keys)):
        parts = [part.choices[0] for part in answer]
        assert "".join(part.text for part in parts) == free[: free.index(stop)]
        assert parts[-1].finish_reason == "stop"


def test_sampling_can_be_narrowed_to_the_likeliest_token(client: openai.OpenAI) -> None:
    greedy = texts(complete(client, "Once", temperature=0))
    assert texts(complete(client, "Once", temperature=1.5, top_k=1, seed=9)) == greedy
    assert texts(complete(client, "Once", temperature=1.5, top_p=1e-6, seed=9)) == greedy


def test_an_empty_prompt_begins_from_the_end_of_text(client: openai.OpenAI) -> None:
    answer = complete(client, "", seed=1)
    assert answer.usage is not None and answer.usage.prompt_tokens == 1
    assert texts(answer) == texts(complete(client, "<|endoftext|>", seed=1))


# What cannot be answered


@pytest.mark.parametrize(
    ("keys", "param", "code"),
    [
        ({"max_tokens": N_CTX}, "prompt", "context_length_exceeded"),
        ({"temperature": -1}, "temperature", None),
        ({"suffix": "end"}, "suffix", None),
        ({"extra_body": {"penalty": 1}}, "penalty", None),
    ],
)
def test_a_wrong_request_names_the_key(client: openai.OpenAI, keys: Any, param: str, code: str | None) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(**{"model": "served", "prompt": "x", **keys})
    assert (caught.value.param, caught.value.code, caught.value.type) == (param, code, "invalid_request_error")


def test_other_ways_to_be_wrong(server: str, client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="there is no model 'davinci'"):
        complete(client, "x", model="davinci")
    with pytest.raises(openai.BadRequestError, match="no chat template"):
        client.chat.completions.create(model="served", messages=[{"role": "user", "content": "hello"}])
    for method, path, headers, status in (
        ("GET", "/v1/completions", {}, 405),
        ("POST", "/health", {}, 405),
        ("GET", "/v1/models/", {}, 404),
        ("GET", "/v1/%0anothing", {}, 404),
        ("POST", "/v1/completions", {"Content-Type": "text/plain"}, 415),
    ):
        found, error = request(server, method, path, b'{"prompt": "x"}', **headers)
        assert found == status and error["error"]["message"]


def test_a_prompt_of_a_megabyte_is_refused_in_words(server: str, client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="the context of this model is 64 tokens") as caught:
        complete(client, "a b " * 250_000)
    assert caught.value.code == "context_length_exceeded"
    with pytest.raises(openai.APIStatusError, match="longer than 4194304 bytes") as long:
        complete(client, "x" * 10_000_000)
    assert long.value.status_code == 413
    assert complete(client, "x").choices


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
KEYS = (
    "model", "prompt", "max_tokens", "min_tokens", "n", "best_of", "stream", "stream_options", "logprobs", "echo",
    "stop", "user", "suffix", "logit_bias", "presence_penalty", "temperature", "top_p", "top_k", "repetition_penalty",
    "seed", "nonsense",
)  # fmt: skip
bodies = st.one_of(
    st.dictionaries(st.sampled_from(KEYS), json_values, max_size=4).map(lambda keys: {"prompt": "x", **keys}),
    json_values,
).map(lambda value: json.dumps(value).encode())
damaged = st.builds(
    lambda body, at, byte: body[:at] + bytes([byte]) + body[at + 1 :], bodies, st.integers(0, 40), st.integers(0, 255)
)


@pytest.mark.slow
@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, database=None)
@given(body=st.one_of(bodies, damaged, st.binary(max_size=40)))
def test_whatever_is_sent_is_answered(server: str, body: bytes) -> None:
    status, answer = request(server, "POST", "/v1/completions", body)
    if status == 200:
        assert answer.startswith(b"data: ") if isinstance(answer, bytes) else answer["choices"]
    else:
        assert 400 <= status < 500, answer
        assert answer["error"].keys() == {"message", "type", "param", "code"} and answer["error"]["message"]
    assert get(server, "/health")[0] == 200


def test_what_is_not_even_http_does_no_harm(server: str) -> None:
    where = urlsplit(server)
    for data in (
        b"\x16\x03\x01\x02\x00",
        b"GET\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n",
        POST.encode() % 50 + b"{",
        b"GET / HTTP/1.1\r\n" + b"X: " + b"y" * 200_000,
    ):
        with (
            contextlib.suppress(OSError),  # it may be cut off
            socket.create_connection((where.hostname, where.port), timeout=60) as connection,
        ):
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(65536):
                pass
    assert get(server, "/health")[1]["status"] == "ok"


def test_the_page_loads_nothing_from_elsewhere(server: str) -> None:
    status, page = get(server, "/")
    assert status == 200 and b"<!doctype html>" in page
    assert b"http://" not in page and b"https://" not in page and b"//cdn" not in page


def test_a_page_whose_name_resolves_to_this_machine_is_refused(server: str) -> None:
    own = urlsplit(server).netloc
    body = json.dumps({"prompt": "a", "max_tokens": 1}).encode()
    foreign = f"attacker.example:{urlsplit(server).port}"
    assert request(server, "POST", "/v1/completions", body, Host=own)[0] == 200
    for method, path in (("POST", "/v1/completions"), ("GET", "/v1/models"), ("GET", "/health"), ("GET", "/")):
        status, error = request(server, method, path, body, Host=foreign, Origin=f"http://{foreign}")
        assert status == 421 and error["error"]["code"] == "unknown_host"


def test_every_answer_tells_browsers_to_keep_to_themselves(server: str) -> None:
    for path in ("/", "/health", "/nowhere"):
        connection = http.client.HTTPConnection(urlsplit(server).netloc, timeout=60)
        connection.request("GET", path)
        response = connection.getresponse()
        page = response.read().decode()
        connection.close()
        assert response.headers["x-content-type-options"] == "nosniff" and response.headers["x-frame-options"] == "DENY"
        assert response.headers["cross-origin-resource-policy"] == "same-origin"
        if path == "/":
            script = page.partition("<script>")[2].partition("</script>")[0].encode()
            digest = base64.b64encode(hashlib.sha256(script).digest()).decode()
            assert f"script-src 'sha256-{digest}';" in response.headers["content-security-policy"]


def test_bodies_that_take_much_memory_together_are_refused(server: str) -> None:
    where, length = urlsplit(server), 4 * 2**20
    body = json.dumps({"prompt": "a", "max_tokens": 1}).encode()
    with contextlib.ExitStack() as stack:
        for _ in range(4):
            connection = stack.enter_context(socket.create_connection((where.hostname, where.port), timeout=60))
            connection.sendall((POST % length).encode() + b" " * (length - 1))
        until = time.monotonic() + 20
        while (found := request(server, "POST", "/v1/completions", body))[0] == 200:
            assert time.monotonic() < until
        assert found[0] == 429 and found[1]["error"]["code"] == "queue_full"
    until = time.monotonic() + 20
    while request(server, "POST", "/v1/completions", body)[0] != 200:
        assert time.monotonic() < until
