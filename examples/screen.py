"""What the demo prints: headings, the commands that it runs, and tables."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

REPOSITORY = Path(__file__).resolve().parent.parent
WIDTH = 100


@contextmanager
def section(title: str) -> Iterator[None]:
    """A heading above what is said inside, and the seconds it took below it."""
    start = time.monotonic()
    say(f"\n== {title} " + "=" * (WIDTH - 4 - len(title)))
    yield
    say(f"({time.monotonic() - start:.0f} s)")


def say(text: str) -> None:
    print(text, flush=True)  # in order with what the commands print


def short(path: Path | str) -> str:
    """A path as one would type it in the repository."""
    inside = os.path.relpath(path, REPOSITORY)
    return str(path) if inside.startswith("..") else inside


def run(script: str, *arguments: str | Path, output: Path | None = None) -> None:
    """Show a command, run it in the repository, and end the program with its status if that is not 0. `output`: the
    file that its standard output goes to.

    Ctrl-C and SIGTERM reach the command, which may have something to save; then the program ends too.
    """
    words = [short(sys.executable), script, *(short(a) if isinstance(a, Path) else a for a in arguments)]
    say(f"$ {_wrapped(words)}" + (f" > {short(output)}" if output else ""))
    before = signal.signal(signal.SIGTERM, _raise_exit)
    stdout = None if output is None else output.open("w")
    child = subprocess.Popen(words, cwd=REPOSITORY, stdout=stdout)
    try:
        status = child.wait()
    except (KeyboardInterrupt, SystemExit) as stop:
        if isinstance(stop, SystemExit):  # Ctrl-C goes to the child by itself, SIGTERM does not
            child.terminate()
        child.wait()
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
        if stdout is not None:
            stdout.close()
    if status:
        sys.exit(status if status > 0 else 128 - status)


def _wrapped(words: Sequence[str]) -> str:
    """The command as a shell takes it, on lines that fit, broken before flags."""
    lines, line = [], ""
    for word in map(shlex.quote, words):
        if word.startswith("--") and len(line) > WIDTH // 2:
            lines.append(line)
            line = "   "
        line += f" {word}" if line else word
    return " \\\n".join([*lines, line])


def _raise_exit(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)


def table(rows: Sequence[tuple[str, float]]) -> str:
    """Names and figures, a line each."""
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {figure:6.3f}" for name, figure in rows)
