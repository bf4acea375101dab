"""One process at a time: a file that names the process that uses a folder, refreshed while that process runs.

A lease left by a crash is recognised: on the same machine because its process is gone, elsewhere because the file is no
longer refreshed. Clocks of different machines are not compared: the waiting process watches the file for
`LEASE_SECONDS` by its own clock. On local file systems the file is created atomically. Object stores have no such
operation: there the last writer wins, and the other one notices after a moment.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from gpt_mesh.errors import InputError, shown
from gpt_mesh.storage import files, strict_json
from gpt_mesh.storage.progress import log

BEAT_SECONDS = 10.0
LEASE_SECONDS = 60.0  # without a change: nobody holds it any more
SETTLE_SECONDS = 1.0  # on object stores: for another process that writes at the same moment


class Lease:
    """A lease that this process holds until `release`."""

    def __init__(self, path: str, what: str) -> None:
        """
        Args:
            path: of the file. Its folder exists.
            what: the work, for messages: "a training run".

        Raises:
            InputError: another process holds it, or the file cannot be written.
        """
        self.path = path
        self._content = {**_identity(), "what": what, "since": datetime.now().astimezone().isoformat(" ", "seconds")}
        self._token = self._content["token"] = uuid.uuid4().hex
        self._over = threading.Event()
        try:
            while not self._create():
                _wait_until_abandoned(path)
        except files.errors() as error:
            raise InputError(f"{shown(path)}: cannot be written: {files.reason(error)}; name another folder") from None
        self._thread = threading.Thread(target=self._refresh, name="lease", daemon=True)
        self._thread.start()

    @property
    def held(self) -> bool:
        """Whether the file still names this process."""
        return _read(self.path).get("token") == self._token

    def check(self) -> None:
        """
        Raises:
            InputError: another process has taken the lease over, while this one was suspended or disconnected.
        """
        holder = _read(self.path)
        if holder and holder.get("token") != self._token:
            raise _held(self.path, holder)

    def release(self) -> None:
        """Release the lease."""
        self._over.set()
        self._thread.join()
        with contextlib.suppress(*files.errors()):
            if self.held:
                files.remove(self.path)

    def _create(self) -> bool:
        """Whether the file is this process's now."""
        if files.is_url(self.path):
            if files.exists(self.path):
                return False
            self._write()
            time.sleep(SETTLE_SECONDS)
            return self.held
        try:
            with open(self.path, "x", encoding="utf-8") as file:
                file.write(strict_json.dumps(self._content) + "\n")
        except FileExistsError:
            return False
        return True

    def _write(self) -> None:
        self._content["beat"] = self._content.get("beat", 0) + 1  # or the content would not change
        strict_json.write(self.path, self._content, indent=None)

    def _refresh(self) -> None:
        while not self._over.wait(BEAT_SECONDS):
            with contextlib.suppress(*files.errors()):  # tried again in ten seconds
                if files.exists(self.path) and not self.held:
                    return
                if files.is_url(self.path):
                    self._write()
                else:
                    os.utime(self.path)


@contextlib.contextmanager
def lease(path: str, what: str) -> Iterator[Lease]:
    """A `Lease` for the duration of the block."""
    found = Lease(path, what)
    try:
        yield found
    finally:
        found.release()


def _wait_until_abandoned(path: str) -> None:
    """Remove the file of a holder that is gone; wait until that is known.

    Raises:
        InputError: the holder is alive.
    """
    holder, identity = _read(path), _identity()
    local = all(holder.get(key) == identity[key] for key in ("host", "system"))
    if local:
        if _runs(holder):
            raise _held(path, holder)
    else:
        first = _state(path)
        log.info(
            "%s: left by process %s on %s, or still held: watching it for %.0f s",
            shown(path), holder.get("process"), holder.get("host"), LEASE_SECONDS,
        )  # fmt: skip
        end = time.monotonic() + LEASE_SECONDS
        while time.monotonic() < end:
            time.sleep(min(1.0, LEASE_SECONDS / 10))
            state = _state(path)
            if state is None:
                return
            if state != first:
                raise _held(path, holder)
    _remove_abandoned(path, holder.get("token"))


def _remove_abandoned(path: str, token: Any) -> None:
    """Remove the file if it is still the one with this token: another process may have taken it over meanwhile."""
    if files.is_url(path):
        if _read(path).get("token") == token:
            files.remove(path)
        return
    aside = f"{path}.{uuid.uuid4().hex}"
    with contextlib.suppress(FileNotFoundError):
        os.rename(path, aside)
        if _read(aside).get("token") != token:
            with contextlib.suppress(OSError):  # it exists again, or the file system has no links
                os.link(aside, path)
        os.remove(aside)


def _held(path: str, holder: dict[str, Any]) -> InputError:
    return InputError(
        f"{shown(os.path.dirname(path))}: {holder.get('what', 'another process')} is using it: process "
        f"{holder.get('process')} on {holder.get('host')}, since {holder.get('since')}; wait until it ends, or name "
        "another folder"
    )


def _state(path: str) -> tuple[int, bytes] | None:
    """What changes when the holder refreshes the file; None if there is no file."""
    try:
        return files.stat(path).mtime_ns, files.read_bytes(path)
    except files.errors():
        return None


def _read(path: str) -> dict[str, Any]:
    try:
        found = json.loads(files.read_bytes(path))
    except ValueError:
        return {}
    except files.errors():
        return {}
    return found if isinstance(found, dict) else {}


def _identity() -> dict[str, Any]:
    """Identifies this process, so that others on the same system can tell whether it still runs."""
    return {"host": socket.gethostname(), "system": _system(), "process": os.getpid(), "started": _started(os.getpid())}


def _system() -> str:
    """The running system and, in a container, its own numbering of processes."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _runs(holder: dict[str, Any]) -> bool:
    process = holder.get("process")
    if not isinstance(process, int):
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        pass
    return _started(process) == holder.get("started")  # or its number went to another process


def _started(process: int) -> str | None:
    """When a process started, in ticks since the system did; None if the system does not tell."""
    try:
        stat = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] == "Z" else fields[19]
