"""`--plot`: curves of runs as a picture."""

from __future__ import annotations

import argparse

from gpt_mesh.commands.mode import Mode, flag
from gpt_mesh.config import Config


class Plot(Mode):
    """Draws loss, learning rate and gradient norm."""

    switches = (
        flag(
            "--plot", metavar="FILE",
            help="draw the run's loss, learning rate and gradient norm into FILE (.svg, .png or .pdf), then exit",
        ),
    )  # fmt: skip
    flags = (
        flag(
            "--beside", nargs="+", metavar="RUN", heading="--plot",
            help="with --plot: the directories of other runs, drawn into the same picture",
        ),
    )  # fmt: skip

    def run(self, config: Config, arguments: argparse.Namespace) -> int:
        from gpt_mesh.training.plot import plot

        plot(arguments.plot, [config.training.model_path, *(arguments.beside or ())])
        print(f"wrote {arguments.plot}")
        return 0
