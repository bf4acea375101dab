"""A server with a key, room for one sequence and a queue of one: who is refused, who gives up, and how it ends."""

from __future__ import annotations

import http.client
import json
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import openai
import pytest

from gpt_mesh import main
from tests.support.runs import Workspace
from tests.support.servers import Server, random_model, serving

N_CTX = 32768
ENDLESS = {"max_tokens": N_CTX - 10, "min_tokens": N_CTX - 10}  # minutes; a test ends it


@pytest.fixture(scope="module")
def config(workspace: Workspace) -> Path:
    return random_model(workspace, "slow_model", n_ctx=N_CTX, n_embd=8)


@pytest.fixture
def server(workspace: Workspace, config: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("SERVE_API_KEY", "open sesame")
    with serving(workspace, config, "--serve_batch", 1, "--serve_queue", 1) as server:
        yield server


def client_of(server: Server, key: str = "open sesame") -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0, timeout=120)


def stream(server: Server, **keys: Any) -> Any:
    return client_of(server).completions.create(model="slow_model", prompt="x", stream=True, extra_body=keys)


def health(server: Server) -> dict[str, Any]:
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=60)
    connection.request("GET", "/health")
    state: dict[str, Any] = json.loads(connection.getresponse().read())
    connection.close()
    return state


def until(server: Server, **wanted: Any) -> None:
    end = time.monotonic() + 60
    while not wanted.items() <= (state := health(server)).items():
        assert time.monotonic() < end, state
        time.sleep(0.05)


@pytest.mark.slow
def test_who_has_no_key_who_comes_too_many_and_who_leaves(server: Server) -> None:
    for key in ("wrong", "open sesame2"):
        with pytest.raises(openai.AuthenticationError) as caught:
            client_of(server, key).models.list()
        assert caught.value.code == "invalid_api_key"

    first = stream(server, **ENDLESS)
    next(iter(first))
    assert (health(server)["running"], health(server)["waiting"]) == (1, 0)
    with ThreadPoolExecutor(1) as pool:
        second = pool.submit(client_of(server).completions.create, model="slow_model", prompt="y", max_tokens=3)
        until(server, waiting=1)
        with pytest.raises(openai.RateLimitError) as full:
            stream(server, max_tokens=3)
        assert full.value.code == "queue_full" and full.value.response.headers["retry-after"] == "1"
        # The first client goes, without a word; the second one's turn comes.
        first.response.close()
        answer = second.result(60)
        assert answer.choices[0].finish_reason
    server.wait_for(r'"POST /v1/completions" 200, .*, the client disconnected')
    until(server, running=0, waiting=0)

    # One that waits for a whole answer leaves, too.
    where = urlsplit(server.url)
    body = json.dumps({"prompt": "x", **ENDLESS})
    with socket.create_connection((where.hostname, where.port)) as connection:
        head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer open sesame\r\n"
        more = f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall((head + more + body).encode())
        until(server, running=1)
    until(server, running=0)
    server.wait_for(r'"POST /v1/completions" 499')


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_when_what_was_accepted_is_answered(server: Server, number: int) -> None:
    running = stream(server, max_tokens=250, min_tokens=250)  # more would be compiled for, beyond the grace
    parts = iter(running)
    next(parts)
    server.process.send_signal(number)
    server.wait_for("shutting down: finishing accepted requests")
    with pytest.raises(openai.APIError) as refused:
        for _ in range(200):
            client_of(server).models.list()
            time.sleep(0.05)
    assert isinstance(refused.value, openai.APIConnectionError) or refused.value.code == "shutting_down"
    assert [part.choices[0].finish_reason for part in parts][-1] == "length"
    assert server.wait() == 0
    assert "ended" in server.lines


@pytest.mark.slow
def test_a_second_signal_ends_it_at_once(server: Server) -> None:
    running = stream(server, **ENDLESS)
    next(iter(running))
    server.process.send_signal(signal.SIGINT)
    server.wait_for("Ctrl-C stops immediately")
    server.process.send_signal(signal.SIGINT)
    assert server.process.wait(60) == 0


def test_an_address_that_is_taken_is_told_before_the_model_is_built(
    config: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gpt_mesh.commands.serve.load", lambda *_: pytest.fail("built the model first"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for address, says in (
            (f"127.0.0.1:{port}", "cannot listen there (Address already in use)"),
            ("127.0.0.1", "give HOST:PORT, such as 127.0.0.1:8000"),
            ("127.0.0.1:70000", "give HOST:PORT"),
            ("[::1:80", "give HOST:PORT"),
            ("no.such.host.invalid:80", "cannot listen there"),
        ):
            assert main.main(["--model", str(config), "--serve", address]) == 1
            error = capsys.readouterr().err
            assert error.startswith(f"error: --serve {address}: ") and says in error and error.count("\n") == 1
