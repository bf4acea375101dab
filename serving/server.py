"""`main.py --serve`: runs the web server and shuts it down."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import gpt_mesh.meshes.compat  # noqa: F401  (before TensorFlow, which it keeps quiet)

import tensorflow as tf

from gpt_mesh import api
from gpt_mesh.config import GenerationSettings
from gpt_mesh.data.chat_template import ChatTemplate
from gpt_mesh.errors import InputError
from gpt_mesh.evaluation.scoring import Scorer
from gpt_mesh.generation.generator import Generator
from gpt_mesh.generation.requests import Event, GenerationRequest
from gpt_mesh.serving.access import API_KEY, AllowedHosts
from gpt_mesh.serving.address import is_loopback, url
from gpt_mesh.serving.chat import Chat
from gpt_mesh.serving.completions import MAX_LOGPROBS, PromptLimits
from gpt_mesh.serving.token_text import TokenText
from gpt_mesh.serving.worker import EventStream, Worker
from gpt_mesh.storage.progress import alive, log

try:
    import uvicorn

    from gpt_mesh.serving.app import App, Served
    from gpt_mesh.serving.connections import Connection, ConnectionLimits
except ModuleNotFoundError as missing:
    if missing.name not in ("uvicorn", "starlette"):
        raise
    raise InputError(f"--serve needs {missing.name}: pip install starlette uvicorn") from None

CACHE_BYTES = 4 * 2**30  # default limit for the keys and values of a batch
MAX_BATCH = 32
MIDDLE_BATCH = 8


@dataclass(frozen=True)
class ServerSettings:
    """Limits of the server.

    Attributes:
        max_batch: maximum number of sequences that are generated together.
        max_waiting: maximum number of sequences that wait for a batch.
        max_wait: seconds that a sequence waits for others to share its batch.
        body_bytes: maximum size of a request's body.
        body_seconds: in which it has to arrive.
        grace_seconds: in which requests may finish when the server is asked to end.
        client_connections: most connections of one client; all clients together may have four times as many.
        header_seconds, write_seconds: see `ConnectionLimits`.
        api_key: what requests must carry; None: nothing.
        hosts: names, besides its own, that the server answers to.
    """

    max_batch: int
    max_waiting: int = 256
    max_wait: float = 0.01
    body_bytes: int = 4 * 2**20
    body_seconds: float = 30.0
    grace_seconds: float = 30.0
    client_connections: int = 128
    header_seconds: float = 20.0
    write_seconds: float = 60.0
    api_key: str | None = None
    hosts: tuple[str, ...] = ()


def default_batch(model: api.Model) -> int:
    """The largest power of two, up to 32, whose keys and values take at most 4 GiB."""
    shape = model.config.model
    number = 2 if model.config.training.precision == "bfloat16" else 4
    one = 2 * shape.n_layer * shape.n_ctx * shape.n_embd * number
    fitting = max(1, min(MAX_BATCH, CACHE_BYTES // one))
    return 1 << (fitting.bit_length() - 1)


def run(
    model: api.Model, bound: socket.socket, settings: ServerSettings, template: ChatTemplate | None = None
) -> None:
    """Serve a model until SIGINT or SIGTERM. `template`: of conversations, in place of the model's own."""
    server = WebServer(model, settings, bound, template)
    with alive("compiling the model"):
        server.compile()
    if not is_loopback(bound):
        _warn(url(bound), settings.api_key)
    server.run_until_signal(bound)


class Batches:
    """A model that scores, and that generates in batches of a few fixed sizes, since each size is compiled."""

    def __init__(self, generator: Generator, scorer: Scorer, largest: int) -> None:
        generator.max_batch = largest
        self._generator, self.score = generator, scorer.score
        self.sizes = sorted({1, min(MIDDLE_BATCH, largest), largest})

    def compile(self) -> None:
        """Compile the functions that most requests need."""
        for size in self.sizes:
            self._generator.warm_up(size)

    def stream(self, requests: Sequence[GenerationRequest]) -> FilledStream:
        """Continue prompts. The batch is padded with dummy requests up to the next size."""
        size = next(size for size in self.sizes if size >= len(requests))
        filler = GenerationRequest(requests[0].prompt, GenerationSettings(max_new_tokens=1))
        filled = [*requests, *[filler] * (size - len(requests))]
        return FilledStream(self._generator.stream(filled), len(requests))


