"""`generation`: how text is generated."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from annotated_types import Interval
from pydantic import BeforeValidator, WithJsonSchema

from gpt_mesh.config.fields import MAX_INT, NUMBER, WHOLE, Count, Flag, Group, Natural, key
from gpt_mesh.config.messages import Refused, show

MAX_LOGPROBS = 100


def strings(value: Any, problem: str) -> tuple[str, ...]:
    """A string, or a list of them, none empty. Raises Refused with `problem` for anything else."""
    found = [value] if isinstance(value, str) else value
    if not isinstance(found, (list, tuple)) or not all(isinstance(item, str) and item for item in found):
        raise Refused(problem)
    return tuple(found)


STRINGS_SCHEMA = {
    "anyOf": [
        {"type": "string", "minLength": 1},
        {"type": "array", "items": {"type": "string", "minLength": 1}},
    ]
}
Stop = Annotated[
    tuple[str, ...],
    BeforeValidator(lambda value: strings(value, "must be a string, or a list of them, none empty")),
    WithJsonSchema(STRINGS_SCHEMA),
]


# Settings that a request for completions has too.
Temperature = Annotated[float, Interval(ge=0, le=100), NUMBER]
TopP = Annotated[float, Interval(gt=0, le=1), NUMBER]
RepetitionPenalty = Annotated[float, Interval(ge=0.01, le=100), NUMBER]
Seed = Annotated[int, Interval(ge=-MAX_INT - 1, le=MAX_INT), WHOLE]


class GenerationSettings(Group):
    """How a prompt is continued: the config's `generation`, and what a flag or a request says otherwise."""

    example: ClassVar[str] = '{"temperature": 0.8}'

    temperature: Temperature = key(
        "Logits are divided by it before a token is drawn; 0: the likeliest token each time.", default=0.9
    )
    top_k: Natural = key("Draw only from this number of the likeliest tokens; 0: from all.", default=0, unit="tokens")
    top_p: TopP = key(
        "Draw only from the smallest set of the likeliest tokens that together have this probability "
        "(arXiv:1904.09751).",
        default=1.0,
    )
    repetition_penalty: RepetitionPenalty = key(
        "Logits of tokens that the text already has are divided by it if positive, otherwise multiplied "
        "(arXiv:1909.05858); 1: off.",
        default=1.0,
    )
    entmax: Flag = key("Draw from the sparse 1.5-entmax of the logits in place of softmax.", default=False)
    num_beams: Annotated[int, Interval(ge=1, le=64), WHOLE] = key(
        "Above 1: beam search with this number of beams; nothing is drawn.", default=1
    )
    length_penalty: Annotated[float, Interval(ge=-10, le=10), NUMBER] = key(
        "Beams are ranked by the sum of log-probabilities divided by length to this power.", default=1.0
    )
    num_samples: Count | None = key(
        "Continuations of each prompt; null: `predict_batch_size` with `--predict`, else 1.", default=None
    )
    max_new_tokens: Count | None = key(
        "Maximum number of tokens added; null: `predict_max_steps`, else until the context is full.",
        default=None,
        unit="tokens",
    )
    min_new_tokens: Natural = key("Minimum number of tokens added.", default=0, unit="tokens")
    stop: Stop = key(
        "The text ends before the first of these strings.",
        default=(),
        type_text="string or list of strings",
        null_is_default=True,
    )
    seed: Seed | None = key(
        "Seed of the draws: the same seed gives the same text, whatever else is generated; null: the config's.",
        default=None,
    )
    logprobs: Annotated[int, Interval(ge=0, le=MAX_LOGPROBS), WHOLE] | None = key(
        "Report the log-probability of each token, and those of this number of the likeliest; null: none.", default=None
    )


def clash(settings: GenerationSettings) -> tuple[str, str] | None:
    """A setting that another one excludes, and why; None: all agree."""
    longest, shortest, beams = settings.max_new_tokens, settings.min_new_tokens, settings.num_beams
    if longest is not None and shortest > longest:
        return "min_new_tokens", f"more than max_new_tokens = {longest}; lower it"
    if beams > 1:
        for name in ("top_k", "top_p", "repetition_penalty", "entmax", "logprobs"):
            if getattr(settings, name) != GenerationSettings.model_fields[name].default:
                return name, f"does not go with num_beams = {beams}, which draws nothing; leave out one of the two"
        if (settings.num_samples or 1) > beams:
            return "num_samples", f"more than num_beams = {beams}; raise num_beams"
    return None


def agreeing(settings: GenerationSettings) -> GenerationSettings:
    """The settings. Raises Refused if one of them excludes another."""
    if found := clash(settings):
        name, problem = found
        raise Refused(f"{name} = {show(getattr(settings, name))} in it cannot work: {problem}")
    return settings
