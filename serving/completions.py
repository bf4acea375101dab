"""Completion requests: parsed from JSON and validated before anything is computed.

The format is that of OpenAI's `/v1/completions`, with three keys of other servers: `top_k`, `repetition_penalty` and
`min_tokens`. Unknown and unsupported keys are errors: ignoring them would silently change the response.
"""

from __future__ import annotations

import json
import math
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, PlainValidator, Strict, ValidationError, ValidationInfo

from gpt_mesh.config import GenerationSettings, Group
from gpt_mesh.config.fields import Flag, Natural
from gpt_mesh.config.generation import RepetitionPenalty, Seed, Temperature, TopP, strings
from gpt_mesh.config.messages import Refused, nearest
from gpt_mesh.config.reading import reason
from gpt_mesh.generation.requests import HALF, half_character
from gpt_mesh.serving.errors import ApiError, invalid

DEFAULT_MAX_TOKENS = 16  # OpenAI's default
MAX_LOGPROBS = 5
MAX_STOPS = 4
ANY = 2**31 - 1
MAX_SEQUENCES = 128  # per request: prompts times the larger of n and best_of

Prompt = str | tuple[int, ...]


@dataclass(frozen=True)
class CompletionRequest:
    """What a client requests.

    Attributes:
        model: the requested name, or None.
        prompts: texts or token ids, at least one.
        max_tokens: None for the server's default.
        n: completions of each prompt; the likeliest of `best_of`.
        logprobs: how many of the likeliest tokens to report at each position; None for no log-probabilities.
        echo: put the prompt before the completion.
        stream: send the text as it is generated.
        include_usage: end the stream with the number of tokens.
        settings: settings of each prompt's first completion; `seed` increases by 1 for each further one.
    """

    model: str | None
    prompts: tuple[Prompt, ...]
    max_tokens: int | None
    n: int
    best_of: int
    logprobs: int | None
    echo: bool
    stream: bool
    include_usage: bool
    settings: GenerationSettings

    @property
    def sequences(self) -> int:
        """How many texts to generate."""
        return len(self.prompts) * self.best_of

    def settings_of(self, choice: int, max_tokens: int) -> GenerationSettings:
        """The settings of completion number `choice` of a prompt. `max_tokens` must be at least 1."""
        assert self.settings.seed is not None
        # Always the maximum, since each other number would be compiled separately. `best_of` needs them for its ranking
        # even if they are not requested.
        logprobs = MAX_LOGPROBS if self.logprobs is not None or self.best_of > self.n else None
        own = {"seed": self.settings.seed + choice, "max_new_tokens": max_tokens, "logprobs": logprobs}
        return self.settings.model_copy(update=own)


def read_json(body: bytes) -> dict[str, Any]:
    """The JSON object of a request's body.

    Raises:
        ApiError: it is not a JSON object.
    """

    def finite(text: str) -> float:
        if not math.isfinite(number := float(text)):
            raise ValueError(f"{text[:20]} is not a finite number")
        return number

    try:
        values = json.loads(body.decode("utf-8"), parse_constant=finite, parse_float=finite)
    except (ValueError, RecursionError) as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
        reason = "is nested too deeply" if isinstance(error, RecursionError) else f"cannot be read: {error}"
        raise ApiError(400, f"the body is not valid JSON: it {reason}", code="invalid_json") from None
    if not isinstance(values, dict):
        raise ApiError(400, 'the body must be a JSON object such as {"prompt": "Once"}', code="invalid_json")
    return values


