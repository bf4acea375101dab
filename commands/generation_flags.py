"""The settings of text generation as flags of the command line."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

from gpt_mesh.commands.mode import Flag, flag
from gpt_mesh.config import Config, GenerationSettings, generation_settings, keys

CHAT_TEMPLATE = flag(
    "--chat_template", metavar="NAME", heading="conversations",
    help="with --serve and --interactive: how messages become text, in place of the model's own template: alpaca, "
    "chatml, llama3, mistral, zephyr, or a Jinja file",
)  # fmt: skip
OTHER_NAMES = {"entmax": "entmax_sampling"}  # a flag that is older than its key
OF_SEVERAL_TEXTS = ("num_samples", "logprobs")


def _number(text: str) -> int | float:
    try:
        return int(text)
    except ValueError:
        pass
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None


def _flags() -> Iterator[Flag]:
    """A flag for each key of `GenerationSettings`."""
    for key, declared in keys(GenerationSettings).items():
        doc = declared.doc.replace("`", "").replace("null:", "default:")
        options: dict[str, Any] = {"type": _number, "metavar": "N", "help": doc}
        if GenerationSettings.model_fields[key].annotation is bool:
            options = {"action": "store_true", "default": None, "help": doc}
        elif key == "stop":
            options = {"action": "append", "metavar": "TEXT", "help": f"{doc} May be given several times."}
        name = f"--{OTHER_NAMES.get(key, key)}"
        yield flag(name, heading="text generation, in place of the config's `generation`", **options)


ALL_FLAGS = tuple(_flags())
FLAGS = tuple(one for one in ALL_FLAGS if one.key not in OF_SEVERAL_TEXTS)  # where one text is shown


def settings_of(config: Config, arguments: argparse.Namespace) -> GenerationSettings:
    """The config's settings, with those that flags give in their place.

    Raises:
        InputError: a flag's value cannot work.
    """
    values = {name: getattr(arguments, OTHER_NAMES.get(name, name)) for name in keys(GenerationSettings)}
    given = {name: value for name, value in values.items() if value is not None}
    return generation_settings(given, "command line", config.training.generation)


def prediction_settings(config: Config, arguments: argparse.Namespace) -> GenerationSettings:
    """The same for `--predict`, which continues each prompt `predict_batch_size` times by default."""
    settings = settings_of(config, arguments)
    usual = 1 if settings.num_beams > 1 else config.training.predict_batch_size
    return settings.model_copy(update={"num_samples": settings.num_samples or usual})
