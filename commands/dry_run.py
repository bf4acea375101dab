"""`--dry_run`: everything is checked, built and timed, and nothing is written."""

from __future__ import annotations

import argparse

from gpt_mesh.commands.mode import Mode, flag
from gpt_mesh.commands.train import EPOCHS, FIT_MESH
from gpt_mesh.config import Config


class DryRun(Mode):
    """Rehearses training."""

    switches = (
        flag(
            "--dry_run", action="store_true",
            help="check everything that training needs, show the first batch, time some steps, then exit",
        ),
    )  # fmt: skip
    flags = (FIT_MESH, EPOCHS)

    def run(self, config: Config, arguments: argparse.Namespace) -> int:
        from gpt_mesh.library.rehearsal import dry_run
        from gpt_mesh.training.epochs import with_epochs

        if arguments.epochs is not None:
            config = with_epochs(config, arguments.epochs)
        for line in dry_run(config, arguments.gpu_ids, fit_mesh=arguments.fit_mesh):
            print(line, flush=True)
        return 0
