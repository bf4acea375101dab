"""`--predict`: continuations of one prompt, or of a file of prompts."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from gpt_mesh.commands.devices import HOSTS, TPU
from gpt_mesh.commands.generation_flags import ALL_FLAGS, prediction_settings
from gpt_mesh.commands.mode import Mode, flag
from gpt_mesh.commands.trained import keep, load
from gpt_mesh.config import Config
from gpt_mesh.errors import InputError, shown

HEADING = "--predict"
PROMPTS = (
    flag(
        "--prompt", metavar="FILE", heading=HEADING,
        help="text to continue with --predict; - is standard input",
    ),
    flag(
        "--prompts", metavar="FILE", heading=HEADING,
        help="with --predict: a prompt a line; in a .jsonl file with settings of its own",
    ),
    flag("--text", metavar="TEXT", heading=HEADING, help="with --predict: the text to continue itself"),
)  # fmt: skip


class Predict(Mode):
    """Generates text."""

    switches = (flag("--predict", action="store_true", help="generate text, then exit"),)
    flags = (
        *PROMPTS,
        *ALL_FLAGS,
        *HOSTS,
        TPU,
    )

    def problem(self, arguments: argparse.Namespace) -> str | None:
        given = [one.name for one in PROMPTS if one.given(arguments)]
        if not given:
            return "--predict and --prompt (or --prompts, or --text) go together"
        return f"{given[0]} goes without {given[1]}" if len(given) > 1 else None

    def run(self, config: Config, arguments: argparse.Namespace) -> int:
        settings = prediction_settings(config, arguments)
        from gpt_mesh.generation import files, output
        from gpt_mesh.training.samples import write_predictions

        if arguments.prompts is not None:
            lines = files.read_prompts(arguments.prompts, settings, config.model.n_vocab)
        else:
            text = _read_prompt(arguments.prompt) if arguments.text is None else arguments.text
            lines = [output.one_prompt(text, settings)]
        with load(config, arguments) as model:
            form = output.Form.of(arguments.prompts, lines, with_prompt=not config.training.remove_partial_sequences)
            text = output.write(model.generator(), lines, form)
        keep(write_predictions, config.training.model_path, model.step, arguments.sacred_id, text, kind="prompt")
        return 0


def _read_prompt(name: str) -> str:
    """The text of --prompt, exactly as it stands."""
    try:
        data = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
        text = data.decode("utf-8")
    except OSError as error:
        raise InputError(f"--prompt {shown(name)}: cannot be read ({error.strerror}); name a text file, or -") from None
    except UnicodeDecodeError as error:
        raise InputError(f"--prompt {shown(name)}: not UTF-8 at byte {error.start}; convert it to UTF-8") from None
    return text
