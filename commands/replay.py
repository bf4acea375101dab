"""`--replay_step`: a training step again, with the sizes of its activations and gradients."""

from __future__ import annotations

import argparse

from gpt_mesh.commands.mode import Mode, flag, positive
from gpt_mesh.config import Config


class Replay(Mode):
    """Repeats a step of a run from the newest checkpoint before it."""

    switches = (
        flag(
            "--replay_step", type=positive, metavar="N",
            help="train from the newest checkpoint before step N to that step without saving anything, and print the "
            "sizes of its activations and gradients",
        ),
    )  # fmt: skip

    def run(self, config: Config, arguments: argparse.Namespace) -> int:
        from gpt_mesh.cluster.chief import hosts_of
        from gpt_mesh.engine.building import make_plan
        from gpt_mesh.training.replay import replay

        with hosts_of(None, arguments.gpu_ids) as hosts:
            plan = make_plan(config, hosts, fit=True, training=True)
            hosts.start()
            print("\n".join(replay(config, plan, arguments.replay_step, arguments.checkpoint)))
        return 0
