"""The settings of text generation as flags of the command line."""

from __future__ import annotations

import argparse

from gpt_mesh.config import Config, GenerationSettings, generation_settings, keys

OTHER_NAMES = {"entmax": "entmax_sampling"}  # a flag that is older than its key


def add_flags(parser: argparse.ArgumentParser) -> None:
    """A flag for each key of `GenerationSettings`."""
    group = parser.add_argument_group("text generation, in place of the config's `generation`")
    for name, key in keys(GenerationSettings).items():
        flag = f"--{OTHER_NAMES.get(name, name)}"
        doc = key.doc.replace("`", "").replace("null:", "default:")
        if GenerationSettings.model_fields[name].annotation is bool:
            group.add_argument(flag, action="store_true", default=None, help=doc)
        elif name == "stop":
            group.add_argument(flag, action="append", metavar="TEXT", help=f"{doc} May be given several times.")
        else:
            group.add_argument(flag, type=_number, metavar="N", help=doc)


def given_flags(arguments: argparse.Namespace) -> dict[str, object]:
    """The keys of `GenerationSettings` that flags give."""
    values = {name: getattr(arguments, OTHER_NAMES.get(name, name)) for name in keys(GenerationSettings)}
    return {name: value for name, value in values.items() if value is not None}


def settings_of(config: Config, arguments: argparse.Namespace) -> GenerationSettings:
    """The config's settings, with what the flags say otherwise.

    Raises:
        InputError: a flag's value cannot work.
    """
    return generation_settings(given_flags(arguments), "command line", config.training.generation)


def prediction_settings(config: Config, arguments: argparse.Namespace) -> GenerationSettings:
    """The same for `--predict`, where each prompt is continued `predict_batch_size` times unless said otherwise."""
    settings = settings_of(config, arguments)
    usual = 1 if settings.num_beams > 1 else config.training.predict_batch_size
    return settings.model_copy(update={"num_samples": settings.num_samples or usual})


def _number(text: str) -> int | float:
    try:
        return int(text)
    except ValueError:
        pass
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
