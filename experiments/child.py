"""Runs main.py as a child process that saves and exits when its parent dies, and that writes a heartbeat file.

    python3 experiments/child.py PARENT_PID HEARTBEAT_FILE [flags of main.py]
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

if not __package__:  # run as a file: its checkout is the package
    import runpy

    runpy.run_path(os.path.join(os.path.dirname(os.path.abspath(__file__)), os.pardir, "gpt_mesh.py"))

from gpt_mesh import main
from gpt_mesh.storage import heartbeat

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def end_with(parent: int) -> None:
    """Request SIGTERM, which saves a checkpoint, when the parent dies. Linux only; does nothing elsewhere."""
    if not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:  # it died before the call
        sys.exit(128 + signal.SIGTERM)


if __name__ == "__main__":
    end_with(int(sys.argv[1]))
    heartbeat.start(sys.argv[2])
    sys.exit(main.main(sys.argv[3:]))
