"""Many prompts in a file: lines of text, or of JSON with settings of their own; and their continuations as such."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt_mesh.config import GenerationSettings, generation_settings
from gpt_mesh.errors import InputError, shown
from gpt_mesh.generation.generator import Generator
from gpt_mesh.generation.requests import (
    HALF,
    NO_BEGINNING,
    Generated,
    GenerationRequest,
    TokenLogprob,
    half_character,
    wrong_token,
)


@dataclass(frozen=True)
class Line:
    """A prompt of a file. `id`: what its line says of it, to be given back. `where`: the file and the line."""

    request: GenerationRequest
    id: Any = None
    where: str = "prompt"

    @property
    def samples(self) -> int:
        """How many continuations it asks for."""
        return self.request.settings.num_samples or 1


def read_prompts(name: str, settings: GenerationSettings, n_vocab: int) -> list[Line]:
    """The prompts of a file: of a .jsonl file the `prompt` of each line (a text, or token ids), with its `id` and keys
    of `GenerationSettings`, if it has some; of any other each line of text.

    Blank lines are left out. `settings`: of what a line does not say itself. `n_vocab`: every id is less.

    Raises:
        InputError: the file cannot be read, is empty, or a line cannot work.
    """
    try:
        text = Path(name).read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise InputError(f"--prompts {shown(name)}: cannot be read ({error.strerror}); name a text file") from None
    except UnicodeDecodeError as error:
        raise InputError(f"--prompts {shown(name)}: not UTF-8 at byte {error.start}; convert it to UTF-8") from None
    numbered = [(number, line.rstrip("\r")) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not numbered:
        raise InputError(f"--prompts {shown(name)}: is empty; give a prompt a line")
    if is_json(name):
        return [_read_json(line, f"{name}: line {number}", settings, n_vocab) for number, line in numbered]
    if settings.logprobs is not None:
        raise InputError(
            f"--prompts {shown(name)}: log-probabilities come as JSON; give a .jsonl file or no --logprobs"
        )
    return [Line(GenerationRequest(line, settings)) for _, line in numbered]


def is_json(name: str) -> bool:
    """Whether a file of prompts is read, and answered, as JSON lines."""
    return name.endswith((".jsonl", ".ndjson"))


def _read_json(line: str, where: str, settings: GenerationSettings, n_vocab: int) -> Line:
    try:
        values = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        raise InputError(f"{where}: not valid JSON: {error}; write an object such as {EXAMPLE}") from None
    except ValueError:  # Python reads only some thousands of digits
        raise InputError(f"{where}: a number has too many digits; write an object such as {EXAMPLE}") from None
    if not isinstance(values, dict) or "prompt" not in values:
        raise InputError(f"{where}: no object with a prompt; write one such as {EXAMPLE}")
    for name, value in values.items():
        if half_character(json.dumps([name, value], ensure_ascii=False)) is not None:
            raise InputError(f"{where}: {ascii(name)[1:-1]}: {HALF}; write whole characters")
    prompt, identity = values.pop("prompt"), values.pop("id", None)
    is_ids = isinstance(prompt, list) and all(isinstance(one, int) and not isinstance(one, bool) for one in prompt)
    if not isinstance(prompt, str) and not is_ids:
        raise InputError(f"{where}: prompt: must be a text or a list of token ids")
    if is_ids and (wrong := wrong_token(prompt, n_vocab)) is not None:
        raise InputError(f"{where}: prompt: {wrong}")
    return Line(GenerationRequest(prompt, generation_settings(values, where, settings)), identity, where)


EXAMPLE = '{"prompt": "Once upon a time"}'


def continuations(generator: Generator, lines: Sequence[Line]) -> Iterator[tuple[Line, list[Generated]]]:
    """Each line with its continuations, in order; as many together as a batch holds.

    Raises:
        InputError: an empty prompt, and no special token to begin from; before any other is continued.
    """
    if generator.special.prefix is None:
        for line in lines:
            if not line.request.prompt:
                raise InputError(f"{line.where}: {NO_BEGINNING}")
    begin = 0
    while begin < len(lines):
        end, rows = begin + 1, lines[begin].samples
        while end < len(lines) and rows + lines[end].samples <= generator.max_batch:
            rows += lines[end].samples
            end += 1
        batch = lines[begin:end]
        yield from zip(batch, generator.generate_samples([line.request for line in batch]), strict=True)
        begin = end


def as_json(line: Line, found: Sequence[Generated]) -> str:
    """One line of JSON: `id` where one was given, `prompt`, and of each of the `samples` its `text`, `tokens`,
    `finish_reason`, and `logprobs` or a beam's `score` where there are some.
    """
    given = {} if line.id is None else {"id": line.id}
    prompt = line.request.prompt if isinstance(line.request.prompt, str) else list(line.request.prompt)
    return json.dumps({**given, "prompt": prompt, "samples": [_sample(one) for one in found]}, ensure_ascii=False)


def _sample(one: Generated) -> dict[str, Any]:
    values: dict[str, Any] = {"text": one.text, "tokens": list(one.tokens), "finish_reason": one.finish_reason}
    if one.logprobs is not None:
        values["logprobs"] = [_logprob(token) for token in one.logprobs]
    return values if one.score is None else values | {"score": one.score}


def _logprob(one: TokenLogprob) -> dict[str, Any]:
    top = [{"token": token, "text": text, "logprob": value} for token, text, value in one.top]
    return {"token": one.token, "text": one.text, "logprob": one.logprob, "top": top}
