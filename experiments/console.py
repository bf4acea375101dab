"""Messages on standard error. Not storage/progress.py's, which comes with TensorFlow: seconds, and half a gigabyte of
memory beside a run that needs it.
"""

from __future__ import annotations

import logging
import sys

log = logging.getLogger("gpt")


class Console(logging.Handler):
    """Writes to what standard error is at the time: Sacred puts its own in place."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr, flush=True)


def set_up_logging() -> None:
    """Send the program's own messages to standard error, once."""
    if not log.handlers:
        log.addHandler(Console())
        log.setLevel(logging.INFO)
        log.propagate = False
