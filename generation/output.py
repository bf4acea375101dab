"""Continuations on standard output: as text, or as JSON lines."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from gpt_mesh.config import GenerationSettings
from gpt_mesh.errors import InputError
from gpt_mesh.generation.files import Line, as_json, continuations, is_json
from gpt_mesh.generation.generator import Generator
from gpt_mesh.generation.requests import GenerationRequest
from gpt_mesh.storage.progress import alive, track


@dataclass(frozen=True)
class Form:
    """How continuations are written.

    Attributes:
        json: an object a line; else text.
        with_prompt: text begins with its prompt.
        titled: texts have headings, as there are several.
        named_prompts: headings say which prompt, as there are several of them.
    """

    json: bool
    with_prompt: bool
    titled: bool
    named_prompts: bool

    @staticmethod
    def of(prompts: str | None, lines: Sequence[Line], *, with_prompt: bool) -> Form:
        """As suits the file of prompts, or the one prompt."""
        several = len(lines) > 1
        titled = several or lines[0].samples > 1
        return Form(prompts is not None and is_json(prompts), with_prompt, titled, several)


def one_prompt(text: str, settings: GenerationSettings) -> Line:
    """A prompt that is a whole file.

    Raises:
        InputError: log-probabilities, for which text has no place.
    """
    if settings.logprobs is not None:
        raise InputError("--logprobs: log-probabilities come as JSON; give the prompt in a .jsonl file, by --prompts")
    return Line(GenerationRequest(text, settings))


def write(generator: Generator, lines: Sequence[Line], form: Form) -> str:
    """Write every continuation to standard output as soon as it is there (a single one token by token); returns all of
    it.
    """
    parts = _stream(generator, lines[0], form) if not (form.json or form.titled) else _whole(generator, lines, form)
    found = []
    for part in parts:
        sys.stdout.write(part)
        sys.stdout.flush()
        found.append(part)
    return "".join(found)


def _stream(generator: Generator, line: Line, form: Form) -> Iterator[str]:
    """A single text, part by part."""
    stream = generator.stream([line.request])  # what cannot work is refused before the prompt is written
    if form.with_prompt:
        yield str(line.request.prompt)
    for event in stream:
        yield event.text
    yield "\n"


def _whole(generator: Generator, lines: Sequence[Line], form: Form) -> Iterator[str]:
    """Text by text."""
    found = continuations(generator, lines)
    with alive("generating"):
        for number, (line, samples) in enumerate(track(found, len(lines), "generating", "prompts"), 1):
            if form.json:
                yield as_json(line, samples) + "\n"
                continue
            for i, sample in enumerate(samples, 1):
                of_prompt = f"prompt {number}, " if form.named_prompts else ""
                title = f"==== {of_prompt}sample {i} ====\n" if form.titled else ""
                yield f"{title}{line.request.prompt if form.with_prompt else ''}{sample.text}\n"
