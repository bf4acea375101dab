"""`--serve`: the model behind HTTP."""

from __future__ import annotations

import argparse

from gpt_mesh.commands.mode import Mode, flag, positive
from gpt_mesh.commands.trained import load
from gpt_mesh.config import Config
from gpt_mesh.serving.address import DEFAULT_ADDRESS, listen

HEADING = "--serve"


class Serve(Mode):
    """Answers requests until it is told to end."""

    switches = (
        flag(
            "--serve", metavar="HOST:PORT", nargs="?", const=DEFAULT_ADDRESS,
            help=f"answer requests for completions as OpenAI's interface has them; default: {DEFAULT_ADDRESS}",
        ),
    )  # fmt: skip
    flags = (
        flag(
            "--serve_batch", type=positive, metavar="N", heading=HEADING,
            help="with --serve: most sequences generated together; default: 32, or as many as fit in 4 GiB",
        ),
        flag(
            "--serve_queue", type=positive, metavar="N", heading=HEADING,
            help="with --serve: most sequences that wait; default: 256",
        ),
    )  # fmt: skip

    def run(self, config: Config, arguments: argparse.Namespace) -> int:
        with listen(arguments.serve) as bound:  # first, so that a taken address is reported before the model is built
            from gpt_mesh.serving.server import ServerSettings, default_batch, run

            with load(config, arguments) as model:
                batch, queue = arguments.serve_batch or default_batch(model), arguments.serve_queue
                settings = ServerSettings(batch) if queue is None else ServerSettings(batch, queue)
                run(model, bound, settings)
        return 0
