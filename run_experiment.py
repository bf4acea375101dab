"""main.py, tracked: the same flags, and where the run is kept, watched and shown. `--help` lists them."""

from __future__ import annotations

import argparse
import sys

from gpt_mesh.errors import InputError
from gpt_mesh.experiments.flags import parse_flags


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit status: the run's own, or 1 where the input cannot work."""
    flags: argparse.Namespace = parse_flags(argv)
    from gpt_mesh.storage.progress import set_up_logging

    set_up_logging()
    try:
        if flags.report is not None:
            from gpt_mesh.experiments.report import write_report

            return write_report(flags.report, flags.output)
        from gpt_mesh.experiments.command import deliver, run

        return deliver(flags) if flags.deliver is not None else run(flags)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130  # as the shell reports a program that Ctrl-C ended


if __name__ == "__main__":
    sys.exit(main())
