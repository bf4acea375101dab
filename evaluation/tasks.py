"""What a model can be evaluated on: one interface, and which tasks there are."""

from __future__ import annotations

from typing import Any, Protocol

from gpt_mesh.config import Config
from gpt_mesh.engine.interface import Engine
from gpt_mesh.errors import InputError
from gpt_mesh.evaluation.file_task import FileTask
from gpt_mesh.evaluation.lambada import Lambada
from gpt_mesh.evaluation.statistics import Metrics
from gpt_mesh.evaluation.validation import Validation
from gpt_mesh.evaluation.wikitext import WikiText

FILE_TASKS: dict[str, type[FileTask]] = {task.name: task for task in (Lambada, WikiText)}
TASKS = (Validation.name, *FILE_TASKS)


class Task(Protocol):
    """Something to score a model on, loaded once and run as often as wanted."""

    @property
    def name(self) -> str:
        """As in `eval_tasks`, `--task` and `eval.jsonl`."""

    @property
    def facts(self) -> dict[str, Any]:
        """What its rows in `eval.jsonl` say beside the metrics: `tokenizer_sha256`, perhaps `data_sha256`, `stride`."""

    def run(self, engine: Engine) -> Metrics:
        """The metrics of a model, each with its standard error, and the tokens and bytes that were scored."""


def make_task(
    config: Config, name: str, *, file: str | None = None, stride: int | None = None, download: bool = False
) -> Task:
    """A task by name, one of `TASKS`.

    Args:
        config: whose tokenizer, context and held-out data the task is for.
        file: of a task in a file; default: where `FileTask` looks.
        stride: labels that a window scores after the first, where windows slide.
        download: fetch the file if it is not there.

    Raises:
        InputError: no such task, or it cannot be loaded.
    """
    if name in FILE_TASKS:
        return FILE_TASKS[name](config, file, stride=stride, download=download)
    if name != Validation.name:
        raise InputError(f"task {name}: there is no such task; there are {', '.join(TASKS)}")
    if file is not None:
        raise InputError(f"file {file}: task validation scores eval_path of the config's datasets; leave it out")
    return Validation(config, stride=stride)


def tasks_of(config: Config, *, validation: bool, stride: int | None = None, download: bool = False) -> list[Task]:
    """The tasks of a config: `validation` if asked for, then its `eval_tasks`. `stride`: of those that slide.

    Raises:
        InputError: one of them cannot be loaded.
    """
    found: list[Task] = [Validation(config, stride=stride)] if validation else []
    for name in dict.fromkeys(config.training.eval_tasks):
        slides = FILE_TASKS[name].slides
        found.append(make_task(config, name, stride=stride if slides else None, download=download))
    return found
