"""`--interactive`: a session at the terminal."""

from __future__ import annotations

import argparse
import secrets
import sys

from gpt_mesh.commands.devices import HOSTS, TPU
from gpt_mesh.commands.generation_flags import FLAGS, settings_of
from gpt_mesh.commands.mode import Mode, flag
from gpt_mesh.commands.trained import load
from gpt_mesh.config import Config


class Interact(Mode):
    """Continues lines that are typed."""

    switches = (flag("--interactive", action="store_true", help="continue lines that are typed, until their end"),)
    flags = (*FLAGS, *HOSTS, TPU)

    def run(self, config: Config, arguments: argparse.Namespace) -> int:
        settings = settings_of(config, arguments)
        if settings.seed is None:  # a session repeats another one only if it is asked to
            settings = settings.model_copy(update={"seed": secrets.randbits(31)})
        from gpt_mesh.generation.session import Session

        with load(config, arguments) as model:
            seed = settings.seed
            print(f"seed {seed}: with --seed {seed} the same lines get the same texts", file=sys.stderr)
            Session(model.generator(), settings, sys.stdin, sys.stdout).run()
        return 0
