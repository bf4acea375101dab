"""A completion request as tasks of the worker, and their results as a response: complete or streamed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from gpt_mesh.data.encoders import Encoder
from gpt_mesh.data.special_tokens import SpecialTokens
from gpt_mesh.evaluation.scoring import TokenScores
from gpt_mesh.generation.requests import GenerationRequest
from gpt_mesh.serving import answers
from gpt_mesh.serving.answers import Answer, Place, Text
from gpt_mesh.serving.completions import DEFAULT_MAX_TOKENS, CompletionRequest, PromptLimits, encode
from gpt_mesh.serving.errors import ApiError, invalid
from gpt_mesh.serving.token_text import TokenText
from gpt_mesh.serving.worker import SequenceTask, TaskUpdate, Worker

KEEP_ALIVE_SECONDS = 15.0  # an idle stream sends a comment this often, or a proxy may close it


class Prompts:
    """The prompts of a request, as token ids.

    Attributes:
        tokens: ids of each prompt, at least one.
        last: the last id of each prompt, which the text continues; None if it begins or ends a text.
        texts: each prompt as it is echoed.
        max_tokens: maximum number of new tokens for each prompt.
    """

    def __init__(
        self, request: CompletionRequest, limits: PromptLimits, encoder: Encoder, special: SpecialTokens
    ) -> None:
        """
        Raises:
            ApiError: a prompt is too long, has unknown ids, or is empty without a special token to start from.
        """
        self.tokens, self.texts, self.last = [], [], []
        for prompt in request.prompts:
            tokens = encode(prompt, request, limits, lambda text: special.begun(encoder.encode(text)))
            if not tokens:
                if special.prefix is None:
                    raise invalid("prompt", "is empty, and the tokenizer has no end-of-text token to start from")
                tokens = [special.prefix]
            self.tokens.append(tokens)
            self.last.append(None if tokens[-1] in (special.bos_id, *special.eos_ids) else tokens[-1])
            self.texts.append(prompt if isinstance(prompt, str) and prompt else encoder.decode(tokens))
        wanted = DEFAULT_MAX_TOKENS if request.max_tokens is None else request.max_tokens
        self.max_tokens = [min(wanted, limits.n_ctx - len(tokens)) for tokens in self.tokens]


class CompletionJob:
    """A request that is being processed, in one event loop. `cancel` must be called at the end, whatever happens.

    Attributes:
        texts: the generated texts, `best_of` for each prompt.
        scores: log-probabilities of the prompts, by number, as far as known.
    """

    def __init__(self, request: CompletionRequest, prompts: Prompts, worker: Worker, names: TokenText) -> None:
        self.request, self.prompts, self._worker, self.names = request, prompts, worker, names
        self._loop = asyncio.get_running_loop()
        self._updates: asyncio.Queue[tuple[int, TaskUpdate]] = asyncio.Queue()
        self._tasks: list[SequenceTask] = []
        self._left = 0
        self.texts = [Text() for _ in range(request.sequences)]
        self.scores: dict[int, TokenScores] = {}
        for prompt, tokens in enumerate(prompts.tokens):
            if self.is_scored(prompt):
                self._add(prompt, tuple(tokens))
            for choice in range(request.best_of):
                self._add_text(prompt, choice)

    def is_scored(self, prompt: int) -> bool:
        """Whether log-probabilities of a prompt are requested, and it has any."""
        return self.request.echo and self.request.logprobs is not None and len(self.prompts.tokens[prompt]) > 1

    def _add(self, index: int, work: GenerationRequest | tuple[int, ...]) -> None:
        def report(update: TaskUpdate) -> None:  # in the worker's thread
            if not self._loop.is_closed():
                self._loop.call_soon_threadsafe(self._updates.put_nowait, (index, update))

        self._tasks.append(SequenceTask(work, report))

    def _add_text(self, prompt: int, choice: int) -> None:
        index, max_tokens = prompt * self.request.best_of + choice, self.prompts.max_tokens[prompt]
        if max_tokens == 0:  # only echoed or scored
            self.texts[index].finish_reason = "length"
            return
        self._add(index, GenerationRequest(self.prompts.tokens[prompt], self.request.settings_of(choice, max_tokens)))

    def start(self) -> None:
        """Submit it to the worker.

        Raises:
            ApiError: the queue is full, or the server is shutting down.
        """
        self._left = len(self._tasks)
        self._worker.submit(self._tasks)

    def cancel(self) -> None:
        """Cancel the tasks that are not finished."""
        self._worker.cancel(self._tasks)

    def usage(self) -> dict[str, int]:
        """Tokens read and generated so far."""
        return answers.usage(sum(map(len, self.prompts.tokens)), sum(len(text.tokens) for text in self.texts))

    async def _next(self) -> list[int]:
        """Wait for the next update; returns the indices of the texts that it concerns.

        Raises:
            ApiError: a task failed.
        """
        index, update = await self._updates.get()
        if isinstance(update, ApiError):
            raise update
        if isinstance(update, TokenScores):
            self.scores[index] = update
            self._left -= 1
            return list(range(index * self.request.best_of, (index + 1) * self.request.best_of))
        self.texts[index].add(update)
        self._left -= update.finish_reason is not None
        return [index]

    async def whole(self, answer: Answer) -> dict[str, Any]:
        """The complete response."""
        while self._left:
            await self._next()
        choices: list[dict[str, Any]] = []
        for prompt in range(len(self.prompts.tokens)):
            first = prompt * self.request.best_of
            likeliest = list(range(first, first + self.request.best_of))
            if self.request.best_of > self.request.n:
                likeliest.sort(key=lambda index: -self.texts[index].likelihood)
            for index in likeliest[: self.request.n]:
                choices.append(_Part(self, index, answer).json(len(choices)))
        return answer.whole(choices, self.usage())

    async def parts(self, answer: Answer) -> AsyncIterator[bytes]:
        """The response as server-sent events. If a task fails, the error is the last of them."""
        try:
            async for event in self._parts(answer):
                yield event
        except ApiError as error:
            yield answers.sse(error.body())
            return
        yield answers.DONE

    async def _parts(self, answer: Answer) -> AsyncIterator[bytes]:
        more: dict[str, Any] = {"usage": None} if self.request.include_usage else {}
        parts = [_Part(self, index, answer) for index in range(len(self.texts))]
        for part in parts:
            if part.has_update:  # nothing has to be computed for it
                yield answer.part([part.json()], **more)
        while self._left:
            try:
                changed = await asyncio.wait_for(self._next(), KEEP_ALIVE_SECONDS)
            except asyncio.TimeoutError:
                yield answers.KEEP_ALIVE
                continue
            for index in changed:
                if parts[index].has_update:
                    yield answer.part([parts[index].json()], **more)
        if self.request.include_usage:
            yield answer.part([], usage=self.usage())


class _Part:
    """The part of one text that has not been sent yet."""

    def __init__(self, job: CompletionJob, index: int, answer: Answer) -> None:
        self._job, self._index, self._text, self._answer = job, index, job.texts[index], answer
        self._prompt = index // job.request.best_of
        self._begun, self._ended, self._sent, self._sent_logprobs = False, False, 0, 0
        top = job.request.logprobs
        self._logprobs = None if top is None else answer.logprobs(job.names, top, job.prompts.last[self._prompt])

    @property
    def has_update(self) -> bool:
        """Whether there is something to send. A text waits until its prompt is scored."""
        job, text = self._job, self._text
        if job.is_scored(self._prompt) and self._prompt not in job.scores:
            return False
        fresh_logprobs = self._logprobs is not None and len(text.logprobs) > self._sent_logprobs
        echo = job.request.echo and not self._begun
        return not self._ended and bool(
            echo or fresh_logprobs or len(text.text) > self._sent or text.finish_reason is not None
        )

    def json(self, index: int | None = None) -> dict[str, Any]:
        """The JSON of this part; with `index`, of the whole text as the choice of that number."""
        place: Place = "whole" if index is not None else "later" if self._begun else "first"
        text, prompt = self._text, self._job.prompts.texts[self._prompt]
        fresh = text.text[self._sent :]
        if self._job.request.echo and not self._begun:
            fresh = prompt + fresh
            if self._logprobs is not None:
                tokens, scores = self._job.prompts.tokens[self._prompt], self._job.scores.get(self._prompt)
                self._logprobs.add_prompt(prompt, tokens, scores)
        if self._logprobs is not None:
            self._logprobs.add(text.logprobs[self._sent_logprobs :])
        self._begun, self._ended = True, text.finish_reason is not None
        self._sent, self._sent_logprobs = len(text.text), len(text.logprobs)
        logprobs = None if self._logprobs is None else self._logprobs.take()
        number = self._index if index is None else index
        return self._answer.choice(number, fresh, logprobs, text.finish_reason, place)
