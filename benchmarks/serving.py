"""Throughput of the server: the same requests sequentially and from many concurrent clients; and its memory.

    python -m benchmarks.serving [--clients 32] [--requests 64] [--tokens 64] [--prompt 32] [--memory 600]

Serves a model of GPT-2 small's shape (`--n_layer`, `--n_embd`, `--n_head` for another) with random weights, with
`main.py --serve` in a separate process. Each request has its own prompt of random tokens and its own seed, and all have
the same number of new tokens. A first round of both kinds, for compilation, is not counted. Answers must be equal in
both. Then --memory requests of all kinds (lengths, numbers of texts, refused ones, clients that disconnect) follow; the
server's resident memory is read after every sixth of them. Prints a table, and saves the figures in
runs/benchmarks/serving_WIDTH.json.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import random
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from gpt_mesh.meshes.compat import mtf  # noqa: F401  (before TensorFlow, which it keeps quiet)

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from benchmarks import machine
from gpt_mesh.config import load_config
from gpt_mesh.data.encoders import TOKENIZER_FILE
from gpt_mesh.engine.engine import DeviceEngine
from gpt_mesh.meshes.devices import choose_devices
from gpt_mesh.meshes.layouts import plan_mesh
from gpt_mesh.planning.graph import limits_of

REPOSITORY = Path(__file__).resolve().parent.parent


def make_model(folder: Path, flags: argparse.Namespace) -> Path:
    """A config with a checkpoint of initial weights, and a tokenizer whose tokens all have texts of their own."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = [*alphabet, *(f"<{number}>" for number in range(len(alphabet), flags.n_vocab))]
    tokenizer = Tokenizer(models.BPE({name: number for number, name in enumerate(names)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / TOKENIZER_FILE))
    (folder / "dataset_configs").mkdir()
    dataset = {"n_vocab": len(names), "tokenizer_path": str(folder / TOKENIZER_FILE), "path": "unused"}
    (folder / "dataset_configs" / "bytes.json").write_text(json.dumps(dataset))
    values = {
        "n_layer": flags.n_layer, "n_embd": flags.n_embd, "n_head": flags.n_head, "n_ctx": flags.n_ctx,
        "n_vocab": flags.n_vocab, "lr": 1e-3, "train_batch_size": 1, "train_steps": 1, "datasets": ["bytes"],
        "model_path": str(folder / "run"),
    }  # fmt: skip
    path = folder / "served.json"
    path.write_text(json.dumps(values))
    config = load_config(str(path))
    plan = plan_mesh(config, limits_of(config), choose_devices(None)[:1], fit=True, chosen=False)
    engine = DeviceEngine(config, plan)
    engine.create_variables(training=False)
    engine.save(str(folder / "run"), 0, {})
    return path


class Server:
    """`main.py --serve` of a config, and requests to it."""

    def __init__(self, config: Path, batch: int) -> None:
        flags = ["--model", str(config), "--serve", "127.0.0.1:0", "--serve_batch", str(batch)]
        self.process = subprocess.Popen(
            [sys.executable, str(REPOSITORY / "main.py"), *flags], stderr=subprocess.PIPE, text=True
        )
        assert self.process.stderr is not None
        said = []
        for line in self.process.stderr:
            said.append(line)
            if found := re.search(r" at http://(127\.0\.0\.1:\d+)", line):
                self.address = found[1]
                break
        else:
            raise SystemExit(f"error: the server did not start:\n{''.join(said)}")
        self._log = ThreadPoolExecutor(1)
        self._log.submit(self.process.stderr.read)

    def post(self, body: dict[str, Any]) -> dict[str, Any]:
        connection = http.client.HTTPConnection(self.address, timeout=600)
        try:
            connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
            answer: dict[str, Any] = json.loads(connection.getresponse().read())
            return answer
        finally:
            connection.close()

    def leave(self, body: dict[str, Any]) -> None:
        """Ask, and go when the answer begins."""
        host, port = self.address.split(":")
        text = json.dumps({**body, "stream": True})
        with socket.create_connection((host, int(port)), timeout=600) as connection:
            head = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            connection.sendall(f"{head}Content-Length: {len(text)}\r\n\r\n{text}".encode())
            connection.recv(1000)

    @property
    def resident(self) -> int:
        """Bytes of memory that it holds now."""
        pages = Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    def end(self) -> None:
        self.process.terminate()
        if self.process.wait(60):
            raise SystemExit(f"error: the server ended with status {self.process.returncode}")


@contextlib.contextmanager
def served(flags: argparse.Namespace) -> Iterator[Server]:
    with tempfile.TemporaryDirectory() as name:
        server = Server(make_model(Path(name), flags), flags.clients)
        try:
            yield server
            server.end()
        finally:
            server.process.kill()


def bodies(flags: argparse.Namespace) -> list[dict[str, Any]]:
    """The requests, each with another prompt."""
    draw = random.Random(0)
    return [
        {
            "prompt": [draw.randrange(256) for _ in range(flags.prompt)],
            "max_tokens": flags.tokens, "min_tokens": flags.tokens, "seed": number,
        }
        for number in range(flags.requests)
    ]  # fmt: skip


def round_of(server: Server, asked: Sequence[dict[str, Any]], clients: int) -> tuple[dict[str, float], list[str]]:
    """Every request by so many clients at once: figures, and the texts."""

    def one(body: dict[str, Any]) -> tuple[float, dict[str, Any]]:
        begin = time.perf_counter()
        answer = server.post(body)
        return time.perf_counter() - begin, answer

    begin = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        found = list(pool.map(one, asked))
    seconds = time.perf_counter() - begin
    latencies = sorted(latency for latency, _ in found)
    figures = {
        "requests_per_second": len(asked) / seconds,
        "tokens_per_second": sum(answer["usage"]["completion_tokens"] for _, answer in found) / seconds,
        "median_seconds": statistics.median(latencies),
        "slowest_seconds": latencies[-1],
    }
    return figures, [answer["choices"][0]["text"] for _, answer in found]


def memory(server: Server, flags: argparse.Namespace) -> list[int]:
    """Resident bytes after each sixth of the requests."""
    draw, found = random.Random(1), []

    def one(number: int) -> None:
        prompt = [draw.randrange(256) for _ in range(draw.randrange(1, flags.prompt))]
        body = {"prompt": prompt, "max_tokens": draw.randrange(1, flags.tokens), "n": draw.randrange(1, 4)}
        kind = number % 6
        if kind == 0:
            server.leave({**body, "max_tokens": flags.tokens})
        elif kind == 1:
            server.post({"prompt": "a b " * 250_000})
        elif kind == 2:
            server.post({**body, "echo": True, "logprobs": 5})
        elif kind == 3:
            server.post({**body, "temperature": -1})
        else:
            server.post(body)

    for _ in range(6):
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(one, range(flags.memory // 6)))
        found.append(server.resident)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    for name, default in (
        ("clients", 32), ("requests", 64), ("tokens", 64), ("prompt", 32), ("memory", 600), ("n_layer", 12),
        ("n_embd", 768), ("n_head", 12), ("n_ctx", 1024), ("n_vocab", 50304),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=default, help="default: %(default)s")
    flags = parser.parse_args()
    with served(flags) as server:
        asked = bodies(flags)
        round_of(server, asked[:1], 1)
        round_of(server, asked, flags.clients)
        alone, texts = round_of(server, asked, 1)
        together, others = round_of(server, asked, flags.clients)
        same = sum(a == b for a, b in zip(texts, others, strict=True))
        resident = memory(server, flags) if flags.memory else []
    print(f"{os.cpu_count()} cores; {flags.requests} requests of {flags.prompt} + {flags.tokens} tokens\n")
    print("| clients | requests/s | tokens/s | median latency | slowest |\n|---|---|---|---|---|")
    for clients, row in ((1, alone), (flags.clients, together)):
        print(
            f"| {clients} | {row['requests_per_second']:.2f} | {row['tokens_per_second']:.1f} | "
            f"{row['median_seconds']:.2f} s | {row['slowest_seconds']:.2f} s |"
        )
    gain = together["tokens_per_second"] / alone["tokens_per_second"]
    print(f"\n{gain:.1f} times the throughput; {same} of {len(texts)} texts the same")
    if resident:
        held = ", ".join(f"{x / 1e6:.0f} MB" for x in resident)
        print(f"resident memory, every {flags.memory // 6} requests: {held}")
    results = {"serving": {"one after another": alone, f"{flags.clients} clients": together}}
    facts = {"gain": gain, "texts": len(texts), "same": same, "resident": resident}
    print(f"kept in {machine.keep(f'serving_{flags.n_embd}', results, unit='tokens/s', shape=vars(flags), **facts)}")


if __name__ == "__main__":
    main()
