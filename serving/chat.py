"""Chat requests: conversations in the form of OpenAI's `/v1/chat/completions`, as completions of rendered prompts."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import PlainValidator, ValidationError

from gpt_mesh.config import GenerationSettings
from gpt_mesh.config.fields import Flag
from gpt_mesh.config.messages import Refused, nearest
from gpt_mesh.config.reading import reason
from gpt_mesh.data.chat_template import ChatTemplate
from gpt_mesh.data.encoders import Encoder
from gpt_mesh.errors import InputError
from gpt_mesh.serving.completions import (
    MAX_LOGPROBS,
    MAX_SEQUENCES,
    CompletionRequest,
    PromptLimits,
    Sampling,
    only,
    shortened,
    unicode,
    whole,
)
from gpt_mesh.serving.errors import ApiError, invalid

ROLES = ("system", "developer", "user", "assistant")
MAX_MESSAGES = 4096
NO_TEMPLATE = (
    "this model has no chat template, so it continues text only: use /v1/completions, or serve it with --chat_template "
    "NAME (alpaca, chatml, llama3, mistral, zephyr, or a file)"
)

Message = dict[str, str]


@dataclass(frozen=True)
class Chat:
    """What a server needs to answer conversations.

    Attributes:
        template: from messages to text.
        end: the text that ends an answer; empty if only an end of text does.
    """

    template: ChatTemplate
    end: str

    @staticmethod
    def of(template: ChatTemplate) -> Chat:
        """Raises InputError if the template cannot render a question and its answer."""
        return Chat(template, template.turn_end())


def parse(
    values: Mapping[str, Any], defaults: GenerationSettings, chat: Chat, encoder: Encoder, limits: PromptLimits
) -> CompletionRequest:
    """A chat request as a completion request whose one prompt is the ids of the rendered conversation.

    Args:
        values: the JSON object. A null value means that the key is absent.
        defaults: settings for absent keys.

    Raises:
        ApiError: a key is invalid, or the conversation exceeds the context; the message names it.
    """
    values = {name: value for name, value in values.items() if value is not None}
    for name in values:
        if name not in _Body.model_fields:
            raise invalid(shortened(name), f"unknown key{nearest(name, _Body.model_fields) or '; leave it out'}")
    if "messages" not in values:
        example = '[{"role": "user", "content": "Hello"}]'
        raise invalid("messages", f"is missing; give a conversation such as {example}", code="missing")
    try:
        body = _Body.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = ".".join(place for place in first["loc"] if isinstance(place, str))
        raise invalid(name, reason(_Body, first, named=False)) from None
    if body.top_logprobs and not body.logprobs:
        raise invalid("top_logprobs", "goes with logprobs = true only")
    if "stream_options" in values and not body.stream:
        raise invalid("stream_options", "goes with stream = true only")
    tokens = _tokens(body.messages, chat, encoder, limits)
    asked = body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens
    if len(tokens) + (asked or 1) > limits.n_ctx:
        room = f"{asked} more are requested" if asked else "there is no room for an answer"
        raise ApiError(
            400,
            f"the context of this model is {limits.n_ctx} tokens; the conversation has {len(tokens)}, and {room}: "
            "shorten the messages, or lower max_completion_tokens",
            param="messages",
            code="context_length_exceeded",
        )
    return CompletionRequest(
        model=body.model,
        prompts=(tuple(tokens),),
        max_tokens=limits.n_ctx - len(tokens) if asked is None else asked,
        n=body.n,
        best_of=body.n,
        logprobs=body.top_logprobs if body.logprobs else None,
        echo=False,
        stream=body.stream,
        include_usage=body.stream_options.include_usage,
        settings=_settings(body, defaults, chat),
    )


def _tokens(messages: list[Message], chat: Chat, encoder: Encoder, limits: PromptLimits) -> list[int]:
    """The ids of a conversation, ready for the answer. Special tokens written out in messages are text."""
    size = sum(len(message["content"].encode()) for message in messages)
    if -(-size // limits.longest_token) > limits.n_ctx:  # without encoding megabytes
        raise ApiError(
            400,
            f"the context of this model is {limits.n_ctx} tokens; the conversation has at least "
            f"{-(-size // limits.longest_token)}: shorten the messages",
            param="messages",
            code="context_length_exceeded",
        )
    try:
        return chat.template.prompt(encoder, messages)
    except InputError as error:
        raise invalid("messages", str(error)) from None


def _settings(body: _Body, defaults: GenerationSettings, chat: Chat) -> GenerationSettings:
    own = ("temperature", "top_p", "top_k", "repetition_penalty", "seed", "stop")
    given = {name: getattr(body, name) for name in own if name in body.model_fields_set}
    stop = (*given.get("stop", defaults.stop), *([chat.end] if chat.end else []))
    others = {"num_beams": 1, "num_samples": None, "max_new_tokens": None, "logprobs": None}
    fresh = {"seed": secrets.randbits(31), "min_new_tokens": 0}
    return defaults.model_copy(update={**others, **fresh, **given, "stop": stop})


def _messages(value: Any) -> list[Message]:
    """Messages with a role and a text."""
    if not isinstance(value, list) or not value or not all(isinstance(message, dict) for message in value):
        raise Refused('must be a list of messages such as [{"role": "user", "content": "Hello"}]')
    if len(value) > MAX_MESSAGES:
        raise Refused(f"has {len(value)} messages; the maximum is {MAX_MESSAGES}")
    return [_message(message, number) for number, message in enumerate(value)]


def _message(message: dict[str, Any], number: int) -> Message:
    unknown = message.keys() - {"role", "content", "name", "refusal"}
    if unknown and any(message[name] for name in unknown):
        raise Refused(f"message {number} has {shortened(str(min(unknown)))}, which is not supported; leave it out")
    role, content = message.get("role"), message.get("content")
    if role not in ROLES:
        raise Refused(f"the role of message {number} must be one of {', '.join(ROLES)}")
    if isinstance(content, list):
        content = "".join(_part(part, number) for part in content)
    if not isinstance(content, str):
        raise Refused(f"the content of message {number} must be a text, or a list of parts with texts")
    return {"role": "system" if role == "developer" else role, "content": unicode(content)}


def _part(part: Any, number: int) -> str:
    if isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    raise Refused(f'message {number} has a part that is no text; only {{"type": "text", "text": …}} is supported')


def _response_format(value: Any) -> Any:
    if value != {"type": "text"}:
        raise Refused('only {"type": "text"} is supported; leave it out')
    return value


class _Body(Sampling):
    """The keys of a chat request, each validated on its own."""

    messages: Annotated[list[Message], PlainValidator(_messages)]
    max_completion_tokens: Annotated[int, whole(1)] | None = None
    max_tokens: Annotated[int, whole(1)] | None = None  # its older name
    n: Annotated[int, whole(1, MAX_SEQUENCES)] = 1
    logprobs: Flag = False
    top_logprobs: Annotated[int, whole(0, MAX_LOGPROBS)] = 0
    response_format: Annotated[Any, PlainValidator(_response_format)] = None
    tools: Annotated[Any, only([])] = None
    functions: Annotated[Any, only([])] = None
    tool_choice: Annotated[Any, only("none")] = None
    function_call: Annotated[Any, only("none")] = None
    parallel_tool_calls: Any = None  # without tools, without effect
    store: Annotated[Any, only(False, boolean=True)] = None
    metadata: Any = None
    modalities: Annotated[Any, only(["text"])] = None


