"""Results of evaluations as rows of `eval.jsonl` and as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gpt_mesh.config import Config
from gpt_mesh.evaluation.statistics import Metrics
from gpt_mesh.evaluation.tasks import EvaluationTask
from gpt_mesh.storage import checksums

ERROR = "_stderr"


def result_row(step: int, task: EvaluationTask, metrics: Metrics, config: Config) -> dict[str, Any]:
    """A row of `eval.jsonl`: step, task, metrics, and digests such as `config_sha256` and `tokenizer_sha256`."""
    return {"step": step, "task": task.name, **metrics, "config_sha256": config_digest(config), **task.facts}


def config_digest(config: Config) -> str:
    """SHA-256, in hexadecimal, of the effective config without `model_path`, as JSON with sorted keys."""
    values = {name: value for name, value in config.to_json().items() if name != "model_path"}
    return checksums.of_json(values)


def table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Rows of `eval.jsonl` as a table for a terminal, one metric per line."""
    lines = [("step", "task", "metric", "value", "standard error")]
    for row in rows:
        where = (f"{row['step']:,}", str(row["task"]))
        for name, value in row.items():
            if name == "step" or name.endswith(ERROR) or isinstance(value, (str, type(None))):
                continue
            error = row.get(f"{name}{ERROR}")
            lines.append((*where, name, _number(value), "" if error is None else _number(error)))
            where = ("", "")
    widths = [max(len(line[column]) for line in lines) for column in range(5)]
    sides = (str.rjust, str.ljust, str.ljust, str.rjust, str.rjust)
    return ["  ".join(map(lambda pad, *cell: pad(*cell), sides, line, widths)).rstrip() for line in lines]


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,.6g}"
