"""The routes: completions, models, health, and a page to try the model."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gpt_mesh.config import GenerationSettings
from gpt_mesh.data.encoders import Encoder
from gpt_mesh.data.special_tokens import SpecialTokens
from gpt_mesh.serving.access import AllowedHosts, is_key
from gpt_mesh.serving.answers import Answer, ChatAnswer
from gpt_mesh.serving.chat import NO_TEMPLATE, Chat
from gpt_mesh.serving.chat import parse as parse_chat
from gpt_mesh.serving.completions import CompletionRequest, PromptLimits, parse, read_json
from gpt_mesh.serving.errors import ApiError, queue_full
from gpt_mesh.serving.jobs import CompletionJob, Prompts
from gpt_mesh.serving.token_text import TokenText
from gpt_mesh.serving.worker import Worker
from gpt_mesh.storage.progress import log

PAGE = Path(__file__).with_name("page.html")
# The page loads nothing from elsewhere, runs only the script it was written with, and may not be framed.
POLICY = (
    "default-src 'none'; script-src '{script}'; style-src 'unsafe-inline'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {  # of every answer
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}
BODIES = 4  # of the greatest length that may be held, and parsed, at the same time
CLIENT_GONE = 499  # nginx's status code for it


@dataclass(frozen=True)
class Served:
    """The model as clients see it.

    Attributes:
        name: its id in the API.
        created: Unix time at which its weights were saved.
        step: training step of its weights. With the seed of a request it makes the response reproducible.
        defaults: settings that apply where a request has none.
        chat: how conversations are answered; None: the model has no chat template.
    """

    name: str
    created: int
    step: int
    limits: PromptLimits
    defaults: GenerationSettings
    encoder: Encoder
    special: SpecialTokens
    names: TokenText
    chat: Chat | None = None


class App:
    """The state of the server that the routes share."""

    def __init__(
        self,
        served: Served,
        worker: Worker,
        body_bytes: int,
        body_seconds: float,
        api_key: str | None,
        hosts: AllowedHosts,
    ) -> None:
        """
        Args:
            served: the model.
            worker: generates and scores.
            body_bytes: longest body of a request.
            body_seconds: in which a body has to arrive.
            api_key: what requests must carry; None: nothing.
            hosts: Host headers that are answered.
        """
        self.served, self.worker = served, worker
        self._body_bytes, self._body_seconds, self._api_key = body_bytes, body_seconds, api_key
        self._start = time.monotonic()
        self._hosts, self._held = hosts, 0
        self._page = PAGE.read_text(encoding="utf-8")
        self._policy = POLICY.format(script=_digest(self._page))

    def asgi(self) -> ASGIApp:
        """The ASGI application."""
        routes = [
            Route("/", self.page),
            Route("/health", self.health),
            Route("/v1/models", self.models),
            Route("/v1/models/{name:path}", self.model),
            Route("/v1/completions", self.completions, methods=["POST"]),
            Route("/v1/chat/completions", self.chat, methods=["POST"]),
        ]
        handlers: dict[Any, Callable[[Request, Any], Awaitable[Response]]] = {
            ApiError: _refused, HTTPException: _not_routed, ClientDisconnect: _gone, Exception: _failed
        }  # fmt: skip
        app = Starlette(routes=routes, exception_handlers=handlers)
        app.router.redirect_slashes = False
        return AccessLog(Guard(app, self._hosts))

    async def page(self, request: Request) -> Response:
        headers = {"content-security-policy": self._policy, "cache-control": "no-cache"}
        return HTMLResponse(self._page, headers=headers)

    async def health(self, request: Request) -> Response:
        worker = self.worker
        state = {
            "status": "shutting down" if worker.closing else "ok",
            "model": self.served.name,
            "step": self.served.step,
            "context": self.served.limits.n_ctx,
            "chat": self.served.chat is not None,
            "running": worker.running,
            "waiting": worker.waiting,
            "uptime_seconds": round(time.monotonic() - self._start, 1),
        }
        return JSONResponse(state, 503 if worker.closing else 200, headers={"cache-control": "no-store"})

    async def models(self, request: Request) -> Response:
        self._authorize(request)
        return JSONResponse({"object": "list", "data": [self._described()]})

    async def model(self, request: Request) -> Response:
        self._authorize(request)
        self._check_model(request.path_params["name"])
        return JSONResponse(self._described())

    async def completions(self, request: Request) -> Response:
        return await self._respond(request, self._understand, Answer)

    async def chat(self, request: Request) -> Response:
        self._authorize(request)
        if self.served.chat is None:
            raise ApiError(400, NO_TEMPLATE, code="no_chat_template")
        return await self._respond(request, self._understand_chat, ChatAnswer)

    async def _respond(
        self,
        request: Request,
        understand: Callable[[bytes], tuple[CompletionRequest, Prompts]],
        make_answer: type[Answer],
    ) -> Response:
        self._authorize(request)
        if request.headers.get("content-type", "").split(";")[0].strip().lower() != "application/json":
            # Browsers let web pages of other origins send any other type without a CORS preflight.
            raise ApiError(415, "send the header Content-Type: application/json", code="unsupported_media_type")
        with self._body_space() as space:
            try:
                body = await asyncio.wait_for(self._read(request, space), self._body_seconds)
            except asyncio.TimeoutError:
                message = f"the body did not arrive in {self._body_seconds:.0f} s"
                raise ApiError(408, message, code="timeout", headers={"connection": "close"}) from None
            asked, prompts = await run_in_threadpool(understand, body)
        job = CompletionJob(asked, prompts, self.worker, self.served.names)
        answer = make_answer(self.served.name, f"step-{self.served.step}")
        job.start()
        request.state.job = job
        if asked.stream:
            return EventStreamResponse(job, answer)
        try:
            return JSONResponse(await _unless_gone(job.whole(answer), request))
        finally:
            job.cancel()

    def _understand(self, body: bytes) -> tuple[CompletionRequest, Prompts]:
        asked = parse(read_json(body), self.served.defaults)
        if asked.model is not None:
            self._check_model(asked.model)
        return asked, Prompts(asked, self.served.limits, self.served.encoder, self.served.special)

    def _understand_chat(self, body: bytes) -> tuple[CompletionRequest, Prompts]:
        served, values = self.served, read_json(body)
        assert served.chat is not None
        asked = parse_chat(values, served.defaults, served.chat, served.encoder, served.limits)
        if asked.model is not None:
            self._check_model(asked.model)
        return asked, Prompts(asked, served.limits, served.encoder, served.special)

    async def _read(self, request: Request, hold: Callable[[int], None]) -> bytes:
        """The body. The rest of one that is too long is read too, up to a point, but not kept: otherwise the client
        might not get to read the answer. `hold` is told how many bytes are kept.
        """
        parts, length = [], 0
        async for part in request.stream():
            length += len(part)
            if length <= self._body_bytes:
                hold(len(part))
                parts.append(part)
            elif length > 16 * self._body_bytes:
                break
        if length > self._body_bytes:
            message = f"the body is longer than {self._body_bytes} bytes, the maximum of this server"
            raise ApiError(413, message, code="body_too_large", headers={"connection": "close"})
        return b"".join(parts)

    @contextmanager
    def _body_space(self) -> Iterator[Callable[[int], None]]:
        """Counts the bytes of a body, until it is parsed. JSON may take thirty times the memory of its text, so bodies
        that together exceed `BODIES` of the greatest length are refused before they are parsed.
        """
        held = 0

        def hold(count: int) -> None:
            nonlocal held
            if self._held + count > BODIES * self._body_bytes:
                raise queue_full()
            held += count
            self._held += count

        try:
            yield hold
        finally:
            self._held -= held

    def _authorize(self, request: Request) -> None:
        if self._api_key is None:
            return
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not is_key(key.strip(), self._api_key):
            headers = {"www-authenticate": "Bearer"}
            raise ApiError(401, "this server requires its API key", code="invalid_api_key", headers=headers)

    def _check_model(self, name: str) -> None:
        if name != self.served.name:
            shown = name if len(name) <= 60 else name[:60] + "…"
            message = f"there is no model {shown!r}; this server has {self.served.name!r}"
            raise ApiError(404, message, param="model", code="model_not_found")

    def _described(self) -> dict[str, Any]:
        served = self.served
        return {
            "id": served.name,
            "object": "model",
            "created": served.created,
            "owned_by": "local",
            "max_model_len": served.limits.n_ctx,
        }


class EventStreamResponse(StreamingResponse):
    """A job's response as server-sent events. The job ends with it, even if the client disconnects before it starts."""

    media_type = "text/event-stream"

    def __init__(self, job: CompletionJob, answer: Answer) -> None:
        super().__init__(job.parts(answer), headers={"cache-control": "no-store", "x-accel-buffering": "no"})
        self._job = job

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._job.cancel()


