"""Command line: train, evaluate, score and sample language models. `python3 main.py --help` lists the flags."""

from __future__ import annotations

import argparse
import os
import sys

from gpt_mesh.commands.auto_layout import AutoLayout
from gpt_mesh.commands.check_dataset import CheckDataset
from gpt_mesh.commands.devices import find_hosts, lend, may_lend
from gpt_mesh.commands.evaluate import Evaluate
from gpt_mesh.commands.export import Export
from gpt_mesh.commands.interact import Interact
from gpt_mesh.commands.mode import Table, flag, positive
from gpt_mesh.commands.predict import Predict
from gpt_mesh.commands.score import ScoreFile
from gpt_mesh.commands.serve import Serve
from gpt_mesh.commands.train import Train
from gpt_mesh.config import load_config
from gpt_mesh.errors import InputError

TABLE = Table(
    modes=(
        Train(),
        Evaluate(),
        Predict(),
        Interact(),
        ScoreFile(),
        Serve(),
        Export(),
        CheckDataset(),
        AutoLayout(),
    ),
    general=(
        flag(
            "--model",
            help="config: a path ending in .json, or the name of configs/NAME.json (a --worker needs none)",
        ),
        flag(
            "--gpu_ids", nargs="+", metavar="DEVICE",
            help="devices of the mesh, such as device:GPU:0 device:GPU:1",
        ),
        flag("--steps_per_checkpoint", type=positive, default=5000, metavar="N", help="default: 5000"),
        flag("--sacred_id", metavar="ID", help="names this run's outputs"),
        flag("--yes", action="store_true", help="answer yes to what --new asks; let --apply replace a file"),
    ),
)  # fmt: skip


def make_parser() -> argparse.ArgumentParser:
    """Every flag; `parse_arguments` checks which go together."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__.split(".", 1)[0] + ".", allow_abbrev=False)
    TABLE.add_to(parser)
    return parser


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """The flags, with the mode that they choose as `mode`. Wrong ones end the program with status 2."""
    parser = make_parser()
    arguments = parser.parse_args(argv)
    arguments.mode = TABLE.mode(arguments)
    problem = TABLE.problem(arguments, arguments.mode)
    if problem is None and arguments.model is None and not may_lend(arguments):
        problem = "the following arguments are required: --model"
    name = arguments.sacred_id
    if name is not None and not name.replace("-", "").replace("_", "").isalnum():
        problem = "--sacred_id is part of file names: letters, digits, - and _ only"
    if problem is not None:
        parser.error(problem)
    return arguments


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0 done, 1 the input cannot work, 2 wrong flags."""
    arguments = parse_arguments(argv)
    try:
        arguments.hosts = find_hosts(arguments)
        if arguments.hosts is not None and not arguments.hosts.is_chief:
            return lend(arguments.hosts)
        config = load_config(arguments.model)
        import gpt_mesh.meshes.compat  # noqa: F401  (says so where there is no TensorFlow)

        from gpt_mesh.storage.progress import set_up_logging

        set_up_logging()
        status: int = arguments.mode.run(config, arguments)
        return status
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130  # as the shell reports a program that Ctrl-C ended
    except BrokenPipeError:  # the reader of standard output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains at exit
        return 0


def run() -> None:
    """The console script `gpt-mesh`."""
    sys.exit(main())


if __name__ == "__main__":
    run()
