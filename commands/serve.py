"""`--serve`: the model behind HTTP."""

from __future__ import annotations

import argparse

from gpt_mesh.commands.generation_flags import CHAT_TEMPLATE
from gpt_mesh.commands.mode import Mode, flag, positive
from gpt_mesh.commands.trained import load
from gpt_mesh.config import Config
from gpt_mesh.serving.access import api_key
from gpt_mesh.serving.address import DEFAULT_ADDRESS, host, listen

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
        flag(
            "--serve_connections", type=positive, metavar="N", heading=HEADING,
            help="with --serve: most connections of one client, and a quarter of those of all; default: 128",
        ),
        flag(
            "--serve_hosts", nargs="+", metavar="NAME", heading=HEADING,
            help="with --serve: names that the server answers to, besides its address and the machine's name",
        ),
        CHAT_TEMPLATE,
    )  # fmt: skip

    def run(self, config: Config, arguments: argparse.Namespace) -> int:
        key = api_key()
        with listen(arguments.serve) as bound:  # first, so that a taken address is reported before the model is built
            from gpt_mesh.data.chat_template import ChatTemplate
            from gpt_mesh.serving.server import ServerSettings, default_batch, run

            hosts = (*(arguments.serve_hosts or ()), *filter(None, [host(arguments.serve)]))
            given = {"max_waiting": arguments.serve_queue, "client_connections": arguments.serve_connections}
            limits = {name: value for name, value in given.items() if value is not None}
            with load(config, arguments) as model:
                batch = arguments.serve_batch or default_batch(model)
                named = arguments.chat_template
                template = None if named is None else ChatTemplate.named(named, model.encoder)
                run(model, bound, ServerSettings(batch, **limits, api_key=key, hosts=hosts), template)
        return 0
