"""The commands of run_experiment.py."""

from __future__ import annotations

import argparse
import contextlib
import math
import shlex
import shutil
from pathlib import Path
from typing import Any

from gpt_mesh.commands.train import Train
from gpt_mesh.config import Config
from gpt_mesh.errors import InputError, shown
from gpt_mesh.experiments.mongo import Mongo
from gpt_mesh.experiments.signals import Signals
from gpt_mesh.experiments.supervisor import Plan
from gpt_mesh.storage import files as storage
from gpt_mesh.storage.lease import lease
from gpt_mesh.storage.progress import log

OUTBOX = "outbox"


def run(flags: argparse.Namespace) -> int:
    """Run main.py with tracking; returns its exit status.

    Raises:
        InputError: the config is invalid, or the run cannot be recorded.
    """
    config = flags.main.mode.config(flags.main)[0]
    observers = _observers(flags, config)
    from gpt_mesh.experiments.abandoned import end_abandoned
    from gpt_mesh.experiments.tensorboard_page import tensorboard
    from gpt_mesh.experiments.tracking import track

    directory = config.training.model_path
    training = isinstance(flags.main.mode, Train)
    plan = Plan(
        flags=flags.rest,
        directory=directory,
        train_steps=config.training.train_steps if training else None,
        # Only training can be resumed, and a server may be idle for long.
        heartbeat_timeout=flags.heartbeat_timeout if training else math.inf,
        max_restarts=flags.max_restarts if training else 0,
        before_restart=flags.before_restart,
        new=flags.main.new,
        yes=flags.main.yes,
    )
    name = flags.experiment_name or Path(config.source).stem
    command = shlex.join(["python3", "main.py", *flags.rest])
    storage.make_folder(directory)
    with (
        lease(f"{directory}/.tracked.lock", "a tracked run"),
        Signals() as signals,
        tensorboard(directory) if flags.tensorboard else contextlib.nullcontext(),
    ):
        end_abandoned(observers[0].observer.basedir, directory)
        ending = track(name, config, command, plan, signals, observers, flags.beat, config.source)
    if ending.status == "failed" and not ending.reason.startswith("error: "):  # otherwise the error is already logged
        log.error("the run failed: %s", (ending.reason or "it gave no reason").splitlines()[-1])
    log.info("%s; kept in %s", ending.status, shown(observers[0].observer.dir))
    return ending.code


def _observers(flags: argparse.Namespace, config: Config) -> list[Any]:
    """The observers: the local directory first, which numbers the run, then the requested ones."""
    from gpt_mesh.experiments.guarded import Guarded
    from gpt_mesh.experiments.observers import (
        CometObserver,
        Labels,
        LocalObserver,
        MlflowObserver,
        QueueObserver,
        WandbObserver,
    )

    directory = _sacred_dir(flags, config)
    observers: list[Any] = [Guarded(LocalObserver(directory), f"--sacred_dir {directory}", ours=True)]
    if flags.mongo_url is not None:
        mongo = Mongo(flags.mongo_url, flags.mongo_where)
        observers.append(Guarded(QueueObserver(Path(directory) / OUTBOX, mongo), mongo.name, ours=True))
    labels = Labels(flags.group, tuple(flags.tags or ()))
    if flags.wandb is not None:
        observers.append(Guarded(WandbObserver(flags.wandb, directory, labels), "--wandb"))
    if flags.mlflow is not None:
        observers.append(Guarded(MlflowObserver(flags.mlflow, labels), "--mlflow"))
    if flags.comet is not None:
        observers.append(Guarded(CometObserver(flags.comet, directory, labels), "--comet"))
    return observers


def _sacred_dir(flags: argparse.Namespace, config: Config) -> str:
    """The folder of Sacred's records, checked to be writable."""
    directory = flags.sacred_dir
    if directory is None:
        if storage.is_url(config.training.model_path):
            raise InputError(
                f"{config.source}: model_path = {config.training.model_path}: Sacred keeps runs on a local disk only; "
                "name a folder with --sacred_dir"
            )
        directory = str(Path(config.training.model_path) / "sacred")
    if storage.is_url(directory):
        raise InputError(f"--sacred_dir {shown(directory)}: Sacred keeps runs on a local disk only; name a folder")
    storage.make_folder(directory)
    if shutil.disk_usage(directory).free < 1 << 20:
        raise InputError(f"--sacred_dir {shown(directory)}: the disk is full; make room or name another folder")
    return str(directory)


def deliver(flags: argparse.Namespace) -> int:
    """Send queued events to the database; returns status 1 if some could not be sent."""
    from gpt_mesh.experiments.observers import deliver_left_behind

    if flags.mongo_url is None:
        raise InputError("--deliver: --mongo_url is missing, or SACRED_MONGO_URL in the environment")
    if not Path(flags.deliver).is_dir():
        raise InputError(f"--deliver {shown(flags.deliver)}: no such folder; name the --sacred_dir of the runs")
    parent = Path(flags.deliver) / OUTBOX
    if not parent.is_dir():
        log.info("nothing waits in %s", shown(flags.deliver))
        return 0
    waiting = deliver_left_behind(parent, Mongo(flags.mongo_url, flags.mongo_where))
    log.info("%d events wait", waiting) if waiting else log.info("all is delivered")
    return 1 if waiting else 0
