"""`--check_dataset`: whether the config's data fits its model."""

from __future__ import annotations

import argparse

from gpt_mesh.commands.mode import Mode, flag, positive
from gpt_mesh.config import Config
from gpt_mesh.errors import InputError


class CheckDataset(Mode):
    """Checks the config's data."""

    switches = (flag("--check_dataset", action="store_true", help="check the config's data, then exit"),)
    flags = (
        flag(
            "--check_files", type=positive, metavar="N", heading="--check_dataset",
            help="with --check_dataset: only N files of each path",
        ),
    )  # fmt: skip

    def run(self, config: Config, arguments: argparse.Namespace) -> int:
        from gpt_mesh.data.check import check_dataset
        from gpt_mesh.evaluation.tasks import tasks_of

        report = check_dataset(config, files=arguments.check_files)
        if report.ok and not report.sampled:
            try:
                tasks_of(config, validation=config.training.eval_steps > 0)  # as training does before its first step
            except InputError as error:
                report.mix.append(str(error))
        print("\n".join(report.lines()))
        return 0 if report.ok else 1
