"""`--interactive`: a session at the terminal."""

from __future__ import annotations

import argparse
import secrets
import sys

from gpt_mesh.commands.devices import HOSTS, TPU
from gpt_mesh.commands.generation_flags import CHAT_TEMPLATE, FLAGS, settings_of
from gpt_mesh.commands.mode import Mode, flag
from gpt_mesh.commands.trained import load
from gpt_mesh.config import Config


class Interact(Mode):
    """Continues lines that are typed, or answers them."""

    switches = (
        flag(
            "--interactive", action="store_true",
            help="a session: continue lines that are typed; with a chat template, answer them",
        ),
    )  # fmt: skip
    flags = (
        *FLAGS, *HOSTS, TPU, CHAT_TEMPLATE,
        flag(
            "--continue_text", action="store_true",
            heading="conversations", help="with --interactive: continue lines although the model has a chat template",
        ),
    )  # fmt: skip

    def run(self, config: Config, arguments: argparse.Namespace) -> int:
        settings = settings_of(config, arguments)
        if settings.seed is None:  # a session repeats another one only if it is asked to
            settings = settings.model_copy(update={"seed": secrets.randbits(31)})
        from gpt_mesh.data.chat_template import ChatTemplate
        from gpt_mesh.generation.chat_session import ChatSession
        from gpt_mesh.generation.session import Session

        with load(config, arguments) as model:
            seed = settings.seed
            print(f"seed {seed}: with --seed {seed} the same lines get the same texts", file=sys.stderr)
            named = arguments.chat_template
            template = model.chat_template if named is None else ChatTemplate.named(named, model.encoder)
            if template is None or arguments.continue_text:
                Session(model.generator(), settings, sys.stdin, sys.stdout).run()
            else:
                ChatSession(model.generator(), settings, template, sys.stdin, sys.stdout).run()
        return 0
