"""A request for completions: read from JSON and checked, before anything is computed.

The form is that of OpenAI's `/v1/completions`, with three keys of other servers: `top_k`, `repetition_penalty` and
`min_tokens`. A key that is not known, or asks for what is not built, is refused: to ignore it would change the answer
without a word.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gpt_mesh.config import GenerationSettings, generation_settings
from gpt_mesh.errors import InputError
from gpt_mesh.generation.requests import HALF, half_character
from gpt_mesh.serving.errors import ApiError, invalid

DEFAULT_MAX_TOKENS = 16  # as OpenAI's interface has it
MOST_LOGPROBS = 5
MOST_STOPS = 4
MOST_SEQUENCES = 128  # of one request: prompts times the larger of n and best_of

# Keys that mean the same as a generation setting, which knows what they may be.
SETTINGS = ("temperature", "top_p", "top_k", "repetition_penalty", "seed")
# Keys of the interface that are accepted only at the value that asks for nothing.
NOT_BUILT: dict[str, tuple[Any, ...]] = {
    "suffix": ("",), "presence_penalty": (0,), "frequency_penalty": (0,), "logit_bias": ({},)
}  # fmt: skip
KNOWN = (
    "model", "prompt", "max_tokens", "min_tokens", "n", "best_of", "stream", "stream_options", "logprobs", "echo",
    "stop", "user", *SETTINGS, *NOT_BUILT,
)  # fmt: skip

Prompt = str | tuple[int, ...]


@dataclass(frozen=True)
class CompletionRequest:
    """What a client asks for.

    Attributes:
        model: the name it gave; None: none.
        prompts: texts or token ids, at least one.
        max_tokens: None: the client left it to the server.
        n: completions of each prompt; the likeliest of `best_of`.
        logprobs: how many of the likeliest tokens to report at each place; None: no log-probabilities.
        echo: put the prompt before the completion.
        stream: send the text as it comes; `include_usage`: and the number of tokens at the end.
        settings: of the first completion of a prompt; the next has `seed` + 1.
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
        """How many texts have to be generated."""
        return len(self.prompts) * self.best_of

    def settings_of(self, choice: int, max_tokens: int) -> GenerationSettings:
        """The settings of a prompt's completion number `choice`. At most so many tokens, at least 1."""
        assert self.settings.seed is not None
        # As many as anyone may ask for: another number is compiled anew. And which of several texts is the likeliest is
        # told by them, asked for or not.
        logprobs = MOST_LOGPROBS if self.logprobs is not None or self.best_of > self.n else None
        return dataclasses.replace(
            self.settings, seed=self.settings.seed + choice, max_new_tokens=max_tokens, logprobs=logprobs
        )


