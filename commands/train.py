"""Training: what the program does unless a flag names another mode."""

from __future__ import annotations

import argparse
import re
import sys

from gpt_mesh.commands.devices import HOSTS, TPU
from gpt_mesh.commands.mode import Mode, flag
from gpt_mesh.config import Config
from gpt_mesh.errors import InputError, shown

HEADING = "training"


def _steps(text: str) -> tuple[int, int] | int:
    if text.isdecimal() and int(text):
        return int(text)
    match = re.fullmatch(r"([1-9]\d*):([1-9]\d*)", text)
    if match is None or int(match[1]) > int(match[2]):
        raise argparse.ArgumentTypeError(f"{text!r} is neither START:STOP, such as 100:110, nor a number of steps")
    return int(match[1]), int(match[2])


FIT_MESH = flag(
    "--fit_mesh", action="store_true", heading=HEADING,
    help="train on the devices there are, where mesh_shape is for another number",
)  # fmt: skip


EPOCHS = flag(
    "--epochs", type=float, metavar="N", heading=HEADING,
    help="train for N passes over the data, instead of train_steps",
)  # fmt: skip


class Train(Mode):
    """Trains the config's model, from its newest checkpoint if there is one."""

    flags = (
        FIT_MESH,
        EPOCHS,
        flag(
            "--new", action="store_true", heading=HEADING,
            help="delete this run's checkpoints and start at step 0",
        ),
        flag(
            "--init_from", metavar="PATH", heading=HEADING, without=("--tpu",),
            help="begin a new run with the weights of a checkpoint, a run's directory, or a Hugging Face folder",
        ),
        flag(
            "--keep_optimizer", action="store_true", heading=HEADING, needs="--init_from",
            help="with --init_from: take the optimizer's state too",
        ),
        flag(
            "--resize_vocab", action="store_true", heading=HEADING, needs="--init_from",
            help="with --init_from: the config may have another vocabulary",
        ),
        flag(
            "--extend_context", action="store_true", heading=HEADING, needs="--init_from",
            help="with --init_from: the config may have a longer context",
        ),
        flag(
            "--profile", type=_steps, metavar="STEPS", heading=HEADING, without=("--tpu",),
            help="profile steps START:STOP, or that many of the next ones, for TensorBoard and as a table",
        ),
        *HOSTS,
        TPU,
    )  # fmt: skip

    def run(self, config: Config, arguments: argparse.Namespace) -> int:
        from gpt_mesh.storage.progress import log
        from gpt_mesh.training.interrupts import watch

        with watch():
            try:
                return _train(config, arguments)
            except KeyboardInterrupt:
                log.info(
                    "interrupted before the first step: nothing is lost, the same command starts from the same place"
                )
                return 0


def _train(config: Config, arguments: argparse.Namespace) -> int:
    from gpt_mesh import api
    from gpt_mesh.interop.initial_weights import InitFrom

    if arguments.checkpoint is not None:
        raise InputError(
            f"--model {arguments.model[0]}: training continues a run from its newest checkpoint; name the run's "
            "directory, or begin another run with these weights by --init_from"
        )
    if arguments.new and not _agreed_to_delete(config, arguments.yes):
        return 1
    if arguments.epochs is not None:
        from gpt_mesh.training.epochs import with_epochs

        config = with_epochs(config, arguments.epochs)
    init_from = None
    if arguments.init_from is not None:
        init_from = InitFrom(
            arguments.init_from, arguments.keep_optimizer, arguments.resize_vocab, arguments.extend_context
        )
    api.train(
        config,
        devices=arguments.gpu_ids,
        fit_mesh=arguments.fit_mesh,
        steps_per_checkpoint=arguments.steps_per_checkpoint,
        sacred_id=arguments.sacred_id,
        new=arguments.new,
        cluster=arguments.hosts,
        tpu=arguments.tpu,
        init_from=init_from,
        profile=arguments.profile,
    )
    return 0


def _agreed_to_delete(config: Config, yes: bool) -> bool:
    """Whether the user agrees that the run's checkpoints are deleted."""
    from gpt_mesh.engine import checkpoints

    directory = config.training.model_path
    steps = checkpoints.steps(directory)
    if yes or not steps:
        return True
    what = f"{len(steps)} checkpoint{'s' * (len(steps) > 1)} (up to step {steps[-1]}) in {shown(directory)}"
    if not sys.stdin.isatty():
        raise InputError(f"--new would delete {what}; add --yes to agree")
    print(f"Delete {what}? [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() in ("y", "yes"):
        return True
    print("nothing deleted", file=sys.stderr)
    return False
