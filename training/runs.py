"""Finds the config and the checkpoint of a run from the name that a user gives."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from gpt_mesh.config import (
    SUFFIXES,
    Config,
    changes,
    keys,
    load_config,
    parse_json,
    replace,
    values_of_config,
    values_of_file,
)
from gpt_mesh.engine import checkpoints
from gpt_mesh.errors import InputError, shown
from gpt_mesh.optimizers.schedules import learning_rate
from gpt_mesh.storage.files import absolute
from gpt_mesh.storage.progress import log


def find(name: str) -> tuple[Config, str | None]:
    """The config, and the checkpoint if one is named. `name`: a config's name or path, a run's directory, or a
    checkpoint.

    Raises:
        InputError: it is none of these.
    """
    path, io = os.path.expanduser(name), tf.io.gfile
    if io.exists(path + ".index"):
        return config_of_run(os.path.dirname(path) or "."), absolute(path)
    if io.isdir(path) and (io.exists(io.join(path, "config.json")) or os.path.basename(path) != path):
        return config_of_run(path), None
    if not path.endswith(SUFFIXES) and os.path.basename(path) != path:
        raise InputError(
            f"{shown(path)}: neither the directory of a run, nor a checkpoint, nor a config ending in .json or .yml"
        )
    return load_config(path), None


def config_of_run(directory: str) -> Config:
    """The config in a run's directory, which may have been moved."""
    io, name = tf.io.gfile, "config.json"
    if not io.exists(io.join(directory, name)):
        raise InputError(
            f"{shown(directory)}: no config.json there; give the directory of a run (a config's model_path) or a config"
        )
    if "://" not in directory:
        return replace(load_config(os.path.join(directory, name)), model_path=directory)
    with tempfile.TemporaryDirectory() as local:  # configs are read from local files
        os.mkdir(os.path.join(local, "dataset_configs"))
        for part in (name, *(f"dataset_configs/{dataset}" for dataset in io.listdir(f"{directory}/dataset_configs"))):
            io.copy(f"{directory}/{part}", os.path.join(local, part))
        return replace(load_config(os.path.join(local, name)), model_path=directory)


def check_resumable(config: Config, checkpoint: str) -> None:
    """Refuse to resume a run as another model, and log all other changes of the config.

    The config is compared with the one in the run's directory; keys that did not exist then have their defaults.
    If that file is missing or cannot be read, nothing is compared.

    Raises:
        InputError: a key has changed on which the shapes of weights or the computed function depend.
    """
    directory, io = config.training.model_path, tf.io.gfile
    path = io.join(directory, "config.json")
    if not io.exists(path):
        return
    try:
        with io.GFile(path, "rb") as file:
            was = values_of_file(parse_json(file.read(), path), path)
    except (InputError, tf.errors.OpError) as error:
        log.warning("cannot check that the model is the one of %s: its config cannot be read: %s", checkpoint, error)
        return
    found = [change for change in changes(was, values_of_config(config)) if change.key != "model_path"]
    for change in found:
        if change.touches is not None:
            init = " with --init_from" if change.adaptable else ""
            raise InputError(
                f"{config.source}: {change.key} = {_short(change.now)}, but the run in {shown(directory)} has "
                f"{_short(change.was)}: its weights would become another model's; set {change.key} back, or start "
                f"another run{init}, in another model_path"
            )
    if found:
        changed = ", ".join(f"{change.key} {_short(change.was)} -> {_short(change.now)}" for change in found)
        log.info("changed since %s: %s", checkpoint, changed)
        if _SCHEDULE & {change.key for change in found}:
            log.info(_learning_rate_line(config, was, checkpoints.step_of(checkpoint)))


_SCHEDULE = {"lr", "lr_decay", "lr_decay_end", "warmup_steps", "train_steps"}  # what a user sets to change the schedule


def _learning_rate_line(config: Config, was: Mapping[str, Any], step: int) -> str:
    """What another schedule does to the learning rate at the step that a run resumes from."""
    old = config.optimizer.model_copy(update={key: was[key] for key in keys(type(config.optimizer)) if key in was})
    before, after = (float(learning_rate(settings, tf.constant(step))) for settings in (old, config.optimizer))
    if before == after:
        return f"the learning rate at step {step} stays {after:.3g}"
    end, old_end = config.optimizer.lr_decay_end, old.lr_decay_end
    return (
        f"the learning rate at step {step} changes from {before:.3g} to {after:.3g}; its decay ends at step {end}"
        f"{f' (was {old_end})' if end != old_end else ''}"
    )


def _short(value: Any) -> str:
    """A value as text, shortened."""
    text = value if isinstance(value, str) and value else json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def find_checkpoint(config: Config, checkpoint: str | None = None) -> str:
    """`checkpoint`, or the newest of a config's `model_path`.

    Raises:
        InputError: there is none.
    """
    directory = config.training.model_path
    path = checkpoint or checkpoints.latest(directory)
    if path is None:
        raise InputError(
            f"{config.source}: model_path = {shown(directory)}: there is no checkpoint; train first, or point "
            "model_path to a directory that has one"
        )
    return path


def how_to_resume(config: Config) -> str:
    """What to do after a run on several hosts was interrupted."""
    path = checkpoints.latest(config.training.model_path)
    if path is None:
        return "there is no checkpoint yet: the same commands, on all hosts, start again"
    return f"the newest checkpoint is {path}: the same commands, on all hosts, continue from there"


def how_to_repeat() -> str:
    """What to do after another command on several hosts was interrupted."""
    return "nothing was changed: start the same commands again, on all hosts"
