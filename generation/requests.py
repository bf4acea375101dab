"""What is asked of a model, and what it answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from gpt_mesh.config import GenerationSettings

FinishReason = Literal["stop", "length", "cancelled"]
NO_BEGINNING = "an empty prompt: the tokenizer has no end-of-text token to begin from; give some text"
SEED_STRIDE = 7919  # between the seeds of prompts that are given together
HALF = "has half of a surrogate pair"  # JSON can name half a character


def half_character(text: str) -> int | None:
    """Where a text has what cannot be written in UTF-8; None: nowhere."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        return error.start
    return None


def wrong_token(tokens: Sequence[int], n_vocab: int) -> str | None:
    """What is wrong with the first id that is outside the vocabulary; None: there is none."""
    wrong = next((token for token in tokens if not 0 <= token < n_vocab), None)
    if wrong is None:
        return None
    shown = str(wrong) if abs(wrong) < 10**20 else "of more than 20 digits"
    return f"token {shown}: ids must be from 0 to n_vocab - 1 = {n_vocab - 1}"


@dataclass(frozen=True)
class GenerationRequest:
    """One continuation to generate.

    Attributes:
        prompt: a text, or token ids. Empty: begun from the end-of-text token.
        settings: of this continuation alone. `num_samples` says nothing here: `Generator.samples` makes a request of
            each.
    """

    prompt: str | Sequence[int]
    settings: GenerationSettings = field(default_factory=GenerationSettings)


def seeded_requests(prompts: Sequence[str], settings: GenerationSettings, seed: int) -> list[GenerationRequest]:
    """A request for each prompt. Seeds are far apart, so that samples of one prompt do not share the seed of another's.

    `seed`: of the first prompt, where the settings have none.
    """
    first = seed if settings.seed is None else settings.seed
    seeds = range(first, first + SEED_STRIDE * len(prompts), SEED_STRIDE)
    pairs = zip(prompts, seeds, strict=True)
    return [GenerationRequest(text, settings.model_copy(update={"seed": one})) for text, one in pairs]


@dataclass(frozen=True)
class TokenLogprob:
    """A token and how likely the model found it: by the softmax of its logits, before temperature, penalty or filters.

    Attributes:
        token: its id.
        text: what it decodes to alone: U+FFFD where it is a part of a character.
        logprob: natural logarithm.
        top: the likeliest tokens at its place, likeliest first, as (id, text, logprob): as many as were asked for.
    """

    token: int
    text: str
    logprob: float
    top: tuple[tuple[int, str, float], ...] = ()


@dataclass(frozen=True)
class Event:
    """What is new of one request of a stream.

    Attributes:
        index: of the request.
        tokens: new token ids, without the id that ended the text.
        text: what can be shown since the event before: whole characters, none of which can still belong to a stop
            string. May lag behind the tokens; the last event has the rest.
        logprobs: of the new tokens, where asked for.
        finish_reason: None: it goes on. "stop": at an end of text or a stop string; "length": at `max_new_tokens` or
            the end of the context; "cancelled": by `Stream.cancel`. A request has one event with a reason, its last.
        score: in beam search the beam's: what it is ranked by.
    """

    index: int
    tokens: tuple[int, ...]
    text: str
    logprobs: tuple[TokenLogprob, ...] | None = None
    finish_reason: FinishReason | None = None
    score: float | None = None


@dataclass(frozen=True)
class Generated:
    """A whole continuation: what the events of its request add up to.

    Attributes:
        text: without the prompt, and without the stop string that ended it.
        tokens: ids of the continuation, without the id that ended it. They may reach into a stop string.
        finish_reason: as in `Event`.
        prompt_tokens: length of the prompt, as the model read it.
        logprobs: of each token, where asked for.
        score: in beam search the beam's: what it is ranked by.
    """

    text: str
    tokens: tuple[int, ...]
    finish_reason: FinishReason
    prompt_tokens: int
    logprobs: tuple[TokenLogprob, ...] | None = None
    score: float | None = None
