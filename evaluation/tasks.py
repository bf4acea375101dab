"""The tasks that a model can be evaluated on: each is one file with a class, listed in `TASKS`."""

from __future__ import annotations

from typing import Any, Protocol

from gpt_mesh.config import Config
from gpt_mesh.engine.interface import Engine
from gpt_mesh.errors import InputError
from gpt_mesh.evaluation.lambada import Lambada
from gpt_mesh.evaluation.preferences import HeldOutPreferences
from gpt_mesh.evaluation.statistics import Metrics
from gpt_mesh.evaluation.validation import Validation
from gpt_mesh.evaluation.wikitext import WikiText


class EvaluationTask(Protocol):
    """Something that a model is scored on. Loaded once, it can be run many times."""

    @property
    def name(self) -> str:
        """As in `eval_tasks`, `--task` and `eval.jsonl`."""

    @property
    def facts(self) -> dict[str, Any]:
        """What its rows in `eval.jsonl` have beside metrics: `tokenizer_sha256`, perhaps `data_sha256`, `stride`."""

    def run(self, engine: Engine) -> Metrics:
        """The metrics of a model with their standard errors, and the number of scored tokens and bytes."""


class TaskType(Protocol):
    """A class of tasks. `slides`: it uses sliding windows, so a stride can be set."""

    @property
    def name(self) -> str: ...
    @property
    def slides(self) -> bool: ...

    def make(self, config: Config, file: str | None, *, stride: int | None, download: bool) -> EvaluationTask:
        """The task for a config. See `make_task`."""


_TYPES: tuple[TaskType, ...] = (Validation, Lambada, WikiText)
TASKS = {task.name: task for task in _TYPES}
"""By name."""


def make_task(
    config: Config, name: str, *, file: str | None = None, stride: int | None = None, download: bool = False
) -> EvaluationTask:
    """A task by name.

    Args:
        config: the task uses its tokenizer, context and held-out data.
        name: one of `TASKS`.
        file: the file of a task that has one; default: see `FileTask`.
        stride: labels scored by each sliding window after the first.
        download: fetch the file if it is missing.

    Raises:
        InputError: no such task, or its data cannot be loaded.
    """
    if name not in TASKS:
        raise InputError(f"task {name}: there is no such task; there are {', '.join(TASKS)}")
    if name == Validation.name and config.training.learns_pairs:
        return HeldOutPreferences.make(config, file, stride=stride)
    return TASKS[name].make(config, file, stride=stride, download=download)


def tasks_of(
    config: Config, *, validation: bool, stride: int | None = None, download: bool = False
) -> list[EvaluationTask]:
    """The tasks of a config: `validation` if requested, then its `eval_tasks`. `stride` applies to those that slide.

    Raises:
        InputError: one of them cannot be loaded.
    """
    names = [*([Validation.name] if validation else []), *config.training.eval_tasks]
    return [
        make_task(config, name, stride=stride if TASKS[name].slides else None, download=download)
        for name in dict.fromkeys(names)
    ]