async def _unless_gone(result: Awaitable[dict[str, Any]], request: Request) -> dict[str, Any]:
    """The result, if the client waits for it.

    Raises:
        ClientDisconnect: the client disconnected first.
    """

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    wanted, unwanted = asyncio.ensure_future(result), asyncio.ensure_future(gone())
    try:
        await asyncio.wait({wanted, unwanted}, return_when=asyncio.FIRST_COMPLETED)
        if not wanted.done():
            raise ClientDisconnect
        return wanted.result()
    finally:
        wanted.cancel()
        unwanted.cancel()


async def _refused(request: Request, error: ApiError) -> Response:
    return JSONResponse(error.body(), error.status, headers=error.headers)


async def _gone(request: Request, error: ClientDisconnect) -> Response:
    """Nobody reads the response, but its status is logged."""
    return Response(status_code=CLIENT_GONE)


async def _not_routed(request: Request, error: HTTPException) -> Response:
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "")
        message = f"{_path(request.scope)} does not accept {request.method}; use {allowed}"
        refusal = ApiError(405, message, code="method_not_allowed", headers={"allow": allowed})
    else:
        message = f"{_path(request.scope)} does not exist; use /v1/completions, /v1/chat/completions or /v1/models"
        refusal = ApiError(error.status_code, message, code="not_found")
    return await _refused(request, refusal)