def parse(values: Mapping[str, Any], defaults: GenerationSettings) -> CompletionRequest:
    """Validate a completion request.

    Args:
        values: the JSON object. A null value means that the key is absent.
        defaults: settings for absent keys.

    Raises:
        ApiError: a key is invalid; the message names it.
    """
    values = {name: value for name, value in values.items() if value is not None}
    for name in values:
        if name not in _Body.model_fields:
            raise invalid(shortened(name), f"unknown key{nearest(name, _Body.model_fields) or '; leave it out'}")
    if "prompt" not in values:
        raise invalid("prompt", 'is missing; give a text such as "Once upon a time"', code="missing")
    try:
        body = _Body.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = ".".join(place for place in first["loc"] if isinstance(place, str))
        raise invalid(name, reason(_Body, first, named=False)) from None
    request = CompletionRequest(
        model=body.model,
        prompts=body.prompt,
        max_tokens=body.max_tokens,
        n=body.n,
        best_of=body.best_of or body.n,
        logprobs=body.logprobs,
        echo=body.echo,
        stream=body.stream,
        include_usage=body.stream_options.include_usage,
        settings=_settings(body, defaults),
    )
    _check_together(request, values)
    return request


def _check_together(request: CompletionRequest, values: Mapping[str, Any]) -> None:
    if request.sequences > MAX_SEQUENCES:
        raise invalid(
            "prompt", f"asks for {request.sequences} completions; the maximum for one request is {MAX_SEQUENCES}"
        )
    if request.stream and request.best_of > request.n:
        raise invalid("best_of", "does not go with stream: the best is known at the end; leave out one of the two")
    if "stream_options" in values and not request.stream:
        raise invalid("stream_options", "goes with stream = true only")
    max_tokens = DEFAULT_MAX_TOKENS if request.max_tokens is None else request.max_tokens
    if (min_tokens := request.settings.min_new_tokens) > max_tokens:
        raise invalid("min_tokens", f"{min_tokens} is more than max_tokens ({max_tokens})")


def _settings(body: _Body, defaults: GenerationSettings) -> GenerationSettings:
    """The client's sampling settings and stop strings, with the config's as defaults."""
    own = ("temperature", "top_p", "top_k", "repetition_penalty", "seed", "stop")
    given = {name: getattr(body, name) for name in own if name in body.model_fields_set}
    others = {"num_beams": 1, "num_samples": None, "max_new_tokens": None, "logprobs": None}
    fresh = {"seed": secrets.randbits(31), "min_new_tokens": body.min_tokens}
    return defaults.model_copy(update=others | fresh | given)


def _prompts(value: Any) -> tuple[Prompt, ...]:
    """A string, a list of strings, a list of token ids, or a list of such lists."""
    if isinstance(value, str):
        return (unicode(value),)
    if isinstance(value, list) and value:
        if len(value) > MAX_SEQUENCES and isinstance(value[0], str | list):
            raise Refused(f"has {len(value)} prompts; the maximum for one request is {MAX_SEQUENCES}")
        if all(isinstance(item, str) for item in value):
            return tuple(unicode(item) for item in value)
        if _are_ids(value):
            return (tuple(value),)
        if all(isinstance(item, list) and item and _are_ids(item) for item in value):
            return tuple(tuple(item) for item in value)
    raise Refused("must be a string, a list of strings, a list of token ids, or a list of such lists")


def _are_ids(items: Sequence[Any]) -> bool:
    return all(type(item) is int for item in items)  # True is an int too


def _stop(value: Any) -> tuple[str, ...]:
    """The stop strings; an empty list means that nothing stops the text."""
    problem = f"must be a string or a list of at most {MAX_STOPS} strings, none empty"
    found = strings(value, problem)
    if len(found) > MAX_STOPS:
        raise Refused(problem)
    return tuple(unicode(item) for item in found)


def unicode(text: str) -> str:
    """The text, if it is valid Unicode: JSON can contain lone surrogates."""
    if (place := half_character(text)) is not None:
        raise Refused(f"{HALF} at character {place}; send whole characters")
    return text


