"""TensorBoard beside a run."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from gpt_mesh.storage.progress import log


@contextmanager
def tensorboard(directory: str) -> Iterator[None]:
    """Serves the directory on a free port of this machine's loopback while the block runs; logs its address."""
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", directory, "--host", "127.0.0.1", "--port", "0"]
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    threading.Thread(target=_announce, args=(process,), daemon=True).start()
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _announce(process: subprocess.Popen[str]) -> None:
    """Log the address once it is known, and read on, so that the pipe does not fill."""
    assert process.stderr is not None
    last, logged = "", False
    for line in process.stderr:
        found = re.search(r"(http://\S+)", line)
        if found is not None and not logged and "TensorBoard" in line:
            log.info("TensorBoard: %s", found[1])
            logged = True
        last = line.strip() or last
    if not logged:
        log.warning("TensorBoard did not start: %s", last)