async def _failed(request: Request, error: Exception) -> Response:
    """The response to an unexpected exception, which Starlette raises again and uvicorn logs."""
    return await _refused(request, ApiError(500, "the server failed; its log says more", code="internal_error"))


def _digest(page: str) -> str:
    """The page's script, as a Content-Security-Policy names it."""
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.S)
    return f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}"


class Guard:
    """Refuses requests to names that are not the server's, and adds the headers of every answer."""

    def __init__(self, app: ASGIApp, hosts: AllowedHosts) -> None:
        self._app, self._hosts = app, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        given = Headers(scope=scope).getlist("host")
        if len(given) == 1 and self._hosts.allows(given[0]):
            await self._app(scope, receive, guarded)
            return
        message = "this server does not answer to that Host; use its address, or name the host with --serve_hosts"
        refusal = ApiError(421, message, code="unknown_host", headers={"connection": "close"})
        await JSONResponse(refusal.body(), refusal.status, headers=refusal.headers)(scope, receive, guarded)


class AccessLog:
    """Logs one line for each request, when its response has ended."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        status, whole, begin = CLIENT_GONE, False, time.monotonic()

        async def watched(message: Message) -> None:
            nonlocal status, whole
            if message["type"] == "http.response.start":
                status = message["status"]
            else:
                whole = not message.get("more_body", False)
            await send(message)

        scope.setdefault("state", {})
        try:
            await self._app(scope, receive, watched)
        finally:
            if scope["path"] != "/health" or status != 200:  # health checks come every few seconds
                self._write(scope, status, whole, time.monotonic() - begin)

    def _write(self, scope: Scope, status: int, whole: bool, seconds: float) -> None:
        host, port = scope.get("client") or ("-", 0)
        tokens = scope["state"]["job"].usage() if "job" in scope["state"] else None
        work = f", {tokens['prompt_tokens']} + {tokens['completion_tokens']} tokens" if tokens else ""
        cut = "" if whole else ", the client disconnected"
        log.info('%s:%d "%s %s" %d, %.3f s%s%s', host, port, scope["method"], _path(scope), status, seconds, work, cut)


def _path(scope: Scope) -> str:
    """The path for a log line, without control characters."""
    return quote(scope["path"], safe="/:@!$&'()*+,;=~-._")[:200]
