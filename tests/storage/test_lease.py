"""A folder is used by one process at a time, and a holder that is gone does not keep it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from gpt_mesh.errors import InputError
from gpt_mesh.storage import files, lease
from gpt_mesh.storage.lease import Lease


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("BEAT_SECONDS", 0.05), ("LEASE_SECONDS", 1.0), ("SETTLE_SECONDS", 0.05)):
        monkeypatch.setattr(lease, name, seconds)


@pytest.fixture(params=["local", "url"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    folder = str(tmp_path) if request.param == "local" else f"ram://{tmp_path.name}"
    files.make_folder(folder)
    return f"{folder}/.run.lock"


@contextmanager
def holder(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lease."""
    code = f"import time; from gpt_mesh.storage.lease import Lease; Lease({str(path)!r}, 'a run'); print(1, flush=True)"
    command = [sys.executable, "-c", f"{code}; time.sleep(60)"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "1\n"
        try:
            yield process
        finally:
            process.kill()


def from_elsewhere(path: str) -> None:
    """Let the lease look as if a process on another host had made it."""
    content = json.loads(files.read_bytes(path))
    files.write_text(path, json.dumps({**content, "host": "elsewhere", "system": "another"}))


def test_the_second_is_refused_with_who_holds_it(path: str) -> None:
    with lease.lease(path, "a run"):
        with pytest.raises(InputError) as error:
            Lease(path, "a run")
        assert f"{os.path.dirname(path)}: a run is using it: process {os.getpid()} on " in str(error.value)
        assert "since 20" in str(error.value)
    assert not files.exists(path)
    Lease(path, "a run").release()


def test_one_that_lives_is_refused_and_one_that_was_killed_is_not(tmp_path: Path) -> None:
    path = tmp_path / ".run.lock"
    with holder(path) as process:
        for number in (0, signal.SIGSTOP):  # a stopped process is still there
            os.kill(process.pid, number)
            with pytest.raises(InputError, match=f"process {process.pid} on "):
                Lease(str(path), "a run")
        process.kill()
        process.wait()
        begin = time.monotonic()
        Lease(str(path), "a run").release()
        assert time.monotonic() - begin < 0.5, "nothing to wait for on the same machine"


def test_a_number_that_went_to_another_process_holds_nothing(tmp_path: Path) -> None:
    path = tmp_path / ".run.lock"
    Lease(str(path), "a run")._over.set()
    path.write_text(json.dumps({**json.loads(path.read_text()), "started": "1", "token": "another"}))
    Lease(str(path), "a run").release()


def test_another_host_that_lives_is_refused(path: str) -> None:
    held = Lease(path, "a run")
    held._content |= {"host": "elsewhere", "system": "another"}
    from_elsewhere(path)
    with pytest.raises(InputError, match="on elsewhere, since"):
        Lease(path, "a run")
    held.release()


def test_another_host_that_is_gone_is_waited_for(path: str) -> None:
    held = Lease(path, "a run")
    held._over.set()
    held._thread.join()
    from_elsewhere(path)
    begin = time.monotonic()
    new = Lease(path, "a run")
    assert time.monotonic() - begin >= 1.0
    with pytest.raises(InputError, match="a run is using it"):
        held.check()
    held.release()
    assert new.held, "who lost it leaves it alone"
    new.check()
    new.release()


@pytest.mark.parametrize("content", ["", "{", "[]", "{}"])
def test_a_file_that_says_nothing_is_abandoned(path: str, content: str) -> None:
    files.write_text(path, content)
    Lease(path, "a run").release()


def test_of_many_one_gets_it(tmp_path: Path) -> None:
    path, found, refused = str(tmp_path / ".run.lock"), [], []
    Path(path).write_text('{"process": 4194305, "host": "gone"}')

    def take() -> None:
        try:
            found.append(Lease(path, "a run"))
        except InputError as error:
            refused.append(error)

    threads: list[Any] = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 1 and len(refused) == 7 and found[0].held
    found[0].release()


def test_a_folder_that_cannot_be_written_to_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be written: No such file or directory"):
        Lease(str(tmp_path / "none" / ".run.lock"), "a run")
