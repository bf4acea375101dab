"""The flags of run_experiment.py: those of main.py, and its own."""

from __future__ import annotations

import argparse
import os
import re
import sys

from gpt_mesh import main

HEARTBEAT_SECONDS = 1800.0
MAX_RESTARTS = 3
BEAT_SECONDS = 10.0


def parse_flags(argv: list[str] | None) -> argparse.Namespace:
    """run_experiment.py's own flags, with main.py's as a checked list in `rest` and parsed in `main`.

    Wrong ones end the program with status 2.
    """
    arguments = sys.argv[1:] if argv is None else argv
    own = argparse.ArgumentParser(prog="run_experiment.py", add_help=False, allow_abbrev=False)
    _add_own(own)
    if {"-h", "--help"} & set(arguments):
        whole = main.make_parser()
        whole.prog, whole.description = "run_experiment.py", "main.py, tracked by Sacred: the same flags, and these."
        _add_own(whole)
        whole.print_help()
        sys.exit(0)
    flags, rest = own.parse_known_args(arguments)
    flags.rest = rest
    flags.mongo_where = "--mongo_url"
    if flags.mongo_url is None and os.environ.get("SACRED_MONGO_URL"):
        flags.mongo_url, flags.mongo_where = os.environ["SACRED_MONGO_URL"], "SACRED_MONGO_URL"
    if flags.report is not None and flags.deliver is not None:
        own.error("--report and --deliver are two commands")
    if flags.output is not None and flags.report is None:
        own.error("--output goes with --report only")
    if flags.report is not None or flags.deliver is not None:
        if flags.rest:
            own.error(f"--report and --deliver run nothing, so {flags.rest[0]} does not apply")
        return flags
    flags.main = main.parse_arguments(flags.rest)
    if flags.main.model is None:
        own.error("--model is missing: the chief's run is tracked, and a --worker is started with main.py")
    return flags


def _add_own(parser: argparse.ArgumentParser) -> None:
    tracking = parser.add_argument_group("tracking")
    tracking.add_argument("--experiment_name", type=_name, metavar="NAME", help="default: the config's name")
    tracking.add_argument(
        "--sacred_dir", metavar="DIR", help="where runs are kept, as numbered folders; default: sacred/ in model_path"
    )
    tracking.add_argument(
        "--mongo_url", metavar="URL", help="also record runs in MongoDB, for Omniboard; or set SACRED_MONGO_URL"
    )
    tracking.add_argument("--wandb", metavar="PROJECT", help="also log to Weights & Biases, if it is installed")
    tracking.add_argument("--mlflow", metavar="URI", help="also log to MLflow, if it is installed")
    tracking.add_argument(
        "--comet", metavar="PROJECT", help="also log to Comet, if it is installed; without COMET_API_KEY, into a file"
    )
    tracking.add_argument("--group", metavar="NAME", help="the group of this run, for all of these")
    tracking.add_argument("--tags", nargs="+", metavar="TAG", help="tags of this run, for all of these")
    tracking.add_argument("--tensorboard", action="store_true", help="start TensorBoard on a free port of 127.0.0.1")
    tracking.add_argument(
        "--beat", type=_seconds, default=BEAT_SECONDS, metavar="S",
        help=f"seconds between reports; default: {BEAT_SECONDS:g}",
    )  # fmt: skip
    watching = parser.add_argument_group("watching")
    watching.add_argument(
        "--heartbeat_timeout", type=_seconds, default=HEARTBEAT_SECONDS, metavar="S",
        help="restart a run that makes no progress for this many seconds; "
        f"default: {HEARTBEAT_SECONDS:g}",
    )  # fmt: skip
    watching.add_argument(
        "--max_restarts", type=_count, default=MAX_RESTARTS, metavar="N",
        help=f"maximum number of restarts after the run stalled or died; default: {MAX_RESTARTS}",
    )  # fmt: skip
    watching.add_argument(
        "--before_restart", metavar="COMMAND", help="a shell command, such as one that recreates the TPU"
    )
    other = parser.add_argument_group("instead of a run")
    other.add_argument("--report", metavar="DIR", help="write a web page about all runs below DIR, then exit")
    other.add_argument("--output", metavar="FILE", help="with --report: default DIR/report.html")
    other.add_argument(
        "--deliver", metavar="DIR", help="send MongoDB what runs kept in this --sacred_dir could not, then exit"
    )


def _name(text: str) -> str:
    if not re.fullmatch(r"[\w.-][\w. -]*", text):
        raise argparse.ArgumentTypeError(f"{text!r}: letters, digits, spaces, and . _ - only")
    return text


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")
    return seconds


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
    return int(text)