def read_json(body: bytes) -> dict[str, Any]:
    """The JSON object of a request's body.

    Raises:
        ApiError: it is none.
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
    """A request for completions.

    Args:
        values: the JSON object. null means that a key is left out.
        defaults: the settings of the keys left out.

    Raises:
        ApiError: naming the key that is wrong.
    """
    values = {name: value for name, value in values.items() if value is not None}
    for name in values:
        if name not in KNOWN:
            near = difflib.get_close_matches(name, KNOWN, n=1)
            remedy = f"did you mean {near[0]}?" if near else "leave it out"
            raise invalid(_shortened(name), f"unknown key; {remedy}")
    for name, harmless in NOT_BUILT.items():
        if name in values and (isinstance(values[name], bool) or values[name] not in harmless):
            raise invalid(name, "is not supported; leave it out")
    n = _integer(values, "n", 1, 1, MOST_SEQUENCES)
    request = CompletionRequest(
        model=_text(values, "model"),
        prompts=_prompts(values.get("prompt")),
        max_tokens=_integer(values, "max_tokens", None, 0),
        n=n,
        best_of=_integer(values, "best_of", n, n, MOST_SEQUENCES),
        logprobs=_integer(values, "logprobs", None, 0, MOST_LOGPROBS),
        echo=_flag(values, "echo"),
        stream=_flag(values, "stream"),
        include_usage=_include_usage(values),
        settings=_settings(values, defaults),
    )
    _text(values, "user")  # whose request it is says nothing about the answer
    _check_together(request, values)
    return request


def _check_together(request: CompletionRequest, values: Mapping[str, Any]) -> None:
    if request.sequences > MOST_SEQUENCES:
        raise invalid(
            "prompt", f"asks for {request.sequences} completions; the most for one request are {MOST_SEQUENCES}"
        )
    if request.stream and request.best_of > request.n:
        raise invalid("best_of", "does not go with stream: the best is known at the end; leave out one of the two")
    if "stream_options" in values and not request.stream:
        raise invalid("stream_options", "goes with stream = true only")
    least, most = request.settings.min_new_tokens, request.max_tokens
    if least > (DEFAULT_MAX_TOKENS if most is None else most):
        raise invalid("min_tokens", f"{least} is more than max_tokens ({DEFAULT_MAX_TOKENS if most is None else most})")


def _settings(values: Mapping[str, Any], defaults: GenerationSettings) -> GenerationSettings:
    """Each key is checked by itself, so that the refusal can name it."""
    settings = dataclasses.replace(
        defaults, num_beams=1, num_samples=None, max_new_tokens=None, min_new_tokens=0, logprobs=None, seed=None
    )
    for name in SETTINGS:
        if name in values:
            try:
                settings = generation_settings({name: values[name]}, "request", settings)
            except InputError as error:
                raise invalid(name, str(error).split(": ", 2)[-1]) from None
    if settings.seed is None:
        settings = dataclasses.replace(settings, seed=secrets.randbits(31))
    stop = _stop(values.get("stop"))
    least = _integer(values, "min_tokens", 0, 0)
    return dataclasses.replace(settings, stop=settings.stop if stop is None else stop, min_new_tokens=least)


def _prompts(value: Any) -> tuple[Prompt, ...]:
    """A string, a list of strings, a list of token ids, or a list of such lists."""
    if value is None:
        raise invalid("prompt", 'is missing; give a text such as "Once upon a time"', code="missing")
    if isinstance(value, str):
        return (_unicode("prompt", value),)
    if isinstance(value, list) and value:
        if len(value) > MOST_SEQUENCES and isinstance(value[0], str | list):
            raise invalid("prompt", f"has {len(value)} prompts; the most for one request are {MOST_SEQUENCES}")
        if all(isinstance(item, str) for item in value):
            return tuple(_unicode("prompt", item) for item in value)
        if _are_ids(value):
            return (tuple(value),)
        if all(isinstance(item, list) and item and _are_ids(item) for item in value):
            return tuple(tuple(item) for item in value)
    raise invalid("prompt", "must be a string, a list of strings, a list of token ids, or a list of such lists")


def _are_ids(items: Sequence[Any]) -> bool:
    return all(type(item) is int for item in items)  # True is an int too


def _stop(value: Any) -> tuple[str, ...] | None:
    """None: nothing is said. An empty list: nothing stops the text."""
    if value is None:
        return None
    strings = [value] if isinstance(value, str) else value
    fitting = isinstance(strings, list) and len(strings) <= MOST_STOPS
    if not fitting or not all(isinstance(item, str) and item for item in strings):
        raise invalid("stop", f"must be a string or a list of at most {MOST_STOPS} strings, none empty")
    return tuple(_unicode("stop", item) for item in strings)


def _include_usage(values: Mapping[str, Any]) -> bool:
    options = values.get("stream_options", {})
    if not isinstance(options, dict) or not set(options) <= {"include_usage", "include_obfuscation"}:
        raise invalid("stream_options", 'must be an object such as {"include_usage": true}')
    return _flag(options, "include_usage", "stream_options.include_usage")


def _flag(values: Mapping[str, Any], name: str, shown: str | None = None) -> bool:
    value = values.get(name)
    if value is not None and not isinstance(value, bool):
        raise invalid(shown or name, "must be true or false")
    return bool(value)


def _text(values: Mapping[str, Any], name: str) -> str | None:
    value = values.get(name)
    if value is not None and not isinstance(value, str):
        raise invalid(name, "must be a string")
    return value


def _integer(values: Mapping[str, Any], name: str, default: Any, low: int, high: int = 2**31 - 1) -> Any:
    """The value of a key that is a whole number, or the default."""
    value = values.get(name)
    if value is None:
        return default
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if type(value) is not int or not low <= value <= high:
        upper = f"from {low} to {high}" if high < 2**31 - 1 else f"of at least {low}"
        raise invalid(name, f"must be a whole number {upper}")
    return value


def _unicode(name: str, text: str) -> str:
    """The text, if it can be written in UTF-8: JSON can name half a character."""
    if (place := half_character(text)) is not None:
        raise invalid(name, f"{HALF} at character {place}; send whole characters")
    return text


def _shortened(name: str) -> str:
    return name if len(name) <= 40 else name[:40] + "…"


@dataclass(frozen=True)
class Limits:
    """What a prompt has to keep to: the model's context, its vocabulary, and how many bytes its longest token has."""

    n_ctx: int
    n_vocab: int
    longest_token: int


def encode(prompt: Prompt, request: CompletionRequest, limits: Limits, ids_of: Callable[[str], list[int]]) -> list[int]:
    """The token ids of a prompt that leaves room for what is asked for.

    Raises:
        ApiError: it is too long, or has an id that the model does not know.
    """
    asked = request.max_tokens
    if isinstance(prompt, str):
        # A megabyte is refused without being encoded.
        least = -(-len(prompt.encode()) // limits.longest_token)
        tokens = [] if least > limits.n_ctx else ids_of(prompt)
        length = max(least, len(tokens))
    else:
        tokens, length = list(prompt), len(prompt)
        if (wrong := next((token for token in prompt if not 0 <= token < limits.n_vocab), None)) is not None:
            raise invalid("prompt", f"token id {str(wrong)[:20]}: ids are from 0 to {limits.n_vocab - 1}")
    if length + (1 if asked is None else asked) > limits.n_ctx:
        counted = f"{length} tokens" if tokens else f"at least {length} tokens"
        room = f"{asked} more are asked for" if asked else "they leave room for none"
        raise ApiError(
            400,
            f"the context of this model is {limits.n_ctx} tokens; the prompt has {counted}, and {room}: shorten the "
            "prompt, or lower max_tokens",
            param="prompt",
            code="context_length_exceeded",
        )
    return tokens