class FilledStream:
    """A stream without the events of its dummy requests."""

    def __init__(self, stream: EventStream, count: int) -> None:
        self._stream, self._count, self.cancel = stream, count, stream.cancel

    def __iter__(self) -> Iterator[Event]:
        return (event for event in self._stream if event.index < self._count)


class WebServer(uvicorn.Server):
    """A model's web server. At shutdown it finishes the requests that it has accepted."""

    def __init__(
        self, model: api.Model, settings: ServerSettings, bound: socket.socket, template: ChatTemplate | None = None
    ) -> None:
        grace = settings.grace_seconds
        batches = Batches(model.generator(), model.scorer(MAX_LOGPROBS), settings.max_batch)
        self.compile = batches.compile
        self._worker = Worker(batches, settings.max_batch, settings.max_waiting, settings.max_wait)
        self._grace, self._served = grace, _served(model, template)
        hosts = AllowedHosts(bound, settings.hosts)
        app = App(self._served, self._worker, settings.body_bytes, settings.body_seconds, settings.api_key, hosts)
        each = settings.client_connections
        limits = ConnectionLimits(each, 4 * each, settings.header_seconds, settings.write_seconds)
        protocol: Any = partial(Connection, limits)  # uvicorn calls it for each connection
        super().__init__(
            uvicorn.Config(
                app.asgi(), http=protocol, loop="asyncio", ws="none", lifespan="off", log_config=None, access_log=False,
                proxy_headers=False, server_header=False, timeout_keep_alive=30,
                timeout_graceful_shutdown=int(grace) + 5,
            )
        )  # fmt: skip

    def run_until_signal(self, bound: socket.socket) -> None:
        """Serve; returns when everything has ended."""
        # After shutdown uvicorn raises the signal again for the previous handler; these handlers ignore it.
        before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            self.run(sockets=[bound])
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        self._worker.abandon()
        if self._worker.join(5.0):
            log.info("ended")
            return
        log.warning("the model is still busy; exiting anyway (nothing is lost)")
        os._exit(0)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept connections, and log the address."""
        self._worker.start()
        await super().startup(sockets)
        for bound in sockets or []:
            log.info("serving %s at %s (Ctrl-C stops it)", self._served.name, url(bound))

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Reject new requests and finish accepted ones; after the grace period, fail those that are left."""
        log.info("shutting down: finishing accepted requests, for up to %.0f s; Ctrl-C stops immediately", self._grace)
        self._worker.close()
        late = asyncio.get_running_loop().call_later(self._grace, self._worker.abandon)
        await super().shutdown(sockets)
        late.cancel()


def _served(model: api.Model, template: ChatTemplate | None) -> Served:
    config, encoder = model.config, model.encoder
    template = template or model.chat_template
    names = TokenText(encoder)
    return Served(
        name=os.path.splitext(os.path.basename(config.source))[0],
        created=_modified(model.checkpoint),
        step=model.step,
        limits=PromptLimits(config.model.n_ctx, config.model.n_vocab, names.longest),
        defaults=config.training.generation,
        encoder=encoder,
        special=model.special_tokens,
        names=names,
        chat=None if template is None else Chat.of(template),
    )


def _modified(checkpoint: str) -> int:
    """Unix time at which a checkpoint was written; the current time if that is unknown."""
    try:
        return int(tf.io.gfile.stat(f"{checkpoint}.index").mtime_nsec / 1e9)
    except (tf.errors.OpError, OSError):
        return int(time.time())


def _warn(where: str, key: str | None) -> None:
    guard = f"they need the key in {API_KEY}" if key else f"set {API_KEY} in the environment to ask for a key"
    log.warning("%s: every machine that can reach this one can use the model; %s; nothing is encrypted", where, guard)
