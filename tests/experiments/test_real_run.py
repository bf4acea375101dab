"""A small model trained by run_experiment.py, as a user types it: killed, stopped, its database gone for a while."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.mongo_server import MongoServer
from tests.support.runs import ONE_LAYER, REPOSITORY, Workspace, rows

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
STEPS = 1200


def child_of(pid: int) -> int:
    """The process of main.py that run_experiment.py has started."""
    listed = subprocess.run(["ps", "-o", "pid=,args=", "--ppid", str(pid)], capture_output=True, text=True).stdout
    return int(next(line.split()[0] for line in listed.splitlines() if "child.py" in line))


def wait_for(true: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    while not true():
        assert process.poll() is None, "it ended"
        time.sleep(0.02)


def test_killed_stalled_and_without_its_database(workspace: Workspace) -> None:
    config = workspace.config("tracked", train_steps=STEPS, iterations=20, eval_steps=1, **ONE_LAYER)
    folder = workspace.root / "tracked"
    metrics = folder / "metrics.jsonl"

    def reached(step: int) -> bool:
        return metrics.exists() and f'"step": {step},' in metrics.read_text()

    cache = f"--tf_xla_persistent_cache_directory={workspace.root / 'xla'} --tf_xla_persistent_cache_device_types=CPU"
    environment = {**os.environ, "TF_XLA_FLAGS": cache}
    environment.pop("XLA_FLAGS", None)
    with MongoServer() as server:
        flags = ["--steps_per_checkpoint", "200", "--heartbeat_timeout", "60", "--beat", "0.2"]
        command = [sys.executable, str(REPOSITORY / "run_experiment.py"), "--model", str(config), *flags]
        process = subprocess.Popen(
            [*command, "--mongo_url", server.url], env=environment, stderr=subprocess.PIPE, text=True
        )
        try:
            wait_for(lambda: reached(300), process)
            os.kill(child_of(process.pid), signal.SIGKILL)
            server.stop()
            wait_for(lambda: "restart 1" in _log(folder), process)
            wait_for(lambda: reached(700), process)
            os.kill(child_of(process.pid), signal.SIGSTOP)
            server.start()
            _, err = process.communicate(timeout=500)
        finally:
            process.kill()  # its child ends with it
            process.wait()
        assert process.returncode == 0, err
        assert re.search(r"ended by SIGKILL; restart 1 of 3, from step \d00", err) and "no progress for 60 s" in err
        (run,) = server.database["runs"].find()
        stored = {one["name"]: one for one in server.database["metrics"].find()}
    record = folder / "sacred" / "1"
    local = json.loads((record / "metrics.json").read_text())
    assert json.loads((record / "run.json").read_text())["status"] == run["status"] == "COMPLETED"
    written = rows(metrics)
    assert [row["step"] for row in written] == list(range(20, STEPS + 1, 20))
    for series in (local, stored):
        assert series["training.loss"]["steps"] == [row["step"] for row in written]
        assert series["training.loss"]["values"] == [row["loss"] for row in written], "restarts change no loss"
        assert series["validation.nll"]["steps"] == list(range(200, STEPS + 1, 200))
    assert {name: one["values"] for name, one in stored.items()} == {name: one["values"] for name, one in local.items()}


def _log(folder: Path) -> str:
    """What the record has of the output so far."""
    path = folder / "sacred" / "1" / "cout.txt"
    return path.read_text() if path.exists() else ""
