"""`--summary`: the model as a tree of its weights."""

from __future__ import annotations

import argparse

from gpt_mesh.commands.mode import Mode, flag
from gpt_mesh.config import Config


class Summary(Mode):
    """Prints the parts of the config's model."""

    switches = (
        flag(
            "--summary", action="store_true",
            help="print the model's layers, with shapes, parameters and shares of the FLOPs, then exit",
        ),
    )  # fmt: skip

    def run(self, config: Config, arguments: argparse.Namespace) -> int:
        from gpt_mesh.planning.summary import summary

        print("\n".join(summary(config.model)))
        return 0
