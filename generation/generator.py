"""Continuations of many prompts at once, each with its own settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from gpt_mesh.data.encoders import Encoder
from gpt_mesh.data.special_tokens import SpecialTokens
from gpt_mesh.errors import InputError
from gpt_mesh.generation import beams
from gpt_mesh.generation.decoder import Decoder
from gpt_mesh.generation.requests import (
    HALF,
    NO_BEGINNING,
    Event,
    Generated,
    GenerationRequest,
    half_character,
    wrong_token,
)
from gpt_mesh.generation.writer import Writer
from gpt_mesh.sample import CHUNK, Row, fit_prompt
from gpt_mesh.storage.progress import log

MAX_BATCH = 32
STREAM_CHUNK = 4  # tokens between two events: at reading speed, and a call costs little beside four tokens
STOP_CHUNK = 8  # where a stop string, which the model does not know of, may end the text


@dataclass(frozen=True)
class Defaults:
    """What a config says of generation: the context, the default length and the default seed."""

    n_ctx: int
    predict_max_steps: int | None
    seed: int


class Stream(Iterator[Event]):
    """Events of requests as they come. One thread reads it; any thread may cancel."""

    def __init__(self, events: Iterator[Event], cancelled: set[int]) -> None:
        self._events, self._cancelled = events, cancelled

    def __next__(self) -> Event:
        return next(self._events)

    def cancel(self, index: int) -> None:
        """End a request: its last event comes at the next opportunity, if it has not come already."""
        self._cancelled.add(index)

    def close(self) -> None:
        """End all of them, without events."""
        self._events = iter(())


@dataclass(frozen=True)
class _Encoded:
    """A request with its prompt as tokens. `index`: its place among the requests; `room`: tokens to add at most."""

    index: int
    request: GenerationRequest
    prompt: list[int]
    room: int


class Generator:
    """Generates with one model. Not thread-safe: one call, or one stream that is read to its end, at a time."""

    max_batch = MAX_BATCH

    def __init__(self, encoder: Encoder, special: SpecialTokens, defaults: Defaults, decoder: Decoder) -> None:
        self.encoder, self.special, self.defaults, self._decoder = encoder, special, defaults, decoder

    def prompt_tokens(self, request: GenerationRequest) -> list[int]:
        """A request's prompt as the model will read it: a text has the tokenizer's beginning-of-text token before it,
        if it has one. A prompt that is too long keeps its end, and leaves room for the tokens that are wanted.

        Raises:
            InputError: an empty prompt, and no special token to begin from; an id outside the vocabulary; half a
                character.
        """
        prompt, n_vocab = request.prompt, self._decoder.n_vocab
        if isinstance(prompt, str) and (place := half_character(prompt)) is not None:
            raise InputError(f"prompt: {HALF} at character {place}; give whole characters")
        if isinstance(prompt, str):
            tokens = self.special.begun(self.encoder.encode(prompt))
        else:
            tokens = [int(token) for token in prompt]
        if not tokens:
            if self.special.prefix is None:
                raise InputError(NO_BEGINNING)
            return [self.special.prefix]
        if not isinstance(prompt, str) and (wrong := wrong_token(tokens, n_vocab)) is not None:
            raise InputError(f"prompt: {wrong}")
        wanted = request.settings.max_new_tokens or self.defaults.predict_max_steps
        kept, cut = fit_prompt(tokens, self.defaults.n_ctx, wanted)
        if cut:
            log.warning(
                "the prompt has %d tokens, more than the context of %d leaves room for: its first %d are left out",
                len(tokens), self.defaults.n_ctx, cut,
            )  # fmt: skip
        return kept

    def samples(self, request: GenerationRequest, count: int) -> list[GenerationRequest]:
        """Requests for `count` continuations of one prompt, with consecutive seeds."""
        seed = self._seed(request)
        settings = [request.settings.model_copy(update={"seed": seed + i}) for i in range(count)]
        return [dataclasses.replace(request, settings=one) for one in settings]

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Generated]:
        """The continuation of each request.

        Raises:
            InputError: see `prompt_tokens`; and what the device cannot do.
        """
        jobs = self._jobs(requests)
        chunk = STOP_CHUNK if any(request.settings.stop for request in requests) else CHUNK
        events: list[list[Event]] = [[] for _ in requests]
        for event in self._events(jobs, set(), chunk):
            events[event.index].append(event)
        return [_joined(job, found) for job, found in zip(jobs, events, strict=True)]

    def generate_samples(self, requests: Sequence[GenerationRequest]) -> list[list[Generated]]:
        """The continuations of each request, as many as its `num_samples` says (null: one); of beams the best."""
        counts = [request.settings.num_samples or 1 for request in requests]
        drawn = [request.settings.num_beams == 1 for request in requests]
        wanted = zip(requests, counts, drawn, strict=True)
        found = iter(self.generate([one for request, n, draws in wanted if draws for one in self.samples(request, n)]))
        return [
            [next(found) for _ in range(count)] if draws else self.beam(request)[:count]
            for request, count, draws in zip(requests, counts, drawn, strict=True)
        ]

    def stream(self, requests: Sequence[GenerationRequest]) -> Stream:
        """Events of each request, as they come.

        Raises:
            InputError: see `generate`; here, before the first event.
        """
        cancelled: set[int] = set()
        return Stream(self._events(self._jobs(requests), cancelled, STREAM_CHUNK), cancelled)

    def beam(self, request: GenerationRequest) -> list[Generated]:
        """The `num_beams` likeliest continuations that beam search finds, best first."""
        [job] = self._jobs([request])
        return self._beam(job)

    def warm_up(self, rows: int = 1, prompt: int = 1) -> None:
        """Compile what a batch of `rows` rows, with prompts of `prompt` tokens, needs first."""
        run = self._decoder.start([Row([0] * prompt, 8, 0)] * rows)
        run.prefill()
        run.advance(1)

    def _seed(self, request: GenerationRequest) -> int:
        return self.defaults.seed if request.settings.seed is None else request.settings.seed

    def _jobs(self, requests: Sequence[GenerationRequest]) -> list[_Encoded]:
        found = []
        for index, request in enumerate(requests):
            prompt = self.prompt_tokens(request)
            wanted = request.settings.max_new_tokens or self.defaults.predict_max_steps or self.defaults.n_ctx
            found.append(_Encoded(index, request, prompt, min(wanted, self.defaults.n_ctx - len(prompt))))
        return found

    def _events(self, jobs: Sequence[_Encoded], cancelled: set[int], chunk: int) -> Iterator[Event]:
        drawn = [job for job in jobs if job.request.settings.num_beams == 1]
        for begin in range(0, len(drawn), self.max_batch):
            yield from self._batch(drawn[begin : begin + self.max_batch], cancelled, chunk)
        for job in jobs:
            if job.request.settings.num_beams > 1:
                best = self._beam(job)[0]
                yield Event(job.index, best.tokens, best.text, finish_reason=best.finish_reason, score=best.score)

    def _batch(self, jobs: Sequence[_Encoded], cancelled: set[int], chunk: int) -> Iterator[Event]:
        """Events of requests that share a batch."""
        asked = [job.request.settings.logprobs for job in jobs if job.request.settings.logprobs is not None]
        top = None if not asked else min(1 << (max(*asked, 1) - 1).bit_length(), self._decoder.n_vocab)
        run = self._decoder.start([self._row(job) for job in jobs], top)
        writers = [self._writer(job) for job in jobs]
        added = run.prefill()
        while True:
            ended = added.tokens.shape[1] == 0  # nothing more will come for any row
            for row, writer in enumerate(writers):
                if writer.finished:
                    continue
                if writer.index in cancelled:
                    event: Event | None = writer.end("cancelled")
                else:
                    event = writer.end("length") if ended else writer.take(added, row)
                if writer.finished:
                    run.cancel(row)
                if event is not None:
                    yield event
            if all(writer.finished for writer in writers):
                return
            added = run.advance(chunk)

    def _writer(self, job: _Encoded) -> Writer:
        return Writer(job.index, job.request.settings, job.prompt, job.room, self.encoder, self.special)

    def _row(self, job: _Encoded) -> Row:
        return Row.of(job.prompt, job.room, self._seed(job.request), job.request.settings)

    def _beam(self, job: _Encoded) -> list[Generated]:
        found = []
        for beam in beams.search(self._decoder, job.prompt, job.room, job.request.settings, self.special.eos_ids):
            event = self._writer(job).whole(beam.tokens, ended=beam.ended)
            assert event.finish_reason is not None
            found.append(Generated(event.text, event.tokens, event.finish_reason, len(job.prompt), score=beam.score))
        return found


def _joined(job: _Encoded, events: Sequence[Event]) -> Generated:
    """The events of a request as one continuation."""
    reason = events[-1].finish_reason
    assert reason is not None, "its last event has one"
    tokens = tuple(token for event in events for token in event.tokens)
    logprobs = None
    if job.request.settings.logprobs is not None:
        logprobs = tuple(one for event in events for one in event.logprobs or ())
    text = "".join(event.text for event in events)
    return Generated(text, tokens, reason, len(job.prompt), logprobs, events[-1].score)
