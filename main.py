"""Command line: train, evaluate, score and sample language models. `python3 main.py --help` lists the flags."""

from __future__ import annotations

import argparse
import os
import sys

try:
    from gpt_mesh.commands.devices import find_hosts, lend, may_lend
    from gpt_mesh.commands.table import TABLE
    from gpt_mesh.errors import InputError
except ModuleNotFoundError as error:  # not the interpreter in which the requirements are installed
    if error.name is None or error.name.startswith("gpt_mesh"):
        raise
    remedy = "run `make venv`, then use .venv/bin/python instead"
    sys.exit(f"error: {sys.executable}: has no {error.name}; {remedy}")


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
    if problem is None and arguments.model is None and arguments.mode.needs_model and not may_lend(arguments):
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
        config, arguments.checkpoint = arguments.mode.config(arguments)
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