def _between(value: Any, low: int, high: int) -> int:
    """The value, if it is an integer in this range."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if type(value) is not int or not low <= value <= high:
        raise Refused(f"must be a whole number {f'from {low} to {high}' if high < ANY else f'of at least {low}'}")
    return value


def whole(low: int, high: int = ANY) -> BeforeValidator:
    return BeforeValidator(lambda value: _between(value, low, high))


def _best_of(value: Any, info: ValidationInfo) -> int:
    return _between(value, info.data.get("n", 1), MAX_SEQUENCES)


def only(harmless: Any, *, boolean: bool = False) -> BeforeValidator:
    """A key of OpenAI's API that is not supported: only the value that has no effect is accepted."""

    def check(value: Any) -> Any:
        if (isinstance(value, bool) and not boolean) or value != harmless:
            raise Refused("is not supported; leave it out")
        return value

    return BeforeValidator(check)


class _StreamOptions(Group):
    example: ClassVar[str] = '{"include_usage": true}'

    include_usage: Flag = False
    include_obfuscation: Any = None


class Sampling(Group):
    """The keys that requests for completions and for chat share, each validated on its own."""

    model: Annotated[str, Strict()] | None = None
    stream: Flag = False
    stream_options: _StreamOptions = _StreamOptions()
    stop: Annotated[tuple[str, ...], PlainValidator(_stop)] = ()
    user: Annotated[str, Strict()] | None = None  # has no effect on the response
    temperature: Temperature = 0.0  # of these five, only values that the client sets are used
    top_p: TopP = 1.0
    top_k: Natural = 0
    repetition_penalty: RepetitionPenalty = 1.0
    seed: Seed = 0
    presence_penalty: Annotated[Any, only(0)] = 0
    frequency_penalty: Annotated[Any, only(0)] = 0
    logit_bias: Annotated[Any, only({})] = None


class _Body(Sampling):
    """The keys of a request for completions."""

    prompt: Annotated[tuple[Prompt, ...], PlainValidator(_prompts)]
    max_tokens: Annotated[int, whole(0)] | None = None
    min_tokens: Annotated[int, whole(0)] = 0
    n: Annotated[int, whole(1, MAX_SEQUENCES)] = 1
    best_of: Annotated[int, BeforeValidator(_best_of)] | None = None
    logprobs: Annotated[int, whole(0, MAX_LOGPROBS)] | None = None
    echo: Flag = False
    suffix: Annotated[Any, only("")] = ""


def shortened(name: str) -> str:
    return name if len(name) <= 40 else name[:40] + "…"


@dataclass(frozen=True)
class PromptLimits:
    """Limits of prompts: the model's context, its vocabulary, and the length of its longest token in bytes."""

    n_ctx: int
    n_vocab: int
    longest_token: int


def encode(
    prompt: Prompt, request: CompletionRequest, limits: PromptLimits, ids_of: Callable[[str], list[int]]
) -> list[int]:
    """The token ids of a prompt.

    Raises:
        ApiError: the prompt and the requested tokens exceed the context, or an id is not in the vocabulary.
    """
    asked = request.max_tokens
    if isinstance(prompt, str):
        # Rejects a prompt of a megabyte without encoding it.
        min_length = -(-len(prompt.encode()) // limits.longest_token)
        tokens = [] if min_length > limits.n_ctx else ids_of(prompt)
        length = max(min_length, len(tokens))
    else:
        tokens, length = list(prompt), len(prompt)
        if (wrong := next((token for token in prompt if not 0 <= token < limits.n_vocab), None)) is not None:
            raise invalid("prompt", f"token id {str(wrong)[:20]}: ids are from 0 to {limits.n_vocab - 1}")
    if length + (1 if asked is None else asked) > limits.n_ctx:
        counted = f"{length} tokens" if tokens else f"at least {length} tokens"
        room = f"{asked} more are requested" if asked else "there is no room for another"
        raise ApiError(
            400,
            f"the context of this model is {limits.n_ctx} tokens; the prompt has {counted}, and {room}: shorten the "
            "prompt, or lower max_tokens",
            param="prompt",
            code="context_length_exceeded",
        )
    return tokens
