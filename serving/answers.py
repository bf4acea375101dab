"""Responses in the format of OpenAI's `/v1/completions`: complete, or streamed in parts."""

from __future__ import annotations

import json
import math
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from gpt_mesh.evaluation.scoring import TokenScores
from gpt_mesh.generation.requests import Event, TokenLogprob
from gpt_mesh.serving.token_text import TokenPlaces, TokenText


class Logprobs:
    """Log-probabilities of the tokens of one text, as lists of equal length. They can be read in parts."""

    def __init__(self, names: TokenText, top: int, before: int | None = None) -> None:
        """
        Args:
            names: the names of the tokens.
            top: how many of the likeliest tokens to report at each position.
            before: the token that the text continues; None at the start of a text.
        """
        self._names, self._top, self._before = names, top, before
        self._text_places = TokenPlaces(names, 0, before)
        self._places: list[tuple[str, float | None, dict[str, float] | None, int]] = []

    def add_prompt(self, text: str, tokens: Sequence[int], scores: TokenScores | None) -> None:
        """Add the prompt, before anything else. Its first token has no log-probability, since nothing predicts it.

        `scores`: None for a prompt of one token.
        """
        offsets = self._names.offsets(text, tokens)
        self._add(tokens[0], None, (), offsets[0])
        if scores is not None:
            for place, token in enumerate(tokens[1:]):
                found = zip(scores.top_tokens[place], scores.top_logprobs[place], strict=True)
                top = [(int(other), float(value)) for other, value in found]
                self._add(token, scores.logprobs[place], top, offsets[place + 1])
        self._text_places = TokenPlaces(self._names, len(text), self._before)

    def add(self, found: Sequence[TokenLogprob]) -> None:
        """Add generated tokens."""
        for item in found:
            top = [(token, value) for token, _, value in item.top]
            self._add(item.token, item.logprob, top, self._text_places.add(item.token))

    def _add(self, token: int, logprob: float | None, top: Sequence[tuple[int, float]], offset: int) -> None:
        name, own = self._names.name(token), None if logprob is None else _number(logprob)
        likeliest: dict[str, float] = {}
        for other, value in top[: self._top]:
            likeliest.setdefault(self._names.name(other), _number(value))  # the likeliest of tokens with the same name
        if likeliest and own is not None:  # OpenAI includes the token itself
            likeliest.setdefault(name, own)
        self._places.append((name, own, likeliest or None, offset))

    def take(self) -> dict[str, Any]:
        """The JSON of what was added since the last call. `top_logprobs` is null if no alternatives were requested."""
        keys = ("tokens", "token_logprobs", "top_logprobs", "text_offset")
        columns: dict[str, Any] = {key: [place[column] for place in self._places] for column, key in enumerate(keys)}
        if not self._top:
            columns["top_logprobs"] = None
        self._places = []
        return columns


def _number(logprob: float) -> float:
    """JSON has no infinity: OpenAI reports a probability that rounds to 0 as -9999."""
    return float(logprob) if math.isfinite(logprob) else -9999.0


Place = Literal["whole", "first", "later"]
"""Of a part in its text."""


@dataclass
class Text:
    """One completion, as it grows."""

    text: str = ""
    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish_reason: str | None = None

    def add(self, event: Event) -> None:
        self.text += event.text
        self.tokens += event.tokens
        self.logprobs += event.logprobs or ()
        self.finish_reason = event.finish_reason

    @property
    def likelihood(self) -> float:
        """Mean log-probability of its tokens, by which `best_of` ranks completions."""
        values = [item.logprob for item in self.logprobs]
        return sum(values) / len(values) if values else -math.inf


class Answer:
    """A response in the form of completions: the fields shared by all of its parts, and the form of a choice."""

    prefix, whole_object, part_object = "cmpl", "text_completion", "text_completion"

    def __init__(self, model: str, fingerprint: str) -> None:
        self._head = {
            "id": f"{self.prefix}-{uuid.uuid4().hex}",
            "object": self.whole_object,
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": fingerprint,
        }

    def choice(
        self, index: int, text: str, logprobs: dict[str, Any] | None, finish_reason: str | None, place: Place
    ) -> dict[str, Any]:
        """One text, or a part of it."""
        del place
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish_reason}

    def logprobs(self, names: TokenText, top: int, before: int | None) -> Logprobs:
        """See `Logprobs`."""
        return Logprobs(names, top, before)

    def whole(self, choices: Sequence[dict[str, Any]], usage: dict[str, int]) -> dict[str, Any]:
        """The JSON of a complete response."""
        return {**self._head, "choices": list(choices), "usage": usage}

    def part(self, choices: Sequence[dict[str, Any]], **more: Any) -> bytes:
        """One server-sent event of a stream."""
        return sse({**self._head, "object": self.part_object, "choices": list(choices), **more})


class ChatAnswer(Answer):
    """A response in the form of `/v1/chat/completions`."""

    prefix, whole_object, part_object = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def choice(
        self, index: int, text: str, logprobs: dict[str, Any] | None, finish_reason: str | None, place: Place
    ) -> dict[str, Any]:
        found: dict[str, Any] = {"index": index, "logprobs": logprobs, "finish_reason": finish_reason}
        if place == "whole":
            return {**found, "message": {"role": "assistant", "content": text, "refusal": None}}
        role = {"role": "assistant"} if place == "first" else {}
        return {**found, "delta": {**role, "content": text}}

    def logprobs(self, names: TokenText, top: int, before: int | None) -> ChatLogprobs:
        return ChatLogprobs(names, top, before)


class ChatLogprobs(Logprobs):
    """The same as one entry a token, with its bytes."""

    def __init__(self, names: TokenText, top: int, before: int | None = None) -> None:
        super().__init__(names, top, before)
        self._entries: list[dict[str, Any]] = []

    def add(self, found: Sequence[TokenLogprob]) -> None:
        for item in found:
            top = [self._entry(token, value) for token, _, value in item.top[: self._top]]
            self._entries.append({**self._entry(item.token, item.logprob), "top_logprobs": top})

    def take(self) -> dict[str, Any]:
        """The JSON of what was added since the last call."""
        found, self._entries = self._entries, []
        return {"content": found, "refusal": None}

    def _entry(self, token: int, logprob: float) -> dict[str, Any]:
        name = self._names.name(token)
        return {"token": name, "logprob": _number(logprob), "bytes": list(self._names.data(token))}


def usage(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    """Tokens read and generated."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


def sse(values: dict[str, Any]) -> bytes:
    """A server-sent event with JSON (https://html.spec.whatwg.org/multipage/server-sent-events.html)."""
    return b"data: " + json.dumps(values, separators=(",", ":")).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": waiting\n\n"  # a comment, which clients ignore
