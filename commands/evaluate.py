"""`--eval`: scores on tasks, as a table and as rows of eval.jsonl."""

from __future__ import annotations

import argparse

from gpt_mesh.commands.devices import HOSTS, TPU
from gpt_mesh.commands.mode import Mode, flag, positive
from gpt_mesh.commands.trained import keep
from gpt_mesh.config import Config

HEADING = "--eval"


class Evaluate(Mode):
    """Evaluates the newest checkpoint."""

    switches = (flag("--eval", action="store_true", help="evaluate the newest checkpoint, then exit"),)
    flags = (
        flag(
            "--task", metavar="T", heading=HEADING,
            help="with --eval: only this: validation, lambada or wikitext; default: the config's",
        ),
        flag(
            "--file", metavar="F", heading=HEADING, needs="--task",
            help="with --eval --task: the file that the task is in",
        ),
        flag(
            "--stride", type=positive, metavar="N", heading=HEADING,
            help="with --eval: slide windows by N tokens, so that each token has more context (validation, wikitext)",
        ),
        flag(
            "--download", action="store_true", heading=HEADING,
            help="with --eval: fetch a task's file that is not here",
        ),
        *HOSTS,
        TPU,
    )  # fmt: skip

    def run(self, config: Config, arguments: argparse.Namespace) -> int:
        from gpt_mesh import api
        from gpt_mesh.evaluation.results import table
        from gpt_mesh.storage.json_lines import JsonLines

        kept = JsonLines(f"{config.training.model_path}/eval.jsonl")
        rows = []
        for row in api.evaluations(
            config,
            task=arguments.task,
            file=arguments.file,
            stride=arguments.stride,
            download=arguments.download,
            devices=arguments.gpu_ids,
            checkpoint=arguments.checkpoint,
            cluster=arguments.hosts,
            tpu=arguments.tpu,
        ):
            rows.append(row)
            keep(kept.append, row)
        print("\n".join(table(rows)))
        return 0
