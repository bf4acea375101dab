"""`--find_lr`: a search for the learning rate."""

from __future__ import annotations

import argparse

from gpt_mesh.commands.mode import Mode, flag, positive
from gpt_mesh.commands.train import FIT_MESH
from gpt_mesh.config import Config


class FindLr(Mode):
    """Searches for the learning rate, from fresh weights."""

    switches = (
        flag(
            "--find_lr", type=positive, nargs="?", const=100, metavar="STEPS",
            help="train for STEPS (default: 100) with a rising learning rate, print the losses and a suggestion, exit",
        ),
    )  # fmt: skip
    flags = (FIT_MESH,)

    def run(self, config: Config, arguments: argparse.Namespace) -> int:
        from gpt_mesh.library.find_lr import find_lr, suggestion, table

        points = find_lr(config, arguments.find_lr, arguments.gpu_ids, fit_mesh=arguments.fit_mesh)
        print("\n".join(table(points)))
        found = suggestion(points)
        if found is None:
            print("the loss did not fall: search longer (--find_lr 300), and look at the data (--check_dataset)")
        else:
            now = config.optimizer.lr
            print(f"suggestion: lr = {found:.1e}, a tenth of where the loss was smallest; now {now:.1e}")
        return 0
