"""A watcher tells a process that works from one that hangs, and that from one that is stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from gpt_mesh.storage.heartbeat import Watch

CODE = """
import sys
from gpt_mesh.storage import heartbeat
from gpt_mesh.storage.progress import track
heartbeat.SECONDS = 0.02
heartbeat.start(sys.argv[1])
for line in track(sys.stdin, 100, "reading", "lines"):
    pass
"""




def test_what_a_watcher_sees(tmp_path: Path) -> None:
    path = str(tmp_path / "heartbeat")
    watch = Watch(path)
    watch.look()
    assert not watch.begun
    with subprocess.Popen([sys.executable, "-c", CODE, path], stdin=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None

        def changed(name: str, seconds: float = 10.0) -> bool:
            before, end = getattr(watch, name), time.monotonic() + seconds
            while getattr(watch, name) == before and time.monotonic() < end:
                time.sleep(0.01)
                watch.look()
            return bool(getattr(watch, name) != before)

        assert changed("beat_at") and watch.begun
        while changed("worked_at", 0.5):  # the progress bar has begun
            pass
        process.stdin.write("a\nb\n")
        process.stdin.flush()
        assert changed("worked_at"), "it works"
        assert changed("beat_at") and not changed("worked_at", 0.5), "it hangs"
        os.kill(process.pid, signal.SIGSTOP)
        while changed("beat_at", 0.2):
            pass
        assert not changed("beat_at", 0.5), "it is stopped"
        os.kill(process.pid, signal.SIGKILL)


def test_a_file_in_the_writing_is_looked_at_again(tmp_path: Path) -> None:
    path = tmp_path / "heartbeat"
    watch = Watch(str(path))
    for text in ("", "1", "one two"):
        path.write_text(text)
        watch.look()
        assert not watch.begun
    path.write_text("1 1\n")
    watch.look()
    assert watch.begun
